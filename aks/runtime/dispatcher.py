"""The dispatcher: chooses a config for the tensors at hand and launches it."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aks.core.device import DeviceSpec, current_device
from aks.core.errors import AksError, UnsupportedRoutineError
from aks.core.tree import VENDOR
from aks.ops.gemm import cublaslt, reference
from aks.ops.gemm.call import Call, call_of
from aks.ops.gemm.routines import Scratch, bind_routine
from aks.ops.gemm.spec import GEMM, GemmConfig, GemmProblem
from aks.runtime import native
from aks.runtime.predictor import Predictor

_FIELDS = tuple(field.name for field in fields(GemmProblem))


class GemmDispatcher:
    """Runs ``y = x @ w.T`` on one GPU with whatever config the tree names for it.

    With ``kernels`` (a bundle's, loaded by the native module) it selects and launches there, cuBLASLt's
    algorithms too: nothing is compiled or loaded while serving. The vendor's routine is run from here in any case.

    Without them, kernels are compiled when first needed, and kept. The workspace of split-K belongs to a
    stream: launches of one stream follow one another, so they share it. CUDA graphs captured on one stream
    share it too, and must not be replayed at the same time. While a stream is being captured nothing may be
    allocated, so one workspace is kept in reserve for it.
    """

    def __init__(
        self, predictor: Predictor, device: DeviceSpec, index: int = 0, kernels: native.Kernels | None = None
    ) -> None:
        self.predictor = predictor
        self.device = device
        self.index = index
        self.kernels = kernels
        self._launch = kernels.launch if kernels else None
        if kernels:
            predictor.add_source(kernels.take_misses)
        self._scratch: dict[int, Scratch] = {}
        self._spare: Scratch | None = None
        self._lock = threading.Lock()

    def choose(self, problem: GemmProblem) -> GemmConfig:
        """The config for ``problem``: what the tree says, the vendor's call where it abstains."""
        choice: Any = self.predictor.configs[self.predictor.select(*(getattr(problem, name) for name in _FIELDS))]
        return choice

    def run(self, x: Tensor, w: Tensor, out: Tensor, call: Call) -> None:
        """Write ``x @ w.T`` into ``out`` on the current stream of this dispatcher's GPU, on which they are.

        call: ``call_of`` these tensors, which are as it says.
        """
        stream = _current_stream(self.index)
        chosen = None
        if self._launch is not None:
            answer = self._launch(*call, stream)
            if answer >= 0:
                return
            chosen = -1 - answer
        if out.dim() > 2:  # only now: views cost as much as half a launch
            x, out = x.view(call.m, call.k), out.view(call.m, call.n)
        if chosen == VENDOR:  # PyTorch finds device and stream by itself
            torch.mm(x, w.T, out=out)
            return
        with torch.cuda.device(self.index):
            self._run_here(x, w.T if call.w_layout else w, out, call.problem(), chosen, stream)

    def _run_here(
        self, x: Tensor, w: Tensor, out: Tensor, problem: GemmProblem, chosen: int | None, stream: int
    ) -> None:
        """Run what the native dispatcher has left; chosen is the config that it answered, None if there is none."""
        config: Any = self.choose(problem) if chosen is None else self.predictor.configs[chosen]
        scratch = self.scratch_of(stream) if config != GEMM.vendor else None
        if scratch:
            # Not supported: this cuBLASLt lacks an algorithm that the one of the training had.
            with suppress(UnsupportedRoutineError):
                if bound := self._bind(config, problem, x, w, out, scratch):
                    bound(stream)
                    return
        reference.vendor(problem, x, w, out)()

    def _bind(
        self, config: GemmConfig, problem: GemmProblem, x: Tensor, w: Tensor, out: Tensor, scratch: Scratch
    ) -> Callable[[int], object] | None:
        """A function of the stream; None if it would compile or load a kernel, and may not."""
        if not GEMM.launch_spec.config_has_kernel(config):
            return bind_routine(config, problem, x, w, out, scratch)
        from aks.ops.gemm import launch  # imports triton, which serving from a bundle does not need

        # During a capture neither memory nor a module may be had: run each shape once before it.
        if not launch.is_ready(config, problem, self.index) and torch.cuda.is_current_stream_capturing():
            return None
        return launch.bind(config, problem, x, w, out, device=self.device, scratch=scratch)

    def scratch_of(self, stream: int) -> Scratch | None:
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

    def _allocate(self) -> Scratch:
        def make() -> Scratch:
            scratch = Scratch(torch.device("cuda", self.index))
            torch.cuda.current_stream(self.index).synchronize()  # its zeros are there for every stream
            return scratch

        # What this thread allocates may be of the memory pool of a CUDA graph that PyTorch warms up for.
        with ThreadPoolExecutor(1) as another_thread:
            return another_thread.submit(make).result()


def _current_stream(device: int) -> int:
    return torch.cuda.current_stream(device).cuda_stream


with suppress(ImportError):  # not in builds for CPUs; what code compiled by PyTorch calls, at a tenth of the cost
    from torch._C import _cuda_getCurrentRawStream as _current_stream


@functools.cache
def dispatcher_of(index: int) -> GemmDispatcher | None:
    """The dispatcher of CUDA device ``index``; None, with a warning, if no tree fits it."""
    device = current_device(index)
    try:
        predictor = Predictor.load(GEMM, device=device)
    except AksError as error:
        warnings.warn(f"aks.linear runs torch's own kernels on {device.name}: {error}", stacklevel=3)
        return None
    try:
        kernels = native.load_kernels(predictor.bundle, index, cublaslt=cublaslt.library_paths())
    except AksError as error:
        warnings.warn(f"aks.linear compiles its kernels as they are needed on {device.name}: {error}", stacklevel=3)
        kernels = None
    return GemmDispatcher(predictor, device, index, kernels)


def linear(x: Tensor, w: Tensor, *, out: Tensor | None = None, static_weights: bool = False) -> Tensor:
    """What ``aks.linear`` (``aks.integrations.torch_ops``) is for plain tensors: without autocast, modes and compilers.

    x [..., K], w [N, K] or a transposed view, out [..., N]. What the kernels do not take (other dtypes, a CPU,
    gradients, no tree for the GPU, odd strides) goes to ``torch.nn.functional.linear``, whose errors are raised.
    """
    if (
        x.is_cuda
        and w.is_cuda
        and not _needs_grad(x, w)
        and (result := _dispatch(x, w, out, static_weights)) is not None
    ):
        return result
    if out is None:
        return functional.linear(x, w)
    return out.copy_(functional.linear(x, w))


def _dispatch(x: Tensor, w: Tensor, out: Tensor | None, static_weights: bool) -> Tensor | None:
    """The result of our kernels; None if they do not take these tensors. x and w are on GPUs."""
    index = x.get_device()
    if not x.dim() or w.dim() != 2 or w.get_device() != index:
        return None
    shape = (*x.shape[:-1], w.shape[0])
    result = x.new_empty(shape) if out is None else out
    if out is not None and (out.shape != shape or not out.is_contiguous() or out.device != x.device):
        return None
    rows = x if x.dim() == 2 or (x.dim() > 2 and x.is_contiguous()) else x.reshape(-1, x.shape[-1])
    columns = result if result.dim() > 1 else result[None]
    call = call_of(rows, w, columns, static_weights)
    dispatcher = dispatcher_of(index) if call else None
    if not call or not dispatcher:
        return None
    dispatcher.run(rows, w, columns, call)
    return result


def _needs_grad(x: Tensor, w: Tensor) -> bool:
    return (x.requires_grad or w.requires_grad) and torch.is_grad_enabled()
