"""Thresholds, folding, pruning, and the selectors that are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.core.device import find_device
from aks.core.errors import ArtifactError
from aks.core.tree import Leaf, Split
from aks.export.tree import ALWAYS_LEFT, ALWAYS_RIGHT, lower, lower_threshold
from aks.ops import OPS
from aks.ops.op import Op
from tests.selectors import random_selector

H200 = find_device("h200")
GEMM = OPS["gemm"]
every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))


def goes_left(x: int, threshold: float) -> bool:
    return bool(np.int64(x).astype(np.float32) < np.float32(threshold))


positive = st.one_of(
    st.floats(0, 2.0**63, width=32),
    st.integers(0, 2**63 - 1).map(lambda x: float(np.float32(x))),
    st.integers(0, 2**26).map(lambda x: float(np.float32(x / 2))),
)


@given(positive, st.integers(-2, 2))
def test_threshold_is_exact_around_itself(threshold: float, offset: int):
    lowered = lower_threshold(threshold)
    for x in (lowered + offset, int(threshold) + offset):
        if 0 <= x < 2**63:
            assert (x <= lowered) == goes_left(x, threshold)


@given(st.integers(2**23, 2**40), st.integers(0, 2**63 - 1))
def test_threshold_is_exact_where_float32_skips_integers(near: int, far: int):
    for x in (near, far):
        rounded = np.int64(x).astype(np.float32)
        for threshold in (rounded, np.nextafter(rounded, np.float32(np.inf)), np.nextafter(rounded, np.float32(0))):
            assert (x <= lower_threshold(float(threshold))) == goes_left(x, float(threshold))


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [
        (-1.0, ALWAYS_RIGHT),
        (0.0, ALWAYS_RIGHT),
        (-0.0, ALWAYS_RIGHT),
        (math.nan, ALWAYS_RIGHT),
        (-math.inf, ALWAYS_RIGHT),
        (-1e300, ALWAYS_RIGHT),
        (1e-45, 0),
        (0.5, 0),
        (1.0, 0),
        (1.5, 1),
        (16.0, 15),
        (2.0**24, 2**24 - 1),
        (2.0**24 + 2, 2**24 + 1),  # 2^24 + 1 ties to even: 2^24
        (2.0**24 + 4, 2**24 + 2),  # 2^24 + 3 ties to even: 2^24 + 4
        (math.inf, ALWAYS_LEFT),
        (1e300, ALWAYS_LEFT),
        (2.0**64, ALWAYS_LEFT),
    ],
)
def test_threshold_table(threshold: float, wanted: int):
    assert lower_threshold(threshold) == wanted


def selector_with(tree: dict[str, list], **parts: Any) -> dict[str, Any]:
    """A selector over features m (0), n (1) and waves that has the given tree."""
    selector = random_selector(0, op=GEMM)
    selector["features"] = [
        {"name": "m", "formula": "m"},
        {"name": "weight_kib", "formula": "n * k * 2 // 1024"},
        {"name": "waves", "formula": "ceil_div(ceil_div(m, 64) * ceil_div(n, 64), sm_count)"},
    ]
    selector["support"] = {"axes": {"m": [1, 1000], "n": [64, 9000], "k": [64, 9000]}, "choices": {"alignment": [16]}}
    return {**selector, "tree": tree, **parts}


def leaf(*ranking: int, count: int = 1, abstain: bool = False, slowdown: float = 1.5) -> dict[str, Any]:
    return {
        "ranking": list(ranking),
        "expected_slowdown": [slowdown] * len(ranking),
        "count": count,
        "abstain": abstain,
    }


def arrays(*nodes: dict[str, Any] | tuple[int, float, int, int]) -> dict[str, list]:
    """Leaves as ``leaf(...)``, splits as (feature, threshold, left, right)."""
    empty = {"ranking": None, "expected_slowdown": None, "count": 0, "abstain": False}
    ends = {"feature": -1, "threshold": 0.0, "left": -1, "right": -1}
    split = ("feature", "threshold", "left", "right")
    rows = [
        {**ends, **node} if isinstance(node, dict) else {**empty, **dict(zip(split, node, strict=True))}
        for node in nodes
    ]
    return {name: [row[name] for row in rows] for name in (*split, *empty)}


def test_device_is_folded_in_and_unused_features_go():
    tree = lower(selector_with(arrays((2, 1.5, 1, 2), leaf(1, 0), leaf(2, 0))), GEMM, H200)
    assert [feature.formula for feature in tree.features] == ["ceil_div(ceil_div(m, 64) * ceil_div(n, 64), 132)"]
    assert tree.root == Split(0, 1, Leaf((1, 0), (1.5, 1.5), 1), Leaf((2, 0), (1.5, 1.5), 1))
    assert (
        tree.device == "h200" and tree.support["alignment"] == (16,) and tree.support["static_weights"] == (False, True)
    )


@pytest.mark.parametrize("threshold", [-5.0, 0.0, 1.0, math.nan])
def test_splits_that_always_go_right_are_dropped(threshold: float):
    tree = lower(selector_with(arrays((0, threshold, 1, 2), leaf(1, 0), leaf(2, 0))), GEMM, H200)
    assert isinstance(tree.root, Leaf) and tree.root.ranking == (2, 0)


@pytest.mark.parametrize("threshold", [1001.0, 5000.0, 1e30, math.inf])
def test_splits_that_always_go_left_are_dropped(threshold: float):
    tree = lower(selector_with(arrays((0, threshold, 1, 2), leaf(1, 0), leaf(2, 0))), GEMM, H200)
    assert isinstance(tree.root, Leaf) and tree.root.ranking == (1, 0)


def test_splits_that_an_earlier_split_decides_are_dropped():
    nodes = arrays((0, 10.0, 1, 2), (0, 20.0, 3, 4), leaf(2, 0), leaf(1, 0), leaf(3, 0))
    tree = lower(selector_with(nodes), GEMM, H200)
    assert isinstance(tree.root, Split) and isinstance(tree.root.left, Leaf) and tree.root.left.ranking == (1, 0)


def test_leaves_that_rank_alike_become_one():
    nodes = arrays((0, 10.0, 1, 2), leaf(1, 0, count=1, slowdown=1.0), leaf(1, 0, count=3, slowdown=2.0))
    assert lower(selector_with(nodes), GEMM, H200).root == Leaf((1, 0), (1.75, 1.75), 4)


def test_abstaining_leaves_rank_the_vendor_alone():
    tree = lower(selector_with(arrays(leaf(1, 2, 0, abstain=True))), GEMM, H200)
    assert tree.root == Leaf((0,), (1.5,), 1, abstain=True)


def test_configs_that_the_device_cannot_run_leave_the_rankings():
    tma = next(config for config in GEMM.space.configs if config.kind == "tma")  # type: ignore[attr-defined]
    portfolio = [GEMM.vendor.to_row(), tma.to_row()]
    selector = selector_with(arrays(leaf(1, 0)), portfolio=portfolio)
    assert lower(selector, GEMM, H200).root == Leaf((1, 0), (1.5, 1.5), 1)
    assert lower(selector, GEMM, find_device("a100-sxm4-80gb")).root == Leaf((0,), (1.5,), 1)


@every_op
def test_any_device_can_be_folded_in(op: Op):
    selector = random_selector(3, op=op)
    odd = dataclasses.replace(H200, name="NVIDIA Odd GPU", sm_count=7)
    assert lower(selector, op, odd).device == "odd-gpu"


def broken(path: str, value: Any) -> dict[str, Any]:
    selector = copy.deepcopy(selector_with(arrays((0, 10.0, 1, 2), leaf(1, 0), leaf(2, 0))))
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = selector
    for part in way:
        at = at[part]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return selector


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("format", "aks-tree", "format"),
        ("version", 2, "version"),
        ("op", "conv", "is for op 'conv'"),
        ("space_fingerprint", "0" * 16, "config space"),
        ("tree", KeyError, "lacks tree"),
        ("tree", {}, "lacks the arrays"),
        ("tree.left", KeyError, "lacks the arrays left"),
        ("tree.count", [1], "unequal"),
        ("tree.left.0", 0, "cycle"),
        ("tree.left.0", 2, "twice"),
        ("tree.left.0", 7, "leads to node 7"),
        ("tree.left.0", -1, "leads to node -1"),
        ("tree.left.0", 1.0, "leads to node 1.0"),
        ("tree.feature.0", 3, "splits on feature 3"),
        ("tree.feature.0", -2, "splits on feature -2"),
        ("tree.feature.0", -1, "ranks None"),
        ("tree.threshold.0", "10", "threshold '10'"),
        ("tree.threshold.0", None, "threshold None"),
        ("tree.ranking.1", [99, 0], "ranks"),
        ("tree.ranking.1", [-1, 0], "ranks"),
        ("tree.ranking.1", [0, 1], "vendor"),
        ("tree.ranking.1", [0, 0], "distinct"),
        ("tree.expected_slowdown.1", [1.0], "slowdowns"),
        ("tree.expected_slowdown.1", [1.0, math.nan], "finite"),
        ("tree.count.1", -1, "count -1"),
        ("tree.abstain.1", 1, "abstain 1"),
        ("portfolio", [], "vendor"),
        ("portfolio.0", {"kind": "cublaslt", "algo": 0}, "vendor"),
        ("portfolio.1", {"kind": "torch_mm"}, "twice"),
        ("portfolio.1", {"kind": "cublaslt", "algo": 999}, "not in the space"),
        ("portfolio.1", {"kind": "magic"}, "magic"),
        ("features.0.formula", "m - 1", "m - 1"),
        ("features.0.formula", "m + surprise", "surprise"),
        ("features.0.formula", "m * m * m * m * m * m * m * m", "int64"),
        ("features.0.formula", "7 // (m % 3)", "divisor"),
        ("features.0.formula", KeyError, "formula"),
        ("support.axes", {"m": [1, 9]}, "axes"),
        ("support.axes.m", [0, 9], "lowest >= 1"),
        ("support.axes.m", [9, 8], "lowest >= 1"),
        ("support.axes.m", [1, 8.5], "integers"),
        ("support.choices.alignment", [], "support has alignment"),
        ("support.choices.alignment", [3], "support has alignment"),
        ("support.choices.colour", ["red"], "colour"),
        ("device.sm_count", 0, "sm_count"),
        ("device", KeyError, "lacks device"),
    ],
)
def test_selectors_that_contradict_themselves_are_refused(path: str, value: Any, reason: str):
    with pytest.raises(ArtifactError, match=reason):
        lower(broken(path, value), GEMM, H200)


def test_nodes_that_nothing_leads_to_are_refused():
    nodes = arrays((0, 10.0, 1, 2), leaf(1, 0), leaf(2, 0), leaf(3, 0))
    with pytest.raises(ArtifactError, match="nothing leads to"):
        lower(selector_with(nodes), GEMM, H200)


def test_trees_too_deep_to_nest_are_refused():
    depth = 80
    nodes: list[Any] = []
    for level in range(depth):
        nodes += [(0, 900.0 - level, 2 * level + 2, 2 * level + 1), leaf(1, 0)]
    with pytest.raises(ArtifactError, match="deeper"):
        lower(selector_with(arrays(*nodes, leaf(2, 0))), GEMM, H200)


def test_thresholds_survive_json():
    selector = random_selector(5)
    again = json.loads(json.dumps(selector))
    assert lower(selector, GEMM, H200) == lower(again, GEMM, H200)
