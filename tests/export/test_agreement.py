"""The XGBoost-side tree, the IR, the predictor, tree.py and the compiled tree.h answer alike."""

from __future__ import annotations

import random
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aks.core import features as feature_table
from aks.core.device import DeviceSpec
from aks.core.tree import Leaf, Split, Tree
from aks.export import bundle
from aks.export.tree import lower
from aks.ops import OPS
from aks.ops.op import Op
from tests.export import evaluators
from tests.selectors import choose_float32, random_arrays, random_problems, random_selector, write_selector

pytestmark = pytest.mark.skipif(evaluators.COMPILER is None, reason="needs a C compiler")
every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))


def export(folder: Path, selector: dict) -> tuple[Tree, DeviceSpec, Path]:
    bundle.export(write_selector(folder, selector), folder)
    loaded = bundle.load(folder)
    return loaded.tree, loaded.device, folder


def crossings(tree: Tree, op: Op, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Problems on both sides of every place where a split changes its mind along an axis."""
    found = []
    thresholds = {(node.feature, node.threshold) for node in tree.nodes() if isinstance(node, Split)}
    for index, threshold in sorted(thresholds):
        for axis in op.problem_type.AXES:
            base = {name: column[0] for name, column in random_problems(op, 1, rng).items()}
            low, high = tree.box[axis]
            line = base | {axis: np.arange(max(1, low - 1), high + 2)}
            value = feature_table.evaluate_columns((tree.features[index],), line)[:, 0]
            flips = np.flatnonzero(np.diff(value <= threshold))[:20]
            for step in (-1, 0, 1, 2):
                at = line[axis][np.clip(flips + step, 0, len(value) - 1)]
                found.append({name: np.broadcast_to(column, at.shape) for name, column in (base | {axis: at}).items()})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]} if found else {}


def rich_selector(op: Op) -> dict:
    """Of many selectors that choose several configs, the one whose lowered tree still has the most leaves."""
    some = random_problems(op, 5000, np.random.default_rng(0))

    def count_leaves(selector: dict) -> int:
        tree = lower(selector, op, DeviceSpec.from_row(selector["device"]))
        return sum(isinstance(node, Leaf) for node in tree.nodes())

    def richness(selector: dict) -> tuple[bool, int]:
        chosen = choose_float32(selector, op, DeviceSpec.from_row(selector["device"]), some)
        return len(np.unique(chosen)) > 3, count_leaves(selector)

    richest = max((random_selector(seed, op=op, levels=10) for seed in range(40)), key=richness)
    assert count_leaves(richest) > 20
    return richest


def check_all(selector: dict, op: Op, exported: tuple[Tree, DeviceSpec, Path], columns: dict[str, np.ndarray]) -> None:
    tree, device, folder = exported
    wanted = choose_float32(selector, op, device, columns)
    program = evaluators.compile_c(folder, op.name, folder / "build")
    some = {name: column[:500] for name, column in columns.items()}
    np.testing.assert_array_equal(evaluators.by_walking(tree, some), wanted[:500])
    np.testing.assert_array_equal(evaluators.by_predictor(folder, tree, columns), wanted)
    np.testing.assert_array_equal(evaluators.by_python(folder, tree, columns), wanted)
    np.testing.assert_array_equal(evaluators.by_c(program, tree, columns), wanted)


@every_op
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_agree_at_every_threshold_and_at_random(op: Op, seed: int, tmp_path_factory):
    selector = random_selector(seed, op=op, levels=7)
    exported = export(tmp_path_factory.mktemp("tree"), selector)
    rng = np.random.default_rng(seed)
    parts = [random_problems(op, 3000, rng), crossings(exported[0], op, rng)]
    names = parts[0]
    check_all(selector, op, exported, {name: np.concatenate([p[name] for p in parts if p]) for name in names})


@every_op
def test_agree_on_a_million_problems(op: Op, tmp_path: Path):
    selector = rich_selector(op)
    tree, device, folder = export(tmp_path, selector)
    program = evaluators.compile_c(folder, op.name, folder / "build")
    seen: set[int] = set()
    for chunk in range(5):
        columns = random_problems(op, 200_000, np.random.default_rng(chunk))
        wanted = choose_float32(selector, op, device, columns)
        seen |= set(np.unique(wanted).tolist())
        np.testing.assert_array_equal(evaluators.by_predictor(folder, tree, columns), wanted)
        np.testing.assert_array_equal(evaluators.by_python(folder, tree, columns), wanted)
        np.testing.assert_array_equal(evaluators.by_c(program, tree, columns), wanted)
    assert len(seen) > 3  # else the tree is too poor to show anything


@every_op
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_agree_where_float32_skips_integers(op: Op, seed: int, tmp_path_factory):
    """An axis with values from 2^24 to 2^31, where integers round, and tie, to a float32 beside them."""
    axis = op.problem_type.AXES[-1]
    selector = random_selector(seed, op=op)
    selector["support"]["axes"][axis] = [1, 2**31 - 1]
    selector["features"] = [{"name": name, "formula": name} for name in op.problem_type.AXES]
    columns = random_problems(op, 2000, np.random.default_rng(seed))
    large = np.random.default_rng(seed).integers(2**24, 2**31 - 1, size=2000)
    values = np.stack([large] * len(op.problem_type.AXES), axis=1)
    selector["tree"] = random_arrays(random.Random(seed), values, len(selector["portfolio"]), 7)
    exported = export(tmp_path_factory.mktemp("tree"), selector)
    thresholds = [node.threshold for node in exported[0].nodes() if isinstance(node, Split)]
    around = np.concatenate([large, *(np.arange(t - 130, t + 131) for t in thresholds if t > 2**24)])
    picks = np.arange(len(around)) % 2000
    check_all(selector, op, exported, {name: column[picks] for name, column in columns.items()} | {axis: around})
