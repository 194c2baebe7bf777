"""One small tree that minimises the cost of its leaves' choices: grown greedily, then improved as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeRegressor

_GUIDE_CAP = 0.25
"""Costs are cut here while growing: a disaster is not twice as informative as a bad choice."""
_MAX_BINS = 255
"""Thresholds that are tried for a feature; of more distinct values, neighbours share one."""
_MAX_PASSES = 6


@dataclass(frozen=True)
class Rows:
    """What a tree is grown on: N rows by K classes.

    features [N, F] float32, cost [N, K], weight [N], measured [N] bool (False for imagined rows).
    """

    features: NDArray[np.float32]
    cost: NDArray[np.float64]
    weight: NDArray[np.float64]
    measured: NDArray[np.bool_]

    def over(self, columns: NDArray[np.intp]) -> Rows:
        """The same rows, with the classes at ``columns`` alone."""
        return replace(self, cost=self.cost[:, columns])


@dataclass(frozen=True)
class Shape:
    """Limits of a tree. min_weight: the least summed weight of a node's rows."""

    max_depth: int = 10
    max_leaves: int = 740
    min_weight: float = 1.0


@dataclass(frozen=True)
class GrownTree:
    """Nodes as arrays in preorder, the root first; feature is -1 at a leaf.

    Goes left iff float32(value) < threshold, XGBoost's rule.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float32]
    left: NDArray[np.intp]
    right: NDArray[np.intp]

    @property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return int((self.feature < 0).sum())

    @property
    def levels(self) -> NDArray[np.intp]:
        """[N]: splits between the root and each node."""
        levels = np.zeros(len(self.feature), dtype=np.intp)
        for node in np.flatnonzero(self.feature >= 0):  # a parent comes before its children
            levels[[self.left[node], self.right[node]]] = levels[node] + 1
        return levels

    @property
    def depth(self) -> int:
        """Splits on the longest way from the root to a leaf."""
        return int(self.levels.max())

    def leaves(self, features: NDArray, start: int = 0, steps: int | None = None) -> NDArray[np.intp]:
        """[P]: where each row of features [P, F] ends that starts at a node, after ``steps`` splits at most."""
        values = features.astype(np.float32, copy=False)
        node = np.full(len(values), start, dtype=np.intp)
        rows = np.arange(len(values))
        while len(rows := rows[self.feature[node[rows]] >= 0]) and steps != 0:
            here = node[rows]
            goes_left = values[rows, self.feature[here]] < self.threshold[here]
            node[rows] = np.where(goes_left, self.left[here], self.right[here])
            steps = None if steps is None else steps - 1
        return node


def grow(rows: Rows, shape: Shape, seed: int = 0) -> GrownTree:
    """Grow best-first, by the fall in the variance of the classes' costs, until ``shape.max_leaves``.

    The fall in cost itself is blind to splits that pay only after the next one; ``refine`` looks at that.
    """
    model = DecisionTreeRegressor(
        max_leaf_nodes=max(2, shape.max_leaves),
        max_depth=shape.max_depth,
        min_weight_fraction_leaf=min(0.5, shape.min_weight / rows.weight.sum()),
        random_state=seed,
    )
    model.fit(rows.features, np.minimum(rows.cost, _GUIDE_CAP), sample_weight=rows.weight)
    found: Any = model.tree_
    at_leaf = found.children_left < 0
    return _in_preorder(
        np.where(at_leaf, -1, found.feature),
        np.array([_just_above(value) for value in found.threshold], dtype=np.float32),
        found.children_left,
        found.children_right,
    )


def _just_above(value: float) -> np.float32:
    """The smallest float32 above ``value``: x <= value and x < it are the same for every float32 x."""
    near = np.float32(value)
    return near if float(near) > value else np.nextafter(near, np.float32(np.inf))


def _in_preorder(feature: NDArray, threshold: NDArray, left: NDArray, right: NDArray) -> GrownTree:
    order: list[int] = []
    children: list[list[int]] = []

    def add(node: int) -> int:
        index = len(order)
        order.append(node)
        children.append([-1, -1])
        if feature[node] >= 0:
            children[index] = [add(int(left[node])), add(int(right[node]))]
        return index

    add(0)
    lefts, rights = np.array(children, dtype=np.intp).T
    kept = np.array(order, dtype=np.intp)
    return GrownTree(feature[kept].astype(np.intp), threshold[kept].astype(np.float32), lefts, rights)


def refine(tree: GrownTree, rows: Rows, shape: Shape) -> GrownTree:
    """Improve every split, and every leaf's choice, with the rest of the tree as it is, until nothing changes.

    Each pass goes from the deepest level up and lowers the summed cost of the choices, or leaves it:
    Carreira-Perpinan and Tavallali, Alternating optimization of decision trees, NeurIPS 2018. What no
    row passes any more, and splits whose sides choose alike, are dropped.
    """
    cost = rows.cost * rows.weight[:, None]
    bins = _Bins.of(rows)
    levels = tree.levels
    tree = replace(tree, feature=tree.feature.copy(), threshold=tree.threshold.copy())
    choice = np.zeros(len(levels), dtype=np.intp)
    for _ in range(_MAX_PASSES):
        changed = False
        for level in range(int(levels.max()), -1, -1):
            node = tree.leaves(rows.features, steps=level)
            for here, members in _members(node):
                if levels[here] != level:
                    continue
                if tree.feature[here] < 0:
                    choice[here] = cost[members].sum(axis=0).argmin()
                else:
                    changed |= _improve(tree, here, members, choice, cost, rows, bins, shape.min_weight)
        if not changed:
            break
    return _simplify(tree, rows, choice)


def _members(node: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
    """Each node that occurs, with the rows that are there."""
    order = np.argsort(node, kind="stable")
    found, starts = np.unique(node[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


@dataclass(frozen=True)
class _Bins:
    """codes [N, F]: how many of a feature's thresholds are at most the value: code <= c iff value < thresholds[c]."""

    codes: NDArray[np.intp]
    thresholds: list[NDArray[np.float32]]

    @classmethod
    def of(cls, rows: Rows) -> _Bins:
        thresholds = [_thresholds(rows.features[:, feature]) for feature in range(rows.features.shape[1])]
        codes = [np.searchsorted(cuts, rows.features[:, f], side="right") for f, cuts in enumerate(thresholds)]
        return cls(np.stack(codes, axis=1), thresholds)

    def below(self, members: NDArray[np.intp], value: NDArray[np.float64]) -> NDArray[np.float64]:
        """[F, B]: summed value [members] of those below each threshold of each feature."""
        num_features = self.codes.shape[1]
        cells = (self.codes[members] + np.arange(num_features) * (_MAX_BINS + 1)).ravel()
        sums = np.bincount(cells, np.repeat(value, num_features), minlength=num_features * (_MAX_BINS + 1))
        return sums.reshape(num_features, -1).cumsum(axis=1)[:, :-1]


