"""From the teacher to one small tree that minimises measured regret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aks.train.classifier import Folds
from aks.train.examples import Examples, Inputs
from aks.train.growth import GrownTree, Rows, Shape, collapse_strengths, grow, prune
from aks.train.leaves import Leaf, LeafRule, fill_leaf
from aks.train.teacher import Imagined, Teacher

OVERGROWTH = 2
"""Grow this many times too many leaves, then prune: what pays off late is found, and what does not goes."""
IMAGINED_WEIGHTS = (1.0, 4.0)
GUIDANCE = (0.3, 1.0)
PRICES = (0.0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
"""Nats of mean cost that a leaf must save."""


@dataclass(frozen=True)
class TreeSettings:
    """What cross-validation chooses: imagined rows' weight against measured ones', ``Shape.guidance``, leaf price."""

    imagined_weight: float
    guidance: float
    price: float


@dataclass(frozen=True)
class DistilledTree:
    """The tree that is exported: nodes in preorder, the root first, and a ``Leaf`` for each leaf node."""

    nodes: GrownTree
    leaves: dict[int, Leaf]
    settings: TreeSettings

    def __call__(self, inputs: Inputs) -> NDArray[np.intp]:
        """[P]: for each problem, the first config of its leaf's ranking that is legal."""
        reached = self.nodes.leaves(inputs.features)
        choice = np.zeros(len(inputs), dtype=np.intp)
        for node in np.unique(reached):
            rows = np.flatnonzero(reached == node)
            for entry in reversed(self.leaves[int(node)].ranking):
                choice[rows[inputs.legal[rows, entry]]] = entry
        return choice

    def to_json(self) -> dict[str, list]:
        """The arrays of ``selector.json``."""
        leaf_of = [self.leaves.get(node) for node in range(len(self.nodes.feature))]
        return {
            "feature": self.nodes.feature.tolist(),
            "threshold": [float(value) for value in self.nodes.threshold],
            "left": self.nodes.left.tolist(),
            "right": self.nodes.right.tolist(),
            "ranking": [None if leaf is None else list(leaf.ranking) for leaf in leaf_of],
            "expected_slowdown": [None if leaf is None else list(leaf.expected_slowdown) for leaf in leaf_of],
            "count": [0 if leaf is None else leaf.count for leaf in leaf_of],
            "abstain": [leaf is not None and leaf.abstain for leaf in leaf_of],
        }

    def to_text(self, features: Sequence[str], configs: Sequence[str]) -> str:
        """The tree for people: a line a node, children indented below their condition."""
        lines = []

        def write(node: int, indent: str) -> None:
            leaf = self.leaves.get(node)
            if leaf is not None:
                ranking = ", ".join(configs[entry] for entry in leaf.ranking)
                lines.append(f"{indent}{'ABSTAIN: ' if leaf.abstain else ''}{ranking}  [{leaf.count} problems]")
                return
            condition = f"{features[self.nodes.feature[node]]} < {self.nodes.threshold[node]:g}"
            lines.append(f"{indent}if {condition}:")
            write(int(self.nodes.left[node]), indent + "  ")
            lines.append(f"{indent}else:")
            write(int(self.nodes.right[node]), indent + "  ")

        write(0, "")
        return "\n".join(lines) + "\n"


def join_rows(examples: Examples, imagined: Imagined, teacher: Teacher, imagined_weight: float) -> Rows:
    """Measured rows of weight 1, and imagined ones that the teacher priced, ``imagined_weight`` as heavy in all."""
    weight = imagined_weight * len(examples) / max(1, len(imagined.source))
    return Rows(
        np.concatenate([examples.inputs.features, imagined.inputs.features]).astype(np.float32),
        np.concatenate([examples.cost, teacher.cost(imagined.inputs)]),
        np.concatenate([np.ones(len(examples)), np.full(len(imagined.source), weight)]),
        np.arange(len(examples) + len(imagined.source)) < len(examples),
    )


def tune_tree(
    examples: Examples, folds: Folds, teachers: Sequence[Teacher], imagined: Imagined, shape: Shape
) -> TreeSettings:
    """Settings whose trees cost least on the folds' held-out families.

    Each setting is chosen by its mean over all values of the others: single combinations differ by
    less than the folds' noise. Ties go to the smaller tree. teachers: one a fold, fitted on its
    training rows alone; imagined rows drawn around held-out problems are left out too.
    """
    cost = np.zeros((len(IMAGINED_WEIGHTS), len(GUIDANCE), len(PRICES)))
    for (train, test), teacher in zip(folds, teachers, strict=True):
        near, held_out = imagined.drawn_around(train), examples.rows(test)
        for i, weight in enumerate(IMAGINED_WEIGHTS):
            rows = join_rows(examples.rows(train), near, teacher, weight)
            for j, guidance in enumerate(GUIDANCE):
                tree, strengths = _overgrow(rows, shape, guidance)
                for k, price in enumerate(PRICES):
                    choice = _cheapest(prune(tree, strengths, price, shape.max_leaves), held_out.inputs)
                    cost[i, j, k] += held_out.cost[np.arange(len(test)), choice].sum()
    return TreeSettings(
        IMAGINED_WEIGHTS[cost.mean(axis=(1, 2)).argmin()],
        GUIDANCE[cost.mean(axis=(0, 2)).argmin()],
        PRICES[len(PRICES) - 1 - cost.mean(axis=(0, 1))[::-1].argmin()],
    )


def _overgrow(rows: Rows, shape: Shape, guidance: float) -> tuple[GrownTree, NDArray[np.float64]]:
    wide = replace(shape, max_leaves=OVERGROWTH * shape.max_leaves, guidance=guidance)
    tree = grow(rows, wide)
    return tree, collapse_strengths(tree)


def _cheapest(tree: GrownTree, inputs: Inputs) -> NDArray[np.intp]:
    """[P]: the legal class of least summed cost in each problem's leaf."""
    totals = tree.totals[tree.leaves(inputs.features)]
    return np.where(inputs.legal, totals, np.inf).argmin(axis=1)


def distil(
    examples: Examples,
    legal_undeclared: NDArray[np.bool_],
    groups: NDArray[np.intp],
    imagined: Imagined,
    teacher: Teacher,
    settings: TreeSettings,
    shape: Shape,
    rule: LeafRule,
) -> DistilledTree:
    """Grow, prune and fill the leaves.

    legal_undeclared [P, K] as in ``Imagined``; groups [P] numbers the family of each measured row.
    """
    rows = join_rows(examples, imagined, teacher, settings.imagined_weight)
    grown, strengths = _overgrow(rows, shape, settings.guidance)
    tree = prune(grown, strengths, settings.price, shape.max_leaves)
    reached = tree.leaves(rows.features)
    legal = np.concatenate([examples.inputs.legal, imagined.inputs.legal])
    undeclared = np.concatenate([legal_undeclared, imagined.legal_undeclared])
    leaves = {}
    for node in np.flatnonzero(tree.feature < 0):
        members = np.flatnonzero(reached == node)
        demands = np.unique(np.concatenate([legal[members], undeclared[members]]), axis=0)
        leaves[int(node)] = fill_leaf(rows, members, examples, groups, demands, rule)
    return DistilledTree(tree, leaves, settings)
