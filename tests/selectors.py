"""Made-up selectors: random trees in the format that training writes, for tests of everything after it."""

from __future__ import annotations

import ast
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from aks.core import features as feature_table
from aks.core.device import DeviceSpec, find_device
from aks.core.features import Feature
from aks.ops import OPS
from aks.ops.op import Op

ODD_THRESHOLDS = (-1.0, 0.0, -0.0, 0.5, 1e-45, math.nan, math.inf, -math.inf, 2.0**24, 2.0**24 + 2, 2.0**63, 3e38)

EXTRA_FEATURES = {
    # Values beyond 2^24, where float32 no longer holds every integer, and beyond 2^53.
    "huge_product": "{product}",
    "huge_squares": "{first} * {first} * {last} * {last}",
    "odd_mix": "max({first} % 7, next_pow2({last})) + ceil_div({first}, 3 + {last} % 5)",
    "aligned": "gcd(16, {first} * 6, {last})",
    "steps": "ceil_div(next_pow2({first}), 48) * 3 + 5",
}


def op_features(op: Op) -> tuple[Feature, ...]:
    """The op's own features and some that stress lowering."""
    axes = op.problem_type.AXES
    words = {"first": axes[0], "last": axes[-1], "product": " * ".join(axes)}
    return op.features + tuple(Feature(name, text.format(**words)) for name, text in EXTRA_FEATURES.items())


def random_problems(op: Op, count: int, rng: np.random.Generator, *, top: int = 20000) -> dict[str, np.ndarray]:
    """Columns of problems, as formulas see them: axes log-uniform from 1 to ``top``, choices uniform."""
    columns = {axis: np.exp(rng.uniform(0, math.log(top), count)).astype(np.int64) for axis in op.problem_type.AXES}
    for name, choices in op.problem_type.CHOICES.items():
        values = [choices.index(value) if isinstance(value, str) else int(value) for value in choices]
        columns[name] = np.asarray(values, dtype=np.int64)[rng.integers(len(values), size=count)]
    return columns


def random_selector(
    seed: int = 0, *, op: Op = OPS["gemm"], device: str | DeviceSpec = "h200", levels: int = 8, portfolio: int = 10
) -> dict[str, Any]:
    """A valid selector with a random tree: thresholds from values that problems have, and some odd ones."""
    rng = random.Random(seed)
    spec = find_device(device) if isinstance(device, str) else device
    features = op_features(op)
    columns = random_problems(op, 400, np.random.default_rng(seed))
    values = feature_table.evaluate_columns(features, columns | spec.variables())
    others = [config for config in op.space.configs if config != op.vendor]
    configs = [op.vendor, *rng.sample(others, min(portfolio - 1, len(others)))]
    return {
        "format": "aks-selector",
        "version": 1,
        "op": op.name,
        "regime": "cold",
        "device": spec.to_row(),
        "devices": [spec.name],
        "space_fingerprint": op.space.fingerprint,
        "dataset": {"sha256": "0" * 64, "path": "data/none.parquet", "rows": 0, "problems": 0, "environment": {}},
        "features": [{"name": f.name, "formula": f.formula, "doc": f.doc} for f in features],
        "portfolio": [config.to_row() for config in configs],
        "support": random_support(op, rng),
        "tree": random_arrays(rng, values, len(configs), levels),
        "xgboost": {"file": "xgboost.json", "sha256": "0" * 64},
        "seed": seed,
        "command": "aks train made-up",
        "metrics": {"mean_regret": 0.0, "p99_regret": math.nan},
        "ladder": {},
    }


def random_support(op: Op, rng: random.Random) -> dict[str, Any]:
    """A box that holds most of ``random_problems``; the last attribute (static_weights for gemm) is not part of it."""
    axes = {axis: [rng.choice([1, 2, 16]), rng.choice([8192, 16384])] for axis in op.problem_type.AXES}
    choices = {}
    for name, values in list(op.problem_type.CHOICES.items())[:-1]:
        choices[name] = rng.sample(values, rng.randint(max(1, len(values) - 1), len(values)))
    return {"axes": axes, "choices": choices}


