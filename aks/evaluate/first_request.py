"""What the first step of a process takes, against those after it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from aks.evaluate import dispatch
from aks.evaluate.blocks import Blocks, Linear, Load, Run
from aks.runtime import dispatcher

_STEADY_STEPS = 50


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """The first step of a process, and the median of those after it, in milliseconds."""

    way: str
    first_ms: float
    steady_ms: float

    @property
    def ratio(self) -> float:
        """The first over the others."""
        return self.first_ms / self.steady_ms


def in_new_process(way: str, linear: Linear, load: Load, bundle: Path | None) -> FirstRequest:
    """``time_first_request`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(time_first_request, way, linear, load, bundle).result()


def time_first_request(way: str, linear: Linear, load: Load, bundle: Path | None) -> FirstRequest:
    """The first step of this process, then others like it. Call it in a process that has run nothing before.

    What a server has done before its first request is done: weights are on the GPU, the dispatcher is loaded,
    PyTorch's allocator has memory, and cuBLAS has been opened by a tiny product. Where aks serves, it was prepared
    (``aks.prepare``) for as many rows as a request has; where PyTorch does, no linear layer has run.
    """
    with served_by(bundle) if way == "aks" else nullcontext():
        device = torch.device("cuda", torch.cuda.current_device())
        blocks = Blocks(load, device)
        if way == "aks":
            dispatcher.dispatcher_of(device.index)
            blocks.prepare(linear, load.fixed_batch)
        x = torch.randn(load.fixed_batch, load.sizes.hidden, device=device).bfloat16()
        tiny = x[:1, :16]
        torch.mm(tiny, tiny.T)
        _fill_allocator(x)
        torch.cuda.synchronize()
        run = linear if way == "aks" else functional.linear
        taken = serve(lambda x: blocks.step(run, x), [x] * (1 + _STEADY_STEPS), torch.cuda.synchronize)
    return FirstRequest(way, 1e3 * taken[0], 1e3 * median(taken[1:]))


def _fill_allocator(x: Tensor) -> None:
    """Have PyTorch take memory from the driver, for small tensors and for large ones, and keep it."""
    small = [x.new_empty(1 << 18) for _ in range(64)]
    large = x.new_empty(1 << 27)
    del small, large


def serve(run: Run, batches: Sequence[Tensor], wait: Callable[[], object]) -> list[float]:
    """Seconds of each step, by the host's clock, until the GPU is done."""
    taken = []
    for x in batches:
        start = time.perf_counter()
        run(x)
        wait()
        taken.append(time.perf_counter() - start)
    return taken


def served_by(bundle: Path | None) -> AbstractContextManager:
    """``aks.linear`` runs on the kernels of a bundle meanwhile; None: as it does anyway."""
    return dispatch.serving(dispatch.load(bundle)) if bundle else nullcontext()
