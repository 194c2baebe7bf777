"""``selector.json``, what training writes: read and checked against its op before anything is exported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from aks.core.artifact import digest
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import AksError, ArtifactError, DataError
from aks.core.features import Feature
from aks.core.forecast import Forecast
from aks.ops.op import Op

FORMAT, VERSION = "aks-selector", 1
_FIELDS = ("op", "device", "space_fingerprint", "dataset", "features", "portfolio", "support", "tree")
_ARRAYS = ("feature", "threshold", "left", "right", "ranking", "expected_slowdown", "count", "abstain")


def read_selector(path: Path) -> tuple[dict[str, Any], str]:
    """The selector in a file, and the file's SHA-256; only its JSON is checked, ``check_selector`` does the rest.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated or no JSON object.
    """
    try:
        data = path.read_bytes()
        selector = json.loads(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); write it with: aks train") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is empty, truncated or not JSON ({error}); write it again: aks train") from error
    if not isinstance(selector, dict):
        raise DataError(f"{path} holds a JSON {type(selector).__name__}, not a selector; write it with: aks train")
    return selector, digest(data)


def check_selector(selector: dict[str, Any], op: Op) -> None:
    """Raise unless every part of the selector is there, well-typed, consistent and made for ``op`` as it is now.

    Raises
    ------
    ArtifactError
        Saying which part is wrong. What concerns the lowered tree alone (ranges of the support,
        rankings, overflow) is checked by ``aks.core.tree.Tree``.
    """
    found = (selector.get("format"), selector.get("version"))
    if found != (FORMAT, VERSION):
        raise ArtifactError(f"selector has format and version {found}; this version of aks reads {(FORMAT, VERSION)}")
    missing = [name for name in _FIELDS if name not in selector]
    if missing:
        raise ArtifactError(f"selector lacks {', '.join(missing)}; write it again: aks train")
    if selector["op"] != op.name:
        raise ArtifactError(f"selector is for op {selector['op']!r}; wanted {op.name!r}")
    if selector["space_fingerprint"] != op.space.fingerprint:
        raise ArtifactError(
            f"selector is for config space {selector['space_fingerprint']!r} of {op.name}, which is now "
            f"{op.space.fingerprint!r}: its rules or kernels changed since; collect and train again"
        )
    try:
        DeviceSpec.from_row(selector["device"])
        read_portfolio(selector, op)
        read_features(selector)
        _check_support(selector["support"], op)
        _check_arrays(selector["tree"], len(selector["features"]), len(selector["portfolio"]))
        read_forecast(selector)
    except ArtifactError:
        raise
    except (AksError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"selector cannot be read: {type(error).__name__} {error}") from error


def read_features(selector: dict[str, Any]) -> tuple[Feature, ...]:
    """The feature table that the tree's splits index."""
    return tuple(Feature(row["name"], row["formula"], row.get("doc", "")) for row in selector["features"])


def read_portfolio(selector: dict[str, Any], op: Op) -> tuple[Config, ...]:
    """The configs that the tree's rankings index, the vendor first.

    Raises
    ------
    ArtifactError
        If it does not start with the vendor, repeats a config, or has one that is not in the space.
    """
    portfolio = tuple(op.config_type.from_row(row) for row in selector["portfolio"])
    if not portfolio or portfolio[0] != op.vendor:
        raise ArtifactError(f"the portfolio must start with the vendor's config {op.vendor.key()!r}")
    if len(set(portfolio)) != len(portfolio):
        raise ArtifactError("the portfolio has a config twice")
    foreign = [config.key() for config in portfolio if config not in op.space.places]
    if foreign:
        raise ArtifactError(f"the portfolio has configs that are not in the space of {op.name}: {foreign}")
    return portfolio


def read_forecast(selector: dict[str, Any]) -> Forecast | None:
    """Of what the tree's answers take, over a problem and a device; None in selectors of before there were forecasts.

    Raises
    ------
    ArtifactError
        If it is malformed.
    """
    return Forecast.from_json(selector["forecast"]) if selector.get("forecast") else None


def _check_support(support: dict[str, Any], op: Op) -> None:
    if set(support["axes"]) != set(op.problem_type.AXES):
        raise ArtifactError(f"support has axes {sorted(support['axes'])}; {op.name} has {op.problem_type.AXES}")
    unknown = set(support["choices"]) - set(op.problem_type.CHOICES)
    if unknown:
        raise ArtifactError(f"support names {sorted(unknown)}, which {op.name} problems do not have")


def _check_arrays(tree: dict[str, Any], num_features: int, num_configs: int) -> None:
    missing = [name for name in _ARRAYS if not isinstance(tree.get(name), list)]
    if missing:
        raise ArtifactError(f"selector's tree lacks the arrays {', '.join(missing)}")
    lengths = {name: len(tree[name]) for name in _ARRAYS}
    if len(set(lengths.values())) != 1 or not tree["feature"]:
        raise ArtifactError(f"selector's tree has arrays of unequal or no length: {lengths}")
    seen = set()
    stack = [0]
    while stack:
        node = stack.pop()
        if type(node) is not int or not 0 <= node < len(tree["feature"]):
            raise ArtifactError(f"selector's tree leads to node {node!r}; it has {len(tree['feature'])} nodes")
        if node in seen:
            raise ArtifactError(f"selector's tree leads to node {node} twice: it has a cycle or shares a subtree")
        seen.add(node)
        if _is_split(tree, node, num_features):
            stack += [tree["right"][node], tree["left"][node]]
        else:
            _check_leaf(tree, node, num_configs)
    if len(seen) != len(tree["feature"]):
        raise ArtifactError(f"selector's tree has {len(tree['feature']) - len(seen)} nodes that nothing leads to")


def _is_split(tree: dict[str, Any], node: int, num_features: int) -> bool:
    feature, threshold = tree["feature"][node], tree["threshold"][node]
    if feature == -1:
        return False
    if type(feature) is not int or not 0 <= feature < num_features:
        raise ArtifactError(f"node {node} splits on feature {feature!r}; the table has {num_features}")
    if type(threshold) not in (int, float):
        raise ArtifactError(f"node {node} has threshold {threshold!r}; wanted a number")
    return True


def _check_leaf(tree: dict[str, Any], node: int, num_configs: int) -> None:
    ranking, slowdowns, count = (tree[name][node] for name in ("ranking", "expected_slowdown", "count"))
    if not isinstance(ranking, list) or not all(type(index) is int and 0 <= index < num_configs for index in ranking):
        raise ArtifactError(f"leaf {node} ranks {ranking!r}; wanted indices into the {num_configs} configs")
    if not isinstance(slowdowns, list) or len(slowdowns) != len(ranking):
        raise ArtifactError(f"leaf {node} ranks {len(ranking)} configs but expects slowdowns {slowdowns!r}")
    if not all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in slowdowns):
        raise ArtifactError(f"leaf {node} expects slowdowns {slowdowns!r}; wanted finite numbers")
    if type(count) is not int or count < 0 or type(tree["abstain"][node]) is not bool:
        raise ArtifactError(f"leaf {node} has count {count!r} and abstain {tree['abstain'][node]!r}")
