"""What a call costs the host on this GPU: the native dispatcher, PyTorch's own functions, the bare driver call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

import aks
from aks.core.device import DeviceSpec, current_device
from aks.core.errors import ArtifactError
from aks.core.metrics import quantile
from aks.ops.gemm import launch
from aks.ops.gemm.call import Call, call_of
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher, native
from aks.runtime.predictor import Predictor
from aks.runtime.served import kernels_of

SHAPES = ((1, 4096, 4096), (16, 4096, 4096), (64, 4096, 4096), (1024, 1024, 4096))
"""(m, n, k) that are timed: short kernels, so that the host is what limits."""
_QUEUE = 64  # calls between two waits: the driver's queue has room for a thousand
_ELEMENTS = 1 << 27
"""Of each operand that random problems are cut from."""


def load(folder: Path, device: DeviceSpec | None = None) -> dispatcher.GemmDispatcher:
    """The dispatcher of the current GPU with the kernels of a bundle.

    Raises
    ------
    ArtifactError
        If the folder has no kernels, the native module is not built, or either does not fit the GPU.
    """
    index = torch.cuda.current_device()
    device = device or current_device(index)
    predictor = Predictor.load(GEMM, device=device, path=folder)
    kernels = kernels_of(predictor.bundle, index)
    if kernels is None:
        why = (
            "has no kernels: aks export --bundle"
            if native.is_built()
            else "is fine, but the native module is not built"
        )
        raise ArtifactError(f"{folder} {why}")
    return dispatcher.GemmDispatcher(predictor, device, index, kernels)


def bench_dispatch(folder: Path, *, calls: int = 5000) -> Iterator[dict[str, Any]]:
    """A row for each shape and way to call: ``shape``, ``way``, ``median_us``, ``p99_us`` of the host's time.

    The shipped tree of an H200 runs the first two with kernels of ours, leaves the third to ``torch.mm``,
    and runs the last with an algorithm of cuBLASLt.

    And first a row for loading: the time from an artifact folder to kernels that are ready, and ``device_mib``,
    the GPU's memory that it took. The first launch of a shape is a row too: it should cost what the others do.
    """
    torch.cuda.init()
    torch.cuda.synchronize()
    free, start = torch.cuda.mem_get_info()[0], perf_counter()
    served = load(folder)
    taken = (free - torch.cuda.mem_get_info()[0]) / 2**20
    yield {"shape": "", "way": "load", "median_us": 1e6 * (perf_counter() - start), "p99_us": None, "device_mib": taken}
    alone = dispatcher.GemmDispatcher(served.predictor, served.device, served.index)
    for m, n, k in SHAPES:
        x, w = (torch.randn(rows, k, device="cuda").bfloat16() for rows in (m, n))
        out = torch.empty(m, n, dtype=x.dtype, device="cuda")
        for way, nanoseconds in _ways(served, alone, x, w, out, calls):
            yield _row(f"{m}x{n}x{k}", way, nanoseconds)
    if asked := list(_first_sights(served)):
        yield _row("", f"prepare, of {len(asked)} shapes new to cuBLASLt", asked)


def _row(shape: str, way: str, nanoseconds: Sequence[int]) -> dict[str, Any]:
    median_us, p99_us = (quantile(nanoseconds, q) / 1e3 for q in (0.5, 0.99))
    return {"shape": shape, "way": way, "median_us": median_us, "p99_us": p99_us}


def _ways(
    served: dispatcher.GemmDispatcher, alone: dispatcher.GemmDispatcher, x, w, out, calls: int
) -> Iterator[tuple[str, list[int]]]:
    call, stream = call_of(x, w, out, True), torch.cuda.current_stream().cuda_stream
    assert call is not None and served.kernels is not None
    kernels = served.kernels
    torch.cuda.synchronize()
    start = perf_counter_ns()
    chosen = kernels.launch(*call, stream)
    if chosen >= 0:
        yield "first launch, from Python", [perf_counter_ns() - start]
        by = "driver" if GEMM.launch_spec.config_has_kernel(served.predictor.configs[chosen]) else "cuBLASLt"
        yield f"bare {by} call, from C++", kernels.time(calls, True, *call, stream)
        yield "native select and launch, from C++", kernels.time(calls, False, *call, stream)
        yield "native select and launch, from Python", _times(lambda: kernels.launch(*call, stream), calls)
    with serving(served):
        yield "aks.linear, out given", _times(lambda: aks.linear(x, w, out=out, static_weights=True), calls)
        yield "aks.linear", _times(lambda: aks.linear(x, w, static_weights=True), calls)
    with serving(alone):
        yield "aks.linear without the bundle", _times(lambda: aks.linear(x, w, static_weights=True), calls)
    yield "torch.mm, out given", _times(lambda: torch.mm(x, w.T, out=out), calls)
    yield "torch.nn.functional.linear", _times(lambda: functional.linear(x, w), calls)


def _first_sights(served: dispatcher.GemmDispatcher) -> Iterator[int]:
    """Nanoseconds in which shapes are prepared for which cuBLASLt has to be asked."""
    assert served.kernels is not None
    prepare, counts = served.kernels.prepare, served.kernels.counts
    for m in range(1, 2048):
        n, k, pointer = 1024, 4096, 1 << 40
        before, start = counts()["plans"], perf_counter_ns()
        prepare(m, n, k, 0, 0, True, pointer, pointer, pointer, k, k, n, 0)
        taken = perf_counter_ns() - start
        if counts()["plans"] > before:
            yield taken


def serving(served: dispatcher.GemmDispatcher) -> AbstractContextManager:
    """``aks.linear`` runs on this dispatcher meanwhile."""
    return mock.patch.object(dispatcher, "dispatcher_of", lambda index: served)


def _times(call: Callable[[], object], calls: int) -> list[int]:
    """Nanoseconds of each call, after a warm-up."""
    times = []
    for number in range(-2 * _QUEUE, calls):
        if number % _QUEUE == 0:
            torch.cuda.synchronize()
        start = perf_counter_ns()
        call()
        if number >= 0:
            times.append(perf_counter_ns() - start)
    torch.cuda.synchronize()
    return times


def check_steady(folder: Path, *, problems: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Launch random problems and count what should not happen while serving.

    Returns counts before and after of modules that were loaded and memory that was allocated (by the native
    module, and by PyTorch's allocator from the driver), kernels that Triton compiled or loaded, launches, and
    how many problems went to the vendor's routine.
    """
    served, rng = load(folder), random.Random(seed)
    kernels = served.kernels
    assert kernels is not None
    pools = [torch.zeros(_ELEMENTS, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    stream = torch.cuda.current_stream().cuda_stream
    before, left = _state(served), 0
    for number in range(problems):
        call = _random_call(rng, *(pool.data_ptr() for pool in pools))
        left += kernels.launch(*call, stream) < 0
        if number % _QUEUE == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return {"before": before, "after": _state(served), "problems": problems, "left_to_libraries": left}


def _state(served: dispatcher.GemmDispatcher) -> dict[str, int]:
    assert served.kernels is not None
    counts = served.kernels.counts()
    return {
        **counts,
        "torch_device_allocations": torch.cuda.memory_stats().get("num_device_alloc", 0),
        "triton_kernels": len(launch.VARIANTS.loaded),
    }


def _random_call(rng: random.Random, *pointers: int) -> Call:
    """A problem that fits the pools, of any alignment."""
    m, n, k = (max(1, int(2 ** rng.uniform(low, high))) for low, high in ((0, 12), (5, 13), (6, 13)))
    step = rng.choice((1, 2, 4, 8, 8, 8, 64))
    n, k = max(32, n // step * step), max(64, k // step * step)
    row = step if step < 8 else 8
    strides = [-(-length // row) * row for length in (k, k, n)]
    return Call(m, n, k, rng.randrange(2), 0, bool(rng.randrange(2)), *pointers, *strides)
