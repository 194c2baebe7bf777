"""The dispatcher: chooses a config for the tensors at hand and launches it."""

from __future__ import annotations

import functools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aks.core.device import DeviceSpec, current_device
from aks.core.errors import AksError, UnsupportedRoutineError
from aks.ops.gemm import launch, reference
from aks.ops.gemm.spec import GEMM, GemmConfig, GemmProblem
from aks.runtime.predictor import Predictor

_FIELDS = tuple(field.name for field in fields(GemmProblem))


class GemmDispatcher:
    """Runs ``y = x @ w.T`` on one GPU with whatever config the tree names for it.

    Kernels are compiled when first needed, and kept. The workspace of split-K belongs to a stream:
    launches of one stream follow one another, so they share it. CUDA graphs captured on one stream
    share it too, and must not be replayed at the same time. While a stream is being captured nothing
    may be allocated, so one workspace is kept in reserve for it.
    """

    def __init__(self, predictor: Predictor, device: DeviceSpec, index: int = 0) -> None:
        self.predictor = predictor
        self.device = device
        self.index = index
        self._scratch: dict[int, launch.Scratch] = {}
        self._spare: launch.Scratch | None = None
        self._lock = threading.Lock()

    def choose(self, problem: GemmProblem) -> GemmConfig:
        """The config for ``problem``: what the tree says, the vendor's call where it abstains."""
        choice: Any = self.predictor.configs[self.predictor.select(*(getattr(problem, name) for name in _FIELDS))]
        return choice

    def run(self, x: Tensor, w: Tensor, out: Tensor, problem: GemmProblem) -> None:
        """Write ``x @ w.T`` into ``out`` on the current stream.

        x [M, K], w [N, K] or [K, N] as ``problem.w_layout`` says, out [M, N]; rows contiguous, all on
        this dispatcher's GPU.
        """
        stream = torch.cuda.current_stream(self.index).cuda_stream
        config = self.choose(problem)
        scratch = self._scratch_of(stream)
        # During a capture neither memory nor a module may be had: run each shape once before it.
        if scratch and (launch.is_ready(config, problem, self.index) or not torch.cuda.is_current_stream_capturing()):
            # Not supported: this cuBLASLt lacks an algorithm that the one of the training had.
            with suppress(UnsupportedRoutineError):
                launch.bind(config, problem, x, w, out, device=self.device, scratch=scratch)(stream)
                return
        reference.vendor(problem, x, w, out)()

    def _scratch_of(self, stream: int) -> launch.Scratch | None:
        """Memory of the stream; None if it has none yet, is being captured, and another capture took the reserve."""
        scratch = self._scratch.get(stream)
        if scratch is not None and self._spare is not None:
            return scratch
        with self._lock:
            if not torch.cuda.is_current_stream_capturing():
                scratch = self._scratch.get(stream) or self._allocate()
                self._spare = self._spare or self._allocate()
            elif scratch is None:
                scratch, self._spare = self._spare, None
            if scratch is not None:
                self._scratch[stream] = scratch
        return scratch

    def _allocate(self) -> launch.Scratch:
        def make() -> launch.Scratch:
            scratch = launch.Scratch(torch.device("cuda", self.index))
            torch.cuda.current_stream(self.index).synchronize()  # its zeros are there for every stream
            return scratch

        # What this thread allocates may be of the memory pool of a CUDA graph that PyTorch warms up for.
        with ThreadPoolExecutor(1) as another_thread:
            return another_thread.submit(make).result()


@functools.cache
def dispatcher_of(index: int) -> GemmDispatcher | None:
    """The dispatcher of CUDA device ``index``; None, with a warning, if no tree fits it."""
    device = current_device(index)
    try:
        return GemmDispatcher(Predictor.load(GEMM, device=device), device, index)
    except AksError as error:
        warnings.warn(f"aks.linear runs torch's own kernels on {device.name}: {error}", stacklevel=3)
        return None


def linear(x: Tensor, w: Tensor, *, out: Tensor | None = None, static_weights: bool = False) -> Tensor:
    """``x @ w.T`` with the kernel that the tree predicts to be the fastest.

    Parameters
    ----------
    x : Tensor
        [..., K], bf16 or fp16.
    w : Tensor
        [N, K], of x's dtype; its transpose may be contiguous instead (weights stored as [K, N]).
    out : Tensor, optional
        [..., N], contiguous, overwritten. Made if not given.
    static_weights : bool
        Declare that no kernel still running writes w, as holds for a model's parameters when serving.
        It allows kernels that read weights before the preceding kernel has ended; with weights that
        are being written, those would be a race.

    Returns
    -------
    Tensor
        [..., N]. Differs from ``torch.nn.functional.linear`` by rounding alone (float32 accumulation).

    What aks does not take (other dtypes, a CPU, gradients, no tree for the GPU, odd strides) goes to
    ``torch.nn.functional.linear``, whose errors are then raised.
    """
    if x.is_cuda and w.device == x.device and x.dim() and w.dim() == 2 and not _needs_grad(x, w):
        rows = x.reshape(-1, x.shape[-1])
        shape = (*x.shape[:-1], w.shape[0])
        result = x.new_empty(shape) if out is None else out
        if result.shape == shape and result.is_contiguous() and result.device == x.device:
            columns = result.view(-1, w.shape[0])
            problem = launch.problem_of(rows, w, columns, static_weights)
            dispatcher = dispatcher_of(x.get_device()) if problem else None
            if problem and dispatcher:
                with torch.cuda.device(x.device):
                    dispatcher.run(rows, w if problem.w_layout == "nk" else w.T, columns, problem)
                return result
    if out is None:
        return functional.linear(x, w)
    return out.copy_(functional.linear(x, w))


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
