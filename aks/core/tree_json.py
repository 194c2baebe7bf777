"""The tree as JSON, ``tree.json``: compact, and read back with every part checked.

Nodes lie in preorder, so their shape needs no child pointers and can have no cycle: ``feature`` has a
symbol for each, ``.`` for a leaf; ``threshold`` one entry a split. Of the leaves, in the same order:
``ranking`` one after the other, a symbol a config, each ended by the vendor's ``0``;
``expected_slowdown`` for each of those, in percent over 1, -1 where it is not known; ``count`` for each
leaf; ``abstain`` the numbers of those that do. A symbol stands for its position in ``SYMBOLS``: 0 to 9,
a to z, A to Z, and so on. ``configs`` starts with the vendor's row; of the others there is a bit mask of
the fields that differ from it (the first field is bit 0), then their values. A choice is an index into
``config_choices``.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from typing import Any

from aks.core import clauses
from aks.core.errors import ArtifactError, FormulaError
from aks.core.features import Feature
from aks.core.tree import MAX_DEPTH, MAX_SLOWDOWN, VENDOR, Leaf, Node, Parameter, Split, Tree

FORMAT, VERSION = "aks-tree", 3
SYMBOLS = string.digits + string.ascii_letters + "!#$%&()*+,-/:;<=>?@[]^_`{|}~"
"""What numbers are written as where there are many: JSON needs no escape for any. Neither ``.`` nor quotes."""
_LEAF = "."
MAX_FORMULA = 2000
"""Characters; Python's parser recurses, so a longer text is refused before it gets there."""

_STEPS = 100  # of a slowdown, for each 1: ``tree.round_slowdown``
_UNKNOWN = -1


def to_json(tree: Tree) -> dict[str, Any]:
    """The tree as plain lists and mappings; ``from_json`` reads it back.

    It comes back equal if its slowdowns are as ``round_slowdown`` gives them and its features have no
    ``doc``, as ``export`` makes them.

    Raises
    ------
    ArtifactError
        If it has more configs or features than there are symbols.
    """
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
        "config_fields": list(tree.configs[VENDOR]),
        "configs": _configs_to_json(tree),
        "legality": clauses.pack(tree.legality),
        "features": [[feature.name, feature.formula] for feature in tree.features],
        "feature": "".join(_symbols([node.feature]) if isinstance(node, Split) else _LEAF for node in nodes),
        "threshold": [node.threshold for node in nodes if isinstance(node, Split)],
        "leaves": {
            "ranking": "".join(_symbols(leaf.ranking) for leaf in leaves),
            "expected_slowdown": [_percent(value) for leaf in leaves for value in leaf.expected_slowdown],
            "count": [leaf.count for leaf in leaves],
            "abstain": [number for number, leaf in enumerate(leaves) if leaf.abstain],
        },
    }


def _parameter_to_json(parameter: Parameter) -> dict[str, Any]:
    row: dict[str, Any] = {"name": parameter.name}
    if parameter.choices:
        row["choices"] = list(parameter.choices)
    if parameter.default is not None:
        row["default"] = parameter.default
    return row


def _configs_to_json(tree: Tree) -> list[list[int]]:
    choices = tree.config_choices
    table = [
        [choices[name].index(value) if name in choices else value for name, value in row.items()]
        for row in tree.configs
    ]
    first = table[VENDOR]
    rows = [first]
    for values in table[1:]:
        differs = [bit for bit, (value, known) in enumerate(zip(values, first, strict=True)) if value != known]
        rows.append([sum(1 << bit for bit in differs), *(values[bit] for bit in differs)])
    return rows


def _percent(slowdown: float | None) -> int:
    return _UNKNOWN if slowdown is None else round((slowdown - 1) * _STEPS)


def _symbols(numbers: Iterable[int]) -> str:
    try:
        return "".join(SYMBOLS[number] for number in numbers)
    except IndexError:
        raise ArtifactError(f"a tree has at most {len(SYMBOLS)} configs and features; lower max_portfolio") from None


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
            op=_text(document["op"]),
            device=_text(document["device"]),
            space_fingerprint=_text(document["space_fingerprint"]),
            parameters=tuple(
                Parameter(row["name"], tuple(row.get("choices", ())), row.get("default"))
                for row in document["parameters"]
            ),
            support={name: tuple(values) for name, values in document["support"].items()},
            config_choices={name: tuple(values) for name, values in document["config_choices"].items()},
            configs=tuple(_read_configs(document)),
            legality=clauses.unpack(document["legality"], MAX_FORMULA),
            features=tuple(Feature(_text(name), _formula(text)) for name, text in document["features"]),
            root=_read_nodes(document),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"the tree cannot be read: {type(error).__name__} {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ArtifactError(f"the tree has {str(value)[:40]!r} where a text is wanted")
    return value