def _thresholds(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Midpoints between neighbouring distinct values; of too many, those at equal counts of rows."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) > _MAX_BINS:
        share = np.cumsum(counts[:-1]) / len(values)
        kept = np.unique(np.searchsorted(share, np.arange(1, _MAX_BINS) / _MAX_BINS).clip(max=len(share) - 1))
    else:
        kept = np.arange(len(distinct) - 1)
    return np.array([threshold_between(distinct[i], distinct[i + 1]) for i in kept], dtype=np.float32)


def threshold_between(low: np.float32, high: np.float32) -> np.float32:
    """The midpoint as float32, such that ``low < threshold <= high`` even for neighbouring floats."""
    middle = np.float32((float(low) + float(high)) / 2)
    return middle if middle > low else high


def _improve(
    tree: GrownTree,
    node: int,
    members: NDArray[np.intp],
    choice: NDArray[np.intp],
    cost: NDArray[np.float64],
    rows: Rows,
    bins: _Bins,
    min_weight: float,
) -> bool:
    """Give ``node`` the split that costs its rows least, if that is less than now; whether it is."""
    features = rows.features[members]
    on_left, on_right = (
        cost[members, choice[tree.leaves(features, start=int(side[node]))]] for side in (tree.left, tree.right)
    )
    gain = on_left - on_right  # of going left; the less, the better
    if not gain.any():
        return False
    weight = bins.below(members, rows.weight[members])
    allowed = (weight >= min_weight) & (weight <= rows.weight[members].sum() - min_weight)
    summed = np.where(allowed, bins.below(members, gain), np.inf)
    feature, cut = np.unravel_index(summed.argmin(), summed.shape)
    now = gain[features[:, tree.feature[node]] < tree.threshold[node]].sum()
    if summed[feature, cut] >= now - 1e-9 or cut >= len(bins.thresholds[feature]):
        return False
    tree.feature[node], tree.threshold[node] = feature, bins.thresholds[feature][cut]
    return True


def _simplify(tree: GrownTree, rows: Rows, choice: NDArray[np.intp]) -> GrownTree:
    """Without splits that all rows pass on one side, or whose sides are leaves of one choice."""
    passed = np.zeros(len(tree.feature), dtype=bool)
    for level in range(int(tree.levels.max()) + 1):
        passed[tree.leaves(rows.features, steps=level)] = True
    feature, left, right = tree.feature.copy(), tree.left.copy(), tree.right.copy()
    stands_for = np.arange(len(feature))
    for node in np.flatnonzero(feature >= 0)[::-1]:  # children first
        sides = [stands_for[left[node]], stands_for[right[node]]]
        if not (passed[left[node]] and passed[right[node]]):
            stands_for[node] = sides[1 - int(passed[left[node]])]
        elif feature[sides[0]] < 0 and feature[sides[1]] < 0 and choice[sides[0]] == choice[sides[1]]:
            stands_for[node] = sides[0]
        left[node], right[node] = sides
    root = stands_for[0]
    order = [root, *(node for node in range(len(feature)) if node != root)]
    position = np.argsort(order)
    return _in_preorder(
        feature[order],
        tree.threshold[order],
        np.where(feature[order] >= 0, position[left[order]], -1),
        np.where(feature[order] >= 0, position[right[order]], -1),
    )
