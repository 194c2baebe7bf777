"""Breakpoints are those of a plain scan; intervals cover every batch within their bound, and no fewer would do."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest

from aks import graphs
from aks.core.device import find_device
from aks.core.errors import GraphError
from aks.export.bundle import export
from aks.ops import find_op
from aks.ops.fused_linear.spec import FUSED_LINEAR, FusedLinearProblem
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.ops.rms_norm.spec import RMS_NORM, RmsNormProblem
from aks.runtime.predictor import Predictor
from tests.selectors import random_selector, write_selector

DEVICE = find_device("h200")
LAYERS = (
    graphs.Layer("q", GemmProblem(1, 4096, 4096, static_weights=True), 2),
    graphs.Layer("k", GemmProblem(1, 1024, 4096, static_weights=True), 2),
    graphs.Layer("odd", GemmProblem(1, 1000, 520, dtype="fp16", w_layout="kn", alignment=8)),
)


@pytest.fixture(scope="module", params=(7, 10, 13))
def predictor(request, tmp_path_factory) -> Predictor:
    """Of a random tree that tells these layers' batches apart, over all its features."""
    folder = tmp_path_factory.mktemp("tree")
    selector = random_selector(request.param, levels=7, portfolio=14)
    export(write_selector(folder, selector), folder / "model")
    return Predictor.load(GEMM, path=folder / "model")


@pytest.fixture(scope="module")
def shipped() -> graphs.Predictors:
    """Of every op that layers are of."""
    return {op.name: Predictor.load(op, device=DEVICE) for op in (GEMM, FUSED_LINEAR, RMS_NORM)}


def test_every_m_is_launched_as_the_tree_reads(predictor) -> None:
    spec = GEMM.launch_spec
    for layer in LAYERS:
        known = graphs.launches(layer, 300, {"gemm": predictor}, DEVICE)
        for m, launch in enumerate(known, start=1):
            problem = replace(layer.problem, m=m)
            config = predictor.configs[predictor.tree.choose(problem.to_row())]
            assert launch.config == config
            if spec.config_has_kernel(config):
                assert launch.programs == spec.count_programs(config, problem.variables(), DEVICE.sm_count) > 0
                assert launch.variant == spec.variant_values(config, problem.variables())
            else:
                assert (launch.variant, launch.programs) == ((), 0)


def test_breakpoints_are_where_a_launch_differs_from_the_one_before(predictor) -> None:
    points = graphs.breakpoints(LAYERS, 300, {"gemm": predictor}, DEVICE)
    expected = set()
    for layer in LAYERS:
        for m, (old, new) in enumerate(pairwise(graphs.launches(layer, 300, {"gemm": predictor}, DEVICE)), start=2):
            if old != new:
                expected.add((m, layer.name))
    assert expected and {(point.m, point.layer.name) for point in points} == expected
    assert [point.m for point in points] == sorted(point.m for point in points)
    tops = graphs.stretch_tops(points, 300)
    assert tops[-1] == 300 and set(tops) == {m - 1 for m, _ in expected} | {300}


def test_the_shipped_tree_changes_config_kernel_and_grid(shipped) -> None:
    points = graphs.breakpoints(LAYERS, 256, shipped, DEVICE)
    assert {point.changed for point in points} == {"config", "kernel", "grid"}
    assert all(str(point).startswith(f"m={point.m} {point.layer.name}: ") for point in points)


GATE = graphs.Layer("gate", GemmProblem(1, 14336, 4096, static_weights=True))
DOWN = graphs.Layer("down", GemmProblem(1, 4096, 14336, static_weights=True))
SUMMED = graphs.Layer(
    "down", FusedLinearProblem(1, 4096, 14336, epilogue="residual", static_weights=True), instead=(DOWN,)
)
GATED = graphs.Layer(
    "mlp", FusedLinearProblem(1, 14336, 4096, static_weights=True), 32, instead=(GATE, GATE, DOWN), then=(SUMMED,)
)
NORM = graphs.Layer(
    "norm", RmsNormProblem(1, 4096, residual=True), 32, (graphs.Layer("alone", RmsNormProblem(1, 4096)),)
)


def plain(layer: graphs.Layer, predictors: graphs.Predictors, m: int) -> list[tuple[str, Any]]:
    """Names and configs of all that runs for a layer, as its trees read."""
    predictor = predictors[layer.problem.OP]
    config = predictor.configs[predictor.tree.choose(replace(layer.problem, m=m).to_row())]
    parts = layer.instead if config == find_op(layer.problem.OP).vendor else layer.then
    return [(layer.name, config), *(one for part in parts for one in plain(part, predictors, m))]


def flat(layer: graphs.Layer, launch: graphs.Launch) -> list[tuple[str, Any]]:
    parts = layer.instead if launch.config == find_op(layer.problem.OP).vendor else layer.then
    below = [one for part, run in zip(parts, launch.parts, strict=True) for one in flat(part, run)]
    return [(layer.name, launch.config), *below]


@pytest.mark.parametrize("layer", [GATED, SUMMED, NORM], ids=lambda layer: layer.name)
def test_fused_layers_are_launched_as_their_trees_and_those_of_their_parts_read(shipped, layer) -> None:
    known = graphs.launches(layer, 256, shipped, DEVICE)
    runs = [plain(layer, shipped, m) for m in range(1, 257)]
    assert [flat(layer, launch) for launch in known] == runs
    found = graphs.breakpoints([layer], 256, shipped, DEVICE)
    assert [point.m for point in found] == [m for m in range(2, 257) if known[m - 1] != known[m - 2]]
    changed = {m for m in range(2, 257) if runs[m - 1] != runs[m - 2]}
    assert {point.m for point in found if point.changed == "config"} <= changed <= {point.m for point in found}
    assert all(str(point).startswith(f"m={point.m} {layer.name}: ") for point in found)