def random_arrays(rng: random.Random, values: np.ndarray, num_configs: int, levels: int) -> dict[str, list]:
    """A tree's arrays. values: [P, F] feature values to take thresholds from."""
    names = ("feature", "threshold", "left", "right", "ranking", "expected_slowdown", "count", "abstain")
    tree: dict[str, list] = {name: [] for name in names}

    def add(depth: int) -> int:
        node = len(tree["feature"])
        row = dict.fromkeys(names)
        for name in names:
            tree[name].append(None)
        if depth < levels and rng.random() < 0.97 - 0.05 * depth:
            feature = rng.randrange(values.shape[1])
            row |= {"feature": feature, "threshold": random_threshold(rng, values[:, feature])}
            row |= {"left": add(depth + 1), "right": add(depth + 1), "count": 0, "abstain": False}
        else:
            ranking = [*rng.sample(range(1, num_configs), rng.randint(0, min(4, num_configs - 1))), 0]
            slowdowns = sorted(1 + rng.random() for _ in ranking)
            row |= {"feature": -1, "threshold": 0.0, "left": -1, "right": -1, "ranking": ranking}
            row |= {"expected_slowdown": slowdowns, "count": rng.randrange(100), "abstain": rng.random() < 0.1}
        for name in names:
            tree[name][node] = row[name]
        return node

    add(0)
    return tree


def random_threshold(rng: random.Random, values: np.ndarray) -> float:
    """A float32, as a float: mostly at or next to a value of the feature."""
    if rng.random() < 0.1:
        return float(np.float32(rng.choice(ODD_THRESHOLDS)))
    at = np.float32(int(rng.choice(values)))
    return float(rng.choice([at, np.nextafter(at, np.float32(np.inf)), at + np.float32(0.5)]))


def write_selector(folder: Path, selector: dict[str, Any]) -> Path:
    """The selector as a file."""
    path = folder / "selector.json"
    path.write_text(json.dumps(selector))
    return path


def choose_float32(selector: dict[str, Any], op: Op, device: DeviceSpec, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Config indices [P] as XGBoost's rule gives them: features as float32, ``<`` against float32 thresholds.

    Written from the definition, apart from the code under test: support, then the walk, then the
    first config of the leaf whose rules hold.
    """
    table = tuple(Feature(row["name"], row["formula"]) for row in selector["features"])
    read = sorted(set(selector["tree"]["feature"]) - {-1})
    values = np.zeros((len(next(iter(columns.values()))), len(table)), dtype=np.float32)
    values[:, read] = feature_table.evaluate_columns(tuple(table[i] for i in read), columns | device.variables())
    leaves = walk_float32(selector["tree"], values)
    legal = legal_rows(op, selector["portfolio"], device, columns)
    chosen = np.zeros(len(leaves), dtype=np.int64)
    for leaf in np.unique(leaves):
        here = np.flatnonzero(leaves == leaf)
        if not selector["tree"]["abstain"][leaf]:
            for index in reversed(selector["tree"]["ranking"][leaf]):
                chosen[here[legal[index, here]]] = index
    return np.where(inside(selector["support"], op, columns), chosen, 0)


def walk_float32(tree: dict[str, list], values: np.ndarray) -> np.ndarray:
    """Leaf of each row of values [P, F] float32."""
    node = np.zeros(len(values), dtype=np.int64)
    feature, left, right = (np.asarray(tree[name]) for name in ("feature", "left", "right"))
    threshold = np.asarray(tree["threshold"]).astype(np.float32)
    while (open_ := feature[node] >= 0).any():
        rows = np.flatnonzero(open_)
        at = node[rows]
        goes_left = values[rows, feature[at]] < threshold[at]
        node[rows] = np.where(goes_left, left[at], right[at])
    return node


def inside(support: dict[str, Any], op: Op, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Whether each problem lies in the support."""
    result = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for axis, (low, high) in support["axes"].items():
        result &= (columns[axis] >= low) & (columns[axis] <= high)
    for name, values in support["choices"].items():
        choices = op.problem_type.CHOICES[name]
        result &= np.isin(columns[name], [choices.index(v) if isinstance(v, str) else int(v) for v in values])
    return result


def legal_rows(
    op: Op, portfolio: list[dict[str, Any]], device: DeviceSpec, columns: dict[str, np.ndarray]
) -> np.ndarray:
    """Whether each config is legal for each problem, bool [C, P]: every rule asked as the spec has it."""
    rules = tuple(Feature(rule.name, _with_min_and_max(rule.formula)) for rule in op.space.rules)
    rows = []
    for row in portfolio:
        known = device.variables() | op.config_type.from_row(row).variables()
        rows.append(feature_table.evaluate_columns(rules, columns | known).all(axis=1))
    return np.stack(rows)


def _with_min_and_max(text: str) -> str:
    """``and`` and ``or`` over comparisons as ``min`` and ``max``, which numpy takes over columns."""

    class Rewrite(ast.NodeTransformer):
        def visit_BoolOp(self, node: ast.BoolOp) -> ast.Call:
            name = "min" if isinstance(node.op, ast.And) else "max"
            return ast.Call(ast.Name(name), [self.visit(value) for value in node.values], [])

    return ast.unparse(Rewrite().visit(ast.parse(text, mode="eval").body))
