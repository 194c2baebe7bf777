"""Fixtures: a stand-in dispatcher that runs anywhere, and the shipped tree on a real GPU."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import aks
from aks.core.device import find_device
from aks.core.problem import Problem
from aks.integrations import torch_ops
from aks.ops.fp8_gemm.spec import FP8_GEMM
from aks.ops.fused_linear.spec import FUSED_LINEAR
from aks.ops.gemm.spec import GEMM
from aks.ops.int4_gemm.spec import INT4_GEMM
from aks.ops.int8_gemm.spec import INT8_GEMM
from aks.ops.op import Op
from aks.ops.rms_norm.spec import RMS_NORM
from aks.runtime import dispatcher as dispatchers
from aks.runtime import layers
from aks.runtime.predictor import Predictor

MODELS = Path(aks.__file__).resolve().parents[1] / "models"


class StandIn:
    """Takes the place of ``aks.runtime.dispatcher``: takes what that would, computes it in float32, keeps record.

    calls: of each call that it computed, (shape of x, shape of w, static_weights). layers: by op, the others.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []
        self.layers = {
            op.name: StandInLayers(op, self.calls) for op in (FUSED_LINEAR, RMS_NORM, FP8_GEMM, INT8_GEMM, INT4_GEMM)
        }

    def linear(self, x: Tensor, w: Tensor, *, out: Tensor | None = None, static_weights: bool = False) -> Tensor:
        wants_gradient = dispatchers._needs_grad(x, w)
        if wants_gradient or not (x.dtype == w.dtype and x.dtype in torch_ops.DTYPES) or w.dim() != 2 or not x.dim():
            result = functional.linear(x, w)
        else:
            self.calls.append((tuple(x.shape), tuple(w.shape), static_weights))
            # As kernels do, numpy reads memory: tracers and transforms see nothing of it, fake tensors have none.
            product = x.detach().float().numpy() @ w.detach().float().numpy().T
            result = torch.from_numpy(product).to(x.dtype)
        return result if out is None else out.copy_(result)

    def take_calls(self) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
        taken = self.calls.copy()
        self.calls.clear()
        return taken


class StandInLayers:
    """The dispatcher of a fused or quantised op for CPU tensors: it takes all that ``call_of`` takes.

    calls has the problem of each launch (products are in the list of ``StandIn``, too); declines: the tree answers
    the vendor's way.
    """

    def __init__(self, op: Op, calls: list[tuple[tuple[int, ...], tuple[int, ...], bool]]) -> None:
        self.op = op
        self.calls: list[Problem] = []
        self.declines = False
        self._products = calls

    def launch(self, call: Any, x: Tensor, operands: Any, out: Tensor) -> bool:
        if self.declines:
            return False
        problem = call.problem()
        self.calls.append(problem)
        if hasattr(operands, "w"):
            self._products.append((tuple(x.shape), tuple(operands.w.shape), bool(call.static_weights)))
        flat = layers.as_rows(operands, problem.m)
        result = self.op.reference.reference(problem, x.view(problem.m, -1), flat)
        out.view(problem.m, -1).copy_(result[: problem.m])
        if getattr(flat, "total", None) is not None:
            flat.total.copy_(result[problem.m :])
        return True


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A dispatcher for CPU tensors."""
    made = StandIn()
    monkeypatch.setattr(torch_ops, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(dispatchers, "linear", made.linear)
    monkeypatch.setattr(dispatchers, "dispatcher_of", lambda index: made)
    monkeypatch.setattr(layers, "layer_dispatcher", lambda op, index: made.layers.get(op.name))
    torch._dynamo.reset()
    return made


@pytest.fixture
def shipped_tree(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tree of the H200 on whatever GPU there is; a list of the kinds of config that ran, as they run."""
    device = find_device("h200")
    ran: list[str] = []

    @functools.cache
    def dispatcher_of(index: int) -> dispatchers.GemmDispatcher:
        predictor = Predictor.load(GEMM, device=device, path=MODELS / "gemm" / "h200")
        made = dispatchers.GemmDispatcher(predictor, device, index)
        choose = made.choose

        def recording(problem):
            config = choose(problem)
            ran.append(config.kind)
            return config

        monkeypatch.setattr(made, "choose", recording)
        return made

    @functools.cache
    def layer_dispatcher(op: Op, index: int) -> layers.LayerDispatcher:
        predictor = Predictor.load(op, device=device, path=MODELS / op.name / "h200")
        return layers.LayerDispatcher(op, predictor, device, index)

    monkeypatch.setattr(dispatchers, "dispatcher_of", dispatcher_of)
    monkeypatch.setattr(layers, "dispatcher_of", dispatcher_of)
    monkeypatch.setattr(layers, "layer_dispatcher", layer_dispatcher)
    torch._dynamo.reset()
    return ran
