"""What a model's layers pose, for planning its graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aks
from aks import graphs
from aks.core.device import find_device
from aks.core.errors import GraphError
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.runtime.predictor import Predictor


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
    assert [layer.problem.static_weights for layer in graphs.layers_of(model)] == [False, False]


def test_weights_that_are_not_aligned_are_told() -> None:
    model = Block().eval()
    model.up.weight.data = torch.zeros(192 * 64 + 1, dtype=torch.bfloat16)[1:].view(192, 64)
    assert model.up.weight.data_ptr() % 4 == 2
    assert graphs.layers_of(model)[0].problem.alignment == 2


def test_a_model_is_planned_with_the_tree_that_is_given() -> None:
    device = find_device("h200")
    predictor = Predictor.load(GEMM, device=device)
    plan = graphs.plan_model(Block().eval(), 64, predictor=predictor, device=device)
    assert plan.tops == graphs.plan(graphs.layers_of(Block().eval()), 64, predictor, device).tops
    with pytest.raises(GraphError, match="patch the model first"):
        graphs.plan_model(nn.Linear(4, 4), 64, predictor=predictor, device=device)
    with pytest.raises(GraphError, match="not on one GPU"):
        graphs.plan_model(Block().eval(), 64)


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
