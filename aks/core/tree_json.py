"""The tree as JSON, ``tree.json``: compact, and read back with every part checked.

Nodes lie in preorder, so their shape needs no child pointers and can have no cycle: ``feature`` has
-1 for a leaf, ``threshold`` one entry a split, ``leaves`` one entry a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aks.core.errors import ArtifactError, FormulaError
from aks.core.features import Feature
from aks.core.tree import MAX_DEPTH, Leaf, Node, Parameter, Split, Tree

FORMAT, VERSION = "aks-tree", 1
MAX_FORMULA = 2000
"""Characters; Python's parser recurses, so a longer text is refused before it gets there."""

_DIGITS = 4  # of a slowdown: far below what can be measured


def to_json(tree: Tree) -> dict[str, Any]:
    """The tree as plain lists and mappings; ``from_json`` reads it back."""
    nodes = list(tree.nodes())
    leaves = [node for node in nodes if isinstance(node, Leaf)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "op": tree.op,
        "device": tree.device,
        "space_fingerprint": tree.space_fingerprint,
        "parameters": [_parameter_to_json(parameter) for parameter in tree.parameters],
        "support": {name: list(values) for name, values in tree.support.items()},
        "config_choices": {name: list(values) for name, values in tree.config_choices.items()},
        "config_fields": list(tree.configs[0]),
        "configs": [list(row.values()) for row in tree.configs],
        "legality": list(tree.legality),
        "features": [[feature.name, feature.formula, feature.doc] for feature in tree.features],
        "feature": [node.feature if isinstance(node, Split) else -1 for node in nodes],
        "threshold": [node.threshold for node in nodes if isinstance(node, Split)],
        "leaves": {
            "ranking": [list(leaf.ranking) for leaf in leaves],
            "expected_slowdown": [_rounded(leaf.expected_slowdown) for leaf in leaves],
            "count": [leaf.count for leaf in leaves],
            "abstain": [int(leaf.abstain) for leaf in leaves],
        },
    }


def _parameter_to_json(parameter: Parameter) -> dict[str, Any]:
    row: dict[str, Any] = {"name": parameter.name}
    if parameter.choices:
        row["choices"] = list(parameter.choices)
    if parameter.default is not None:
        row["default"] = parameter.default
    return row


def _rounded(values: tuple[float | None, ...]) -> list[float | None]:
    return [None if value is None else round(value, _DIGITS) for value in values]


def from_json(document: dict[str, Any]) -> Tree:
    """Read what ``to_json`` wrote.

    Raises
    ------
    ArtifactError
        If it is of another format or version, or a part is missing, mistyped or contradicts another.
    """
    found = (document.get("format"), document.get("version"))
    if found != (FORMAT, VERSION):
        raise ArtifactError(f"tree has format and version {found}; this version of aks reads {(FORMAT, VERSION)}")
    try:
        return Tree(
            op=str(document["op"]),
            device=str(document["device"]),
            space_fingerprint=str(document["space_fingerprint"]),
            parameters=tuple(
                Parameter(row["name"], tuple(row.get("choices", ())), row.get("default"))
                for row in document["parameters"]
            ),
            support={name: tuple(values) for name, values in document["support"].items()},
            config_choices={name: tuple(values) for name, values in document["config_choices"].items()},
            configs=tuple(dict(zip(document["config_fields"], values, strict=True)) for values in document["configs"]),
            legality=tuple(_formula(text) for text in document["legality"]),
            features=tuple(Feature(name, _formula(text), doc) for name, text, doc in document["features"]),
            root=_read_nodes(document),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"the tree cannot be read: {type(error).__name__} {error}") from error


def _formula(text: Any) -> str:
    if not isinstance(text, str) or len(text) > MAX_FORMULA:
        raise FormulaError(f"wanted a formula of at most {MAX_FORMULA} characters, got {str(text)[:40]!r}")
    return text


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ArtifactError(f"the tree has {value!r} where an integer is wanted")
    return value


def _read_nodes(document: dict[str, Any]) -> Node:
    features = iter(document["feature"])
    thresholds = iter(document["threshold"])
    leaves = zip(
        *(document["leaves"][name] for name in ("ranking", "expected_slowdown", "count", "abstain")), strict=True
    )
    root = _read_node(features, thresholds, leaves, 0)
    if any(True for rest in (features, thresholds, leaves) for _ in rest):
        raise ArtifactError("the tree has nodes, thresholds or leaves that nothing leads to")
    return root


def _read_node(features: Iterator[Any], thresholds: Iterator[Any], leaves: Iterator[Any], depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise ArtifactError(f"the tree is deeper than {MAX_DEPTH} levels; distil a smaller one")
    feature = _integer(next(features))
    if feature == -1:
        ranking, slowdown, count, abstain = next(leaves)
        slowdown = tuple(None if value is None else float(value) for value in slowdown)
        return Leaf(tuple(map(_integer, ranking)), slowdown, _integer(count), bool(abstain))
    threshold = _integer(next(thresholds))
    left = _read_node(features, thresholds, leaves, depth + 1)
    return Split(feature, threshold, left, _read_node(features, thresholds, leaves, depth + 1))