def test_the_shipped_trees_of_fused_layers_change_too(shipped) -> None:
    for layer in (GATED, NORM):
        assert {point.layer for point in graphs.breakpoints([*LAYERS, layer], 256, shipped, DEVICE)} >= {layer}
    vendor = [launch.config == FUSED_LINEAR.vendor for launch in graphs.launches(GATED, 256, shipped, DEVICE)]
    assert not vendor[0] and vendor[-1]  # small batches fuse, large ones do not


def test_a_layer_whose_op_has_no_tree_runs_as_its_parts(shipped) -> None:
    alone = {"gemm": shipped["gemm"]}
    parts = [graphs.launches(part, 64, alone, DEVICE) for part in GATED.instead]
    launches = graphs.launches(GATED, 64, alone, DEVICE)
    assert [launch.parts for launch in launches] == list(zip(*parts, strict=True))
    split = graphs.plan([replace(part, count=32) for part in GATED.instead], 64, alone, DEVICE)
    assert graphs.plan([GATED], 64, alone, DEVICE).costs == pytest.approx(split.costs)
    with pytest.raises(GraphError, match="predictors of rms_norm; wanted of fused_linear, gemm"):
        graphs.launches(GATED, 64, {"rms_norm": shipped["rms_norm"]}, DEVICE)


def test_a_fused_layer_costs_less_than_its_parts_where_it_fuses(shipped) -> None:
    fused, apart = (graphs.plan([GATED], 4, known, DEVICE).costs for known in (shipped, {"gemm": shipped["gemm"]}))
    assert all(0 < one <= 1.05 * other for one, other in zip(fused, apart, strict=True))


def test_planning_is_not_serving(predictor) -> None:
    before = predictor.counts()
    graphs.plan(LAYERS, 100, {"gemm": predictor}, DEVICE)
    assert predictor.counts() == before and not predictor.missed()


@pytest.mark.parametrize("padding", [0.0, 0.05, 0.5])
def test_no_batch_pays_more_than_the_bound(shipped, padding: float) -> None:
    plan = graphs.plan(LAYERS, 256, shipped, DEVICE, padding=padding)
    assert plan.intervals[0].first == 1 and plan.tops[-1] == 256
    assert all(low.top + 1 == high.first for low, high in pairwise(plan.intervals))
    for part in plan.intervals:
        for m in range(part.first, part.top + 1):
            assert plan.costs[part.top - 1] <= (1 + padding) * plan.costs[m - 1] * (1 + 1e-12)
        assert all(part.first <= point.m <= part.top for point in part.breakpoints)
    assert plan.worst_padding <= padding + 1e-12


def test_fewer_graphs_would_not_do(shipped) -> None:
    # Costs that never fall; every smaller set of tops breaks the bound somewhere.
    costs = [1, 1, 2, 2.05, 2.2, 4, 4, 4.1, 7]
    plan = graphs.plan(LAYERS[:1], 9, shipped, DEVICE, padding=0.1, cost=lambda m: costs[m - 1])
    assert plan.tops == (2, 5, 8, 9)
    for count in range(len(plan.tops) - 1):
        for chosen in combinations(range(1, 9), count):
            assert plan.with_tops([*chosen, 9]).worst_padding > 0.1


def test_no_more_graphs_than_allowed_and_the_cheapest_merge_first(shipped) -> None:
    costs = [1, 1.2, 3, 3.1, 9]
    plan = graphs.plan(LAYERS[:1], 5, shipped, DEVICE, padding=0.0, max_graphs=3, cost=lambda m: costs[m - 1])
    assert plan.tops == (2, 4, 5)
    assert plan.worst_padding == pytest.approx(0.2)
    one = graphs.plan(LAYERS[:1], 5, shipped, DEVICE, max_graphs=1, cost=lambda m: costs[m - 1])
    assert one.tops == (5,) and one.worst_padding == pytest.approx(8)


def test_it_compares_with_powers_of_two(shipped) -> None:
    plan = graphs.plan(LAYERS[:1], 8, shipped, DEVICE, padding=0.0, cost=lambda m: 10 if m <= 6 else 20)
    assert plan.tops == (6, 8) and plan.mean_padding == 0
    powers = plan.with_tops(graphs.powers_of_two(8))
    assert powers.tops == (1, 2, 4, 8)
    assert powers.worst_padding == 1.0  # 5 and 6 rows run in the graph of 8
    assert powers.mean_padding == pytest.approx(20 / 100)
    assert powers.mean_rows == pytest.approx((1 + 2 + 8 + 32) / 36 - 1)
    assert str(powers).startswith("4 graphs for batches of 1 to 8 rows; padding costs 100.0% at most, 20.0% on average")


def test_powers_of_two_end_at_the_top() -> None:
    assert graphs.powers_of_two(1) == [1]
    assert graphs.powers_of_two(6) == [1, 2, 4, 6]
    assert graphs.powers_of_two(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_what_cannot_be_planned_is_said(shipped) -> None:
    def plan(layers=LAYERS, max_m=4, **rest):
        return graphs.plan(layers, max_m, shipped, DEVICE, **rest)

    for call, words in (
        (lambda: plan(()), "patch the model first"),
        (lambda: plan(max_m=0), "at least one of each"),
        (lambda: plan(padding=-0.1), "wanted from 0 up"),
        (lambda: plan(max_graphs=0), "from 1 up or None"),
        (lambda: plan(cost=lambda m: m - 2), "a step of 1 rows costs -1"),
        (lambda: plan().with_tops([1, 2]), "the last 4"),
        (lambda: plan().with_tops([2, 1, 4]), "wanted ascending"),
    ):
        with pytest.raises(GraphError, match=words):
            call()
