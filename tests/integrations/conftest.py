"""Fixtures: a stand-in dispatcher that runs anywhere, and the shipped tree on a real GPU."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import aks
from aks.core.device import find_device
from aks.integrations import torch_ops
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher as dispatchers
from aks.runtime.predictor import Predictor

MODELS = Path(aks.__file__).resolve().parents[1] / "models"


class StandIn:
    """Takes the place of ``aks.runtime.dispatcher``: takes what that would, computes it in float32, keeps record.

    calls: of each call that it computed, (shape of x, shape of w, static_weights).
    """

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []

    def linear(
        self,
        x: Tensor,
        w: Tensor,
        *,
        out: Tensor | None = None,
        static_weights: bool = False,
        bias: Tensor | None = None,
    ) -> Tensor:
        wants_gradient = dispatchers._needs_grad(x, w, bias)
        if wants_gradient or not (x.dtype == w.dtype and x.dtype in torch_ops.DTYPES) or w.dim() != 2 or not x.dim():
            result = functional.linear(x, w, bias)
        else:
            self.calls.append((tuple(x.shape), tuple(w.shape), static_weights))
            # As kernels do, numpy reads memory: tracers and transforms see nothing of it, fake tensors have none.
            product = x.detach().float().numpy() @ w.detach().float().numpy().T
            result = torch.from_numpy(product).to(x.dtype)
            result = result if bias is None else result + bias
        return result if out is None else out.copy_(result)

    def take_calls(self) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
        taken, self.calls = self.calls, []
        return taken


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

    monkeypatch.setattr(dispatchers, "dispatcher_of", dispatcher_of)
    torch._dynamo.reset()
    return ran
