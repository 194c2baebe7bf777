"""The kernels that a tree can name: for each leaf, what may run there, and in which variants.

Every set here may hold more than what can happen, never less: a problem inside the support finds its kernel.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from aks.core import formula
from aks.core.bounds import Box, interval, narrow, simplify
from aks.core.config import Config
from aks.core.tree import VENDOR, Leaf, Node, Tree
from aks.ops.launch_spec import LaunchSpec


@dataclass(frozen=True, slots=True)
class Key:
    """What names a kernel: a config by its index in the tree, and the values of ``LaunchSpec.variant``."""

    config: int
    values: tuple[int, ...]


def reachable(tree: Tree, spec: LaunchSpec, configs: Sequence[Config]) -> list[Key]:
    """All kernels that ``tree`` can name, each once, by config and then by variant.

    configs are the tree's, as the op's own type.
    """
    found: set[Key] = set()
    known = [config.variables() for config in configs]
    in_variants = frozenset().union(*(formula.names(part.formula) for part in spec.variant))
    for leaf, box in leaf_boxes(tree):
        read = in_variants.union(*(formula.names(tree.legality[config]) for config in leaf.ranking))
        for attributes in attribute_values(tree, box, read):
            inside = {**box, **{name: (value, value) for name, value in attributes.items()}}
            for config, part in _may_run(tree, leaf, inside, attributes):
                if spec.config_has_kernel(configs[config]):
                    found |= {Key(config, values) for values in _variants(spec, known[config] | attributes, part)}
    return sorted(found, key=lambda key: (key.config, key.values))


def leaf_boxes(tree: Tree) -> Iterator[tuple[Leaf, Box]]:
    """Each leaf that a problem inside the support may end in, and bounds of such problems."""
    yield from _leaf_boxes(tree, tree.root, tree.box)


def _leaf_boxes(tree: Tree, node: Node, box: Box) -> Iterator[tuple[Leaf, Box]]:
    if isinstance(node, Leaf):
        yield node, box
        return
    parts = narrow(box, tree.features[node.feature].formula, node.threshold)
    for child, part in zip((node.left, node.right), parts, strict=True):
        if part is not None:
            yield from _leaf_boxes(tree, child, part)


def attribute_values(tree: Tree, box: Box, read: Collection[str] | None = None) -> Iterator[dict[str, int]]:
    """Every combination of attributes that the support and ``box`` allow, as formulas see them.

    With ``read``, of an attribute that is not among these names one value stands for all.
    """
    attributes = [parameter for parameter in tree.parameters if parameter.choices]
    allowed = [
        [value for value in map(p.variable, tree.support[p.name]) if box[p.name][0] <= value <= box[p.name][1]]
        for p in attributes
    ]
    if read is not None:
        allowed = [values if p.name in read else values[:1] for p, values in zip(attributes, allowed, strict=True)]
    for values in product(*allowed):
        yield {parameter.name: value for parameter, value in zip(attributes, values, strict=True)}


def _may_run(tree: Tree, leaf: Leaf, box: Box, attributes: Mapping[str, int]) -> Iterator[tuple[int, Box]]:
    """Configs of the leaf that may be its first legal one, and bounds of the problems for which they are."""
    for config in leaf.ranking:
        if config == VENDOR:
            return
        # With the attributes as numbers, a rule that compares an axis bounds that axis.
        condition = simplify(formula.fold(tree.legality[config], attributes), box)
        part = _where(condition, box)
        if part is not None:
            yield config, part
        if condition == "True":
            return


def _where(condition: str, box: Box) -> Box | None:
    """Bounds of the problems of ``box`` that meet the condition; None if there are none."""
    node = formula.parse(condition)
    for clause in node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else [node]:
        match clause:
            case ast.Constant(value=False):
                return None
            case ast.Compare(left=left, ops=[ast.LtE() | ast.Gt() as op], comparators=[ast.Constant(value=int(limit))]):
                below, above = narrow(box, ast.unparse(left), limit)
                kept = below if isinstance(op, ast.LtE) else above
                if kept is None:
                    return None
                box = kept
    return box


def _variants(spec: LaunchSpec, known: Mapping[str, int], box: Box) -> Iterator[tuple[int, ...]]:
    ranges = [interval(formula.fold(part.formula, known), box) for part in spec.variant]
    yield from product(
        *(
            [value for value in part.values if low <= value <= high]
            for part, (low, high) in zip(spec.variant, ranges, strict=True)
        )
    )
