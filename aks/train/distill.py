"""From the teacher to one small tree that minimises measured and expected regret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aks.train.examples import Examples, Inputs
from aks.train.growth import GrownTree, Rows, Shape, grow, refine
from aks.train.leaves import Leaf, LeafRule, fill_leaf
from aks.train.teacher import Imagined


@dataclass(frozen=True)
class DistilledTree:
    """The tree that is exported: nodes in preorder, the root first, and a ``Leaf`` for each leaf node."""

    nodes: GrownTree
    leaves: dict[int, Leaf]

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


def join_rows(examples: Examples, imagined: Imagined, measured_weight: float) -> Rows:
    """Measured rows, ``measured_weight`` each, and imagined ones of weight 1, over the same configs."""
    count, more = len(examples), len(imagined)
    return Rows(
        np.concatenate([examples.inputs.features, imagined.inputs.features]).astype(np.float32),
        np.concatenate([examples.cost, imagined.cost]),
        np.concatenate([np.full(count, measured_weight), np.ones(more)]),
        np.arange(count + more) < count,
    )


def distil(
    rows: Rows,
    columns: NDArray[np.intp],
    legal: NDArray[np.bool_],
    examples: Examples,
    shape: Shape,
    rule: LeafRule,
    seed: int = 0,
) -> DistilledTree:
    """Grow, refine and fill the leaves.

    Growing looks at the costs of all configs in ``rows``, also those that are not at ``columns``, the
    portfolio: how their costs change says where choices change. legal [R, N, K]: patterns of legality of
    the rows, over the portfolio, for callers who promise more or less. examples: the first rows, measured.
    """
    tree = grow(rows, shape, seed)
    rows = rows.over(columns)
    tree = refine(tree, rows, shape)
    reached = tree.leaves(rows.features)
    leaves = {}
    for node in np.flatnonzero(tree.feature < 0):
        members = np.flatnonzero(reached == node)
        demands = np.unique(np.concatenate(list(legal[:, members])), axis=0)
        leaves[int(node)] = fill_leaf(rows, members, examples, demands, rule)
    return DistilledTree(tree, leaves)
