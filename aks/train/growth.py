"""Growing and pruning a cost-sensitive tree: what is minimised is the cost of the leaves' choices."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_GUIDE_CAP = 0.5
"""Costs are cut here before their variance guides a split: a disaster is not twice as informative as a bad choice."""

_MAX_BINS = 128
"""Bins of a feature; with more distinct values, neighbours share one."""
_TINY = 1e-9


@dataclass(frozen=True)
class Rows:
    """What a tree is grown on: N rows by K classes.

    features [N, F] float32, cost [N, K], weight [N], measured [N] bool (False for imagined rows).
    """

    features: NDArray[np.float32]
    cost: NDArray[np.float64]
    weight: NDArray[np.float64]
    measured: NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """Limits of a tree.

    min_weight: the least summed weight of a node's rows, where a measured row weighs 1. guidance weighs
    the fall in cost variance against the fall in cost itself.
    """

    max_depth: int = 10
    max_leaves: int = 120
    min_weight: float = 2.0
    guidance: float = 0.3


@dataclass(frozen=True)
class GrownTree:
    """Nodes as arrays, the root first; feature is -1 at a leaf.

    Goes left iff float32(value) < threshold, XGBoost's rule. totals [N, K]: weighted cost of each
    class over the rows that pass a node; weight [N]: of those rows.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float32]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    totals: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return int((self.feature < 0).sum())

    @property
    def depth(self) -> int:
        """Splits on the longest way from the root to a leaf."""
        depth = np.zeros(len(self.feature), dtype=np.intp)
        for node in np.flatnonzero(self.feature >= 0):  # a parent comes before its children
            depth[[self.left[node], self.right[node]]] = depth[node] + 1
        return int(depth.max())

    def leaves(self, features: NDArray) -> NDArray[np.intp]:
        """[P]: the leaf of each row of features [P, F]."""
        values = features.astype(np.float32)
        node = np.zeros(len(values), dtype=np.intp)
        rows = np.arange(len(values))
        while len(rows := rows[self.feature[node[rows]] >= 0]):
            here = node[rows]
            goes_left = values[rows, self.feature[here]] < self.threshold[here]
            node[rows] = np.where(goes_left, self.left[here], self.right[here])
        return node


@dataclass(order=True)
class _Candidate:
    """A leaf that may be split, the most gainful first."""

    negative_gain: float
    node: int
    depth: int = field(compare=False)
    feature: int = field(compare=False)
    cut: int = field(compare=False)
    members: NDArray[np.intp] = field(compare=False)


def grow(rows: Rows, shape: Shape) -> GrownTree:
    """Grow best-first: always split the leaf that gains most, until ``shape.max_leaves``.

    A leaf costs the least of its classes' summed costs. That gain alone is blind to splits that pay
    only after the next one (no class changes yet), so the fall in the costs' variance is added.
    Ties go to the lower feature index, then to the lower threshold, then to the older node.
    """
    bins = _make_bins(rows)
    nodes: list[list] = []
    queue: list[_Candidate] = []

    def add(members: NDArray[np.intp], depth: int) -> int:
        sums = bins.columns[members].sum(axis=0)
        num_classes = rows.cost.shape[1]
        nodes.append([-1, np.float32(0), -1, -1, sums[:num_classes], sums[-1]])
        if depth < shape.max_depth:
            gain, feature, cut = _best_split(bins, members, sums, num_classes, shape)
            if feature >= 0:
                heapq.heappush(queue, _Candidate(-gain, len(nodes) - 1, depth, feature, cut, members))
        return len(nodes) - 1

    add(np.arange(len(rows.weight)), 0)
    for _ in range(shape.max_leaves - 1):
        if not queue:
            break
        split = heapq.heappop(queue)
        goes_left = bins.codes[split.members, split.feature] <= split.cut
        threshold = bins.thresholds[split.feature][split.cut]
        left = add(split.members[goes_left], split.depth + 1)
        right = add(split.members[~goes_left], split.depth + 1)
        nodes[split.node][:4] = [split.feature, threshold, left, right]
    feature, threshold, lefts, rights, totals, weight = zip(*nodes, strict=True)
    return GrownTree(
        np.array(feature, dtype=np.intp),
        np.array(threshold, dtype=np.float32),
        np.array(lefts, dtype=np.intp),
        np.array(rights, dtype=np.intp),
        np.array(totals),
        np.array(weight),
    )


@dataclass(frozen=True)
class _Bins:
    """Rows with each feature cut into bins, once for the whole tree.

    codes [N, F]: number of the feature's thresholds that are at most the value, so that code <= c says
    value < thresholds[c]. columns [N, 2 K + 1]: weighted costs, weighted costs cut off for guidance,
    weight.
    """

    codes: NDArray[np.intp]
    thresholds: list[NDArray[np.float32]]
    columns: NDArray[np.float64]


def _make_bins(rows: Rows) -> _Bins:
    thresholds = [_thresholds(rows.features[:, feature]) for feature in range(rows.features.shape[1])]
    codes = [np.searchsorted(cuts, rows.features[:, f], side="right") for f, cuts in enumerate(thresholds)]
    weight = rows.weight[:, None]
    guide = np.minimum(rows.cost, _GUIDE_CAP)
    columns = np.concatenate([rows.cost * weight, guide * weight, weight], axis=1)
    return _Bins(np.stack(codes, axis=1), thresholds, columns)


