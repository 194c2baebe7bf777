"""Lowering: from the selector's float32 tree to the integer tree of one device."""

from __future__ import annotations

import dataclasses
import math
import struct
from fractions import Fraction
from typing import Any

from aks.core import formula
from aks.core.bounds import INT64_MAX, Box, interval, narrow
from aks.core.device import DeviceSpec, device_slug
from aks.core.errors import ArtifactError, FormulaError
from aks.core.features import Feature
from aks.core.tree import MAX_DEPTH, VENDOR, Leaf, Node, Parameter, Split, Tree, round_slowdown
from aks.export.selector import check_selector, read_features, read_portfolio
from aks.ops.op import Op

ALWAYS_LEFT, ALWAYS_RIGHT = INT64_MAX, -1


def lower_threshold(threshold: float) -> int:
    """The integer T with ``x <= T`` exactly where ``float32(x) < float32(threshold)``, for int64 ``x >= 0``.

    ``ALWAYS_LEFT`` (2^63 - 1) if every x passes, ``ALWAYS_RIGHT`` (-1) if none does: a nan compares
    false with everything. float32(x) rounds to nearest, ties to even, so the last x below a float t
    lies at the midpoint of t and the float before it: exact beyond 2^24 too.
    """
    t = _float32(threshold)
    if math.isnan(t) or t <= 0:
        return ALWAYS_RIGHT
    if t > 2.0**63:  # float32(2^63 - 1) is 2^63
        return ALWAYS_LEFT
    bits = struct.unpack("<I", struct.pack("<f", t))[0] - 1
    before = struct.unpack("<f", struct.pack("<I", bits))[0]
    middle = (Fraction(before) + Fraction(t)) / 2
    if middle.denominator == 1 and bits % 2:  # the tie goes to the even mantissa, which is t's
        return int(middle) - 1
    return math.floor(middle)


def _float32(value: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:  # beyond the largest float32
        return math.copysign(math.inf, value)


def lower(selector: dict[str, Any], op: Op, device: DeviceSpec) -> Tree:
    """The selector as an integer tree for ``device``: its facts folded in, what it decides dropped.

    Splits that the support, the device or an earlier split decides go away, as do subtrees whose
    leaves rank alike and features that no split reads. Configs that the device can never run are
    dropped from every ranking but keep their index, which is the selector's class. Slowdowns are
    rounded to what ``tree.json`` keeps, and features lose their ``doc``, which the op has.

    Raises
    ------
    ArtifactError
        If the selector is of another format, op or space, or contradicts itself.
    """
    check_selector(selector, op)
    facts = device.variables()
    features = tuple(Feature(feature.name, formula.fold(feature.formula, facts)) for feature in read_features(selector))
    portfolio = read_portfolio(selector, op)
    frame = Tree(
        op=op.name,
        device=device_slug(device.name),
        space_fingerprint=op.space.fingerprint,
        parameters=_parameters(op),
        support=_support(selector["support"], op),
        config_choices=dict(op.config_type.CHOICES),
        configs=tuple(config.to_row() for config in portfolio),
        legality=tuple(op.space.legality(config, device) for config in portfolio),
        features=(),
        root=Leaf((VENDOR,), (None,), 0),
    )
    try:
        for index in sorted(set(selector["tree"]["feature"]) - {-1}):
            interval(features[index].formula, frame.box)
        root = _lower_node(selector["tree"], 0, _Context(features, frame.legality), frame.box, 0)
    except FormulaError as error:
        raise ArtifactError(f"{error}; over the support {frame.support}") from error
    used, root = _finish(features, root)
    return dataclasses.replace(frame, features=used, root=root)


def _parameters(op: Op) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            field.name,
            tuple(op.problem_type.CHOICES.get(field.name, ())),
            None if field.default is dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(op.problem_type)
    )


def _support(support: dict[str, Any], op: Op) -> dict[str, tuple[Any, ...]]:
    known = {**op.problem_type.CHOICES, **support["choices"], **support["axes"]}
    return {field.name: tuple(known[field.name]) for field in dataclasses.fields(op.problem_type)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Context:
    features: tuple[Feature, ...]
    legality: tuple[str, ...]


def _lower_node(arrays: dict[str, Any], node: int, context: _Context, box: Box, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise ArtifactError(f"the selector's tree is deeper than {MAX_DEPTH} levels; distil a smaller one")
    feature = arrays["feature"][node]
    if feature == -1:
        return _lower_leaf(arrays, node, context)
    threshold = lower_threshold(arrays["threshold"][node])
    below, above = narrow(box, context.features[feature].formula, threshold)
    children = []
    for side, part in (("left", below), ("right", above)):
        if part is not None:
            children.append(_lower_node(arrays, arrays[side][node], context, part, depth + 1))
    if len(children) == 1:
        return children[0]
    left, right = children
    if isinstance(left, Leaf) and isinstance(right, Leaf) and _alike(left, right):
        return _merge(left, right)
    return Split(feature, threshold, left, right)


def _lower_leaf(arrays: dict[str, Any], node: int, context: _Context) -> Leaf:
    ranking, slowdowns = arrays["ranking"][node], arrays["expected_slowdown"][node]
    abstain = arrays["abstain"][node]
    if VENDOR not in ranking or ranking[-1] != VENDOR or len(set(ranking)) != len(ranking):
        raise ArtifactError(f"leaf {node} ranks {ranking}; wanted distinct configs, the vendor (0) last")
    kept = [
        (index, slowdown)
        for index, slowdown in zip(ranking, slowdowns, strict=True)
        if index == VENDOR or not (abstain or context.legality[index] == "False")
    ]
    return Leaf(tuple(index for index, _ in kept), tuple(value for _, value in kept), arrays["count"][node], abstain)


def _alike(left: Leaf, right: Leaf) -> bool:
    return (left.ranking, left.abstain) == (right.ranking, right.abstain)


def _merge(left: Leaf, right: Leaf) -> Leaf:
    """One leaf for two that rank alike; what it expects is the mean over their training problems."""
    weights = (left.count, right.count) if left.count + right.count else (1, 1)
    slowdowns = tuple(
        None if a is None or b is None else (a * weights[0] + b * weights[1]) / sum(weights)
        for a, b in zip(left.expected_slowdown, right.expected_slowdown, strict=True)
    )
    return Leaf(left.ranking, slowdowns, left.count + right.count, left.abstain)


def _finish(features: tuple[Feature, ...], root: Node) -> tuple[tuple[Feature, ...], Node]:
    """The features that some split reads, in order of first use, and the tree over them with slowdowns rounded."""
    used: list[int] = []

    def renumber(node: Node) -> Node:
        if isinstance(node, Leaf):
            return dataclasses.replace(node, expected_slowdown=tuple(map(round_slowdown, node.expected_slowdown)))
        if node.feature not in used:
            used.append(node.feature)
        return Split(used.index(node.feature), node.threshold, renumber(node.left), renumber(node.right))

    root = renumber(root)
    return tuple(features[index] for index in used), root
