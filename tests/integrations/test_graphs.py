"""What a model's layers pose, for planning its graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import aks
from aks import graphs
from aks.core.device import find_device
from aks.core.errors import GraphError
from aks.core.problem import Problem
from aks.integrations import fusing
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.ops.quantize_rows.spec import QuantizeRowsProblem
from aks.runtime.graphs import ops_of
from aks.runtime.predictor import Predictor
from tests.integrations import test_fusing
from tests.integrations.test_fusing import patched


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = aks.nn.Linear(64, 192, bias=False, dtype=torch.bfloat16)
        self.gate = aks.nn.Linear(64, 192, bias=False, dtype=torch.bfloat16)
        self.down = aks.nn.Linear(192, 64, bias=False, dtype=torch.bfloat16, static_weights=False)
        self.head = nn.Linear(64, 10)
        self.wide = aks.nn.Linear(64, 10)  # float32: no kernel takes it


def test_each_problem_once_with_how_many_layers_pose_it() -> None:
    layers = graphs.layers_of(Block().eval())
    assert layers == (
        graphs.Layer("up", GemmProblem(1, 192, 64, static_weights=True), 2),
        graphs.Layer("down", GemmProblem(1, 64, 192)),
    )


def test_weights_in_training_or_behind_a_hook_are_not_static() -> None:
    model = Block().eval()
    model.up.register_forward_pre_hook(lambda module, inputs: None)
    model.gate.train()
    assert [layer.problem.to_row()["static_weights"] for layer in graphs.layers_of(model)] == [False, False]


def test_weights_that_are_not_aligned_are_told() -> None:
    model = Block().eval()
    model.up.weight.data = torch.zeros(192 * 64 + 1, dtype=torch.bfloat16)[1:].view(192, 64)
    assert model.up.weight.data_ptr() % 4 == 2
    assert graphs.layers_of(model)[0].problem.to_row()["alignment"] == 2


def test_a_model_is_planned_with_the_tree_that_is_given() -> None:
    device = find_device("h200")
    predictors = {"gemm": Predictor.load(GEMM, device=device)}
    plan = graphs.plan_model(Block().eval(), 64, predictors=predictors, device=device)
    assert plan.tops == graphs.plan(graphs.layers_of(Block().eval()), 64, predictors, device).tops
    with pytest.raises(GraphError, match="patch the model first"):
        graphs.plan_model(nn.Linear(4, 4), 64, predictors=predictors, device=device)
    with pytest.raises(GraphError, match="not on one GPU"):
        graphs.plan_model(Block().eval(), 64)


def posed(layers: Iterable[graphs.Layer], m: int, declined: Collection[str]) -> Counter[Problem]:
    """Problems that are launched at m, if the trees of some ops decline them all and the others none."""
    found: Counter[Problem] = Counter()
    for layer in layers:
        declines = layer.problem.OP in declined
        if not declines:
            found[replace(layer.problem, **{"m": m})] += layer.count
        for problem, count in posed(layer.instead if declines else layer.then, m, declined).items():
            found[problem] += count * layer.count
    return found


@pytest.mark.parametrize("declined", [(), ("fused_linear",), ("rms_norm",), ("fused_linear", "rms_norm")])
@pytest.mark.parametrize("fuse", [fusing.FUSIONS, ("norm",), ("gated",), ("norm", "residual"), ("gated", "residual")])
@pytest.mark.parametrize("block", [test_fusing.Block, test_fusing.OtherBlock])
def test_fused_layers_pose_what_a_step_of_them_launches(stand_in, block, fuse, declined) -> None:
    model = test_fusing.made(block, size=64)
    patched(model, fuse=fuse)
    layers = graphs.layers_of(model)
    for name, tree in stand_in.layers.items():
        tree.calls.clear()
        tree.declines = name in declined
    stand_in.take_calls()
    with torch.no_grad():
        model(torch.randn(5, 64).bfloat16())
    known = posed(layers, 5, declined)
    assert Counter(problem for tree in stand_in.layers.values() for problem in tree.calls) == Counter(
        {problem: count for problem, count in known.items() if problem.OP != "gemm"}
    )
    fused = sum(count for problem, count in known.items() if problem.OP == "fused_linear")
    products = Counter[tuple[int, int]]()
    for problem, count in known.items():
        if isinstance(problem, GemmProblem):
            products[problem.n, problem.k] += count
    launched = Counter(w for _, w, _ in stand_in.take_calls())  # of both ops
    assert launched.total() == products.total() + fused and not products - launched


def test_layers_that_must_be_called_themselves_are_not_planned_as_fused(stand_in) -> None:
    model: Any = test_fusing.made(size=64)
    patched(model)
    model[0].layer.gate_proj.register_forward_hook(lambda *call: None)
    model[1].layer.register_forward_hook(lambda *call: None)
    names = {layer.name: layer for layer in graphs.layers_of(model)}
    assert names["0.layer.gate_proj"].problem.OP == "gemm" and names["0.layer.gate_proj"].count == 2
    assert [part.problem.OP for part in names["1.layer"].then] == ["gemm"]


def test_norms_of_rows_that_no_layer_takes_are_left_out(stand_in) -> None:
    model: Any = test_fusing.made(size=64)
    model.append(test_fusing.RMSNorm(32).bfloat16().eval())
    summary = patched(model)
    assert summary.fused["2"] == "RMSNorm"
    assert {layer.problem.to_row()["k"] for layer in graphs.layers_of(model) if layer.problem.OP == "rms_norm"} == {64}


@pytest.mark.parametrize(
    ("precision", "scaling"), [("fp8", "row"), ("fp8", "tensor"), ("fp8", "block"), ("int8", "row")]
)
def test_quantised_layers_pose_what_a_step_of_them_launches(stand_in, precision: str, scaling: str) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 32, bias=False)).bfloat16().eval()
    aks.quantize(model, precision, scaling=scaling, verbose=False)
    layers = graphs.layers_of(model)
    by_op = {op: {layer.problem: layer.count for layer in layers if op == layer.problem.OP} for op in ops_of(layers)}
    with torch.no_grad():
        model(torch.randn(1, 64).bfloat16())
    assert by_op.pop(f"{precision}_gemm") == Counter(stand_in.layers[f"{precision}_gemm"].calls)
    quantised = {QuantizeRowsProblem(m=1, k=64, out_dtype=precision, group=128 if scaling == "block" else 0): 4}
    assert by_op == ({} if scaling == "tensor" else {"quantize_rows": quantised})


@pytest.mark.gpu
def test_a_patched_model_in_its_graphs(shipped_tree) -> None:
    model = nn.Sequential(*(nn.Linear(4096, 4096, bias=False) for _ in range(3))).cuda().bfloat16().eval()
    aks.patch(model, verbose=False)
    plan = graphs.plan_model(model, 64)
    with torch.no_grad():
        step = graphs.StepGraphs(model, [torch.zeros(1, 4096, device="cuda", dtype=torch.bfloat16)], plan.tops)
        step.capture_pending()
        for rows in (1, 2, 3, 17, 40, 64):
            x = torch.randn(rows, 4096, device="cuda").bfloat16()
            got, expected = step(x), model(x)
            assert isinstance(got, torch.Tensor)
            assert (got.float() - expected.float()).norm() <= 0.02 * expected.float().norm()
    assert not step.missed and shipped_tree