def _thresholds(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Midpoints between neighbouring distinct values; of too many, those at equal counts of rows."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) > _MAX_BINS:
        share = np.cumsum(counts[:-1]) / len(values)
        kept = np.unique(np.searchsorted(share, np.arange(1, _MAX_BINS) / _MAX_BINS).clip(max=len(share) - 1))
    else:
        kept = np.arange(len(distinct) - 1)
    return np.array([threshold_between(distinct[i], distinct[i + 1]) for i in kept], dtype=np.float32)


def _best_split(
    bins: _Bins, members: NDArray[np.intp], sums: NDArray[np.float64], num_classes: int, shape: Shape
) -> tuple[float, int, int]:
    """Gain, feature and cut of the best split of ``members``, whose columns sum to ``sums``; feature -1 if no gain."""
    left = _histogram(bins, members).cumsum(axis=1)[:, :-1]
    right = sums - left
    least = max(shape.min_weight, _TINY * sums[-1])
    allowed = (left[..., -1] >= least) & (right[..., -1] >= least)

    def worth(part: NDArray[np.float64]) -> NDArray[np.float64]:
        guide = part[..., num_classes : 2 * num_classes]
        explained = (guide**2).sum(axis=-1) / np.maximum(part[..., -1], _TINY)
        return shape.guidance * explained - part[..., :num_classes].min(axis=-1)

    gain = np.where(allowed, worth(left) + worth(right) - worth(sums), -np.inf)
    feature, cut = np.unravel_index(gain.argmax(), gain.shape)
    if gain[feature, cut] <= _TINY * max(1.0, sums[-1]):
        return 0.0, -1, 0
    return float(gain[feature, cut]), int(feature), int(cut)


def _histogram(bins: _Bins, members: NDArray[np.intp]) -> NDArray[np.float64]:
    """[F, B, 2 K + 1]: sums of ``columns`` over the members in each bin of each feature."""
    num_features = bins.codes.shape[1]
    cells = (bins.codes[members] + np.arange(num_features) * _MAX_BINS).ravel()
    size = num_features * _MAX_BINS
    sums = [np.bincount(cells, np.repeat(column, num_features), minlength=size) for column in bins.columns[members].T]
    return np.stack(sums, axis=-1, dtype=np.float64).reshape(num_features, _MAX_BINS, -1)


def threshold_between(low: np.float32, high: np.float32) -> np.float32:
    """The midpoint as float32, such that ``low < threshold <= high`` even for neighbouring floats."""
    middle = np.float32((float(low) + float(high)) / 2)
    return middle if middle > low else high


def collapse_strengths(tree: GrownTree) -> NDArray[np.float64]:
    """[N]: the complexity price (cost a leaf and unit of weight) at which a node becomes a leaf; 0 at leaves.

    Weakest-link pruning: Breiman, Friedman, Olshen and Stone, Classification and Regression Trees
    (1984), section 3.3.
    """
    risk = tree.totals.min(axis=1) / tree.weight[0]
    alive = tree.feature >= 0
    strength = np.where(alive, np.inf, 0.0)
    price = 0.0
    while alive.any():
        subtree, leaves = risk.copy(), np.ones(len(risk))
        link = np.full(len(risk), np.inf)
        for node in np.flatnonzero(alive)[::-1]:
            children = [tree.left[node], tree.right[node]]
            subtree[node], leaves[node] = subtree[children].sum(), leaves[children].sum()
            link[node] = (risk[node] - subtree[node]) / (leaves[node] - 1)
        price = max(price, float(link.min()))
        collapsed = alive & (link <= price + 1e-15)
        for node in np.flatnonzero(alive):  # what hangs below a collapsed node goes with it
            if collapsed[node]:
                collapsed[[tree.left[node], tree.right[node]]] = True
        strength[alive & collapsed] = price
        alive &= ~collapsed
    return strength


def prune(tree: GrownTree, strengths: NDArray[np.float64], price: float, max_leaves: int) -> GrownTree:
    """The tree with every node collapsed that is weaker than ``price``, and more until ``max_leaves`` are left."""
    price = max(price, 0.0)
    keep = strengths > price
    while keep.sum() + 1 > max_leaves:
        keep &= strengths > strengths[keep].min()
    renumbered: list[int] = []
    children: list[list[int]] = []

    def add(node: int) -> int:
        index = len(renumbered)
        renumbered.append(node)
        children.append([-1, -1])
        if keep[node]:
            children[index] = [add(int(tree.left[node])), add(int(tree.right[node]))]
        return index

    add(0)
    left, right = np.array(children, dtype=np.intp).T
    feature = np.where(left >= 0, tree.feature[renumbered], -1)
    threshold = np.where(left >= 0, tree.threshold[renumbered], np.float32(0)).astype(np.float32)
    return GrownTree(feature, threshold, left, right, tree.totals[renumbered], tree.weight[renumbered])