def _formula(text: Any) -> str:
    if not isinstance(text, str) or len(text) > MAX_FORMULA:
        raise FormulaError(f"wanted a formula of at most {MAX_FORMULA} characters, got {str(text)[:40]!r}")
    return text


def _numbers(text: Any) -> list[int]:
    """The positions of symbols; -1 for one that is none."""
    return [SYMBOLS.find(symbol) for symbol in _text(text)]


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise ArtifactError(f"the tree has {str(value)[:40]!r} where a list is wanted")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ArtifactError(f"the tree has {value!r} where an integer is wanted")
    return value


def _below(value: Any, limit: int, what: str) -> int:
    if not 0 <= _integer(value) < limit:
        raise ArtifactError(f"the tree has {what} {value}; wanted an integer from 0 below {limit}")
    return value


def _read_configs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    fields, choices = _list(document["config_fields"]), document["config_choices"]
    if len(set(fields)) != len(fields):
        raise ArtifactError(f"the tree has config fields {fields}; wanted distinct ones")

    def value(name: str, code: Any) -> Any:
        return _list(choices[name])[_below(code, len(choices[name]), name)] if name in choices else code

    first, *others = map(_list, _list(document["configs"]))
    vendor = {name: value(name, code) for name, code in zip(fields, first, strict=True)}
    yield vendor
    for mask, *codes in others:
        _below(mask, 1 << len(fields), "a mask of config fields")
        differs = [name for bit, name in enumerate(fields) if mask >> bit & 1]
        yield vendor | {name: value(name, code) for name, code in zip(differs, codes, strict=True)}


def _read_nodes(document: dict[str, Any]) -> Node:
    features, thresholds = iter(_text(document["feature"])), iter(_list(document["threshold"]))
    leaves = _read_leaves(document["leaves"])
    root = _read_node(features, thresholds, leaves, 0)
    if any(True for rest in (features, thresholds, leaves) for _ in rest):
        raise ArtifactError("the tree has nodes, thresholds or leaves that nothing leads to")
    return root


def _read_node(features: Iterator[str], thresholds: Iterator[Any], leaves: Iterator[Leaf], depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise ArtifactError(f"the tree is deeper than {MAX_DEPTH} levels; distil a smaller one")
    symbol = next(features)
    if symbol == _LEAF:
        return next(leaves)
    feature = SYMBOLS.find(symbol)
    threshold = _integer(next(thresholds))
    left = _read_node(features, thresholds, leaves, depth + 1)
    return Split(feature, threshold, left, _read_node(features, thresholds, leaves, depth + 1))


def _read_leaves(parts: dict[str, Any]) -> Iterator[Leaf]:
    entries = _numbers(parts["ranking"])
    slowdowns, counts, abstain = (_list(parts[name]) for name in ("expected_slowdown", "count", "abstain"))
    if len(entries) != len(slowdowns) or len(counts) != entries.count(VENDOR) or entries[-1:] != [VENDOR]:
        raise ArtifactError(
            f"the tree has {len(counts)} leaves, rankings of {len(entries)} configs, {entries.count(VENDOR)} of them "
            f"the vendor's (0), and {len(slowdowns)} slowdowns; wanted a 0 to end the ranking of each leaf"
        )
    abstaining = {_below(number, len(counts), "an abstaining leaf of number") for number in abstain}
    if abstain != sorted(abstaining):
        raise ArtifactError(f"the tree has abstaining leaves {str(abstain)[:60]}; wanted each once, in order")
    end = 0
    leaves = []
    for number, count in enumerate(counts):
        start, end = end, entries.index(VENDOR, end) + 1
        ranking = tuple(entries[start:end])
        slowdown = tuple(map(_slowdown, slowdowns[start:end]))
        leaves.append(Leaf(ranking, slowdown, _integer(count), number in abstaining))
    return iter(leaves)


def _slowdown(percent: Any) -> float | None:
    if _integer(percent) == _UNKNOWN:
        return None
    return (_STEPS + _below(percent, (MAX_SLOWDOWN - 1) * _STEPS + 1, "a slowdown of percent")) / _STEPS
