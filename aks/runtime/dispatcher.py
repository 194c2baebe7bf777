"""The dispatcher: chooses a config for the tensors at hand and launches it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aks.core.device import DeviceSpec
from aks.core.errors import UnsupportedRoutineError
from aks.core.tree import VENDOR
from aks.ops.gemm import reference
from aks.ops.gemm.call import Call, call_of
from aks.ops.gemm.routines import Scratch, bind_routine
from aks.ops.gemm.spec import GEMM, GemmConfig, GemmProblem
from aks.ops.op import Op
from aks.runtime import native, served
from aks.runtime.predictor import Choices, Predictor

_FIELDS = tuple(field.name for field in fields(GemmProblem))
_LEFT_TO_VENDOR = -1 - VENDOR
_DTYPES = frozenset(reference.DTYPES.values())
_has_kernel = GEMM.launch_spec.config_has_kernel


class GemmDispatcher(served.Dispatcher):
    """Runs ``y = x @ w.T`` on one GPU with whatever config the tree names for it.

    With ``kernels`` (a bundle's, loaded by the native module) it selects and launches there, cuBLASLt's
    algorithms too: nothing is compiled or loaded while serving. The vendor's routine is run from here in any case.

    Without them, kernels are compiled when first needed, and kept. The workspace of split-K belongs to a
    stream: launches of one stream follow one another, so they share it. CUDA graphs captured on one stream
    share it too, and must not be replayed at the same time. While a stream is being captured nothing may be
    allocated, so one workspace is kept in reserve for it.
    """

    def __init__(
        self,
        predictor: Predictor,
        device: DeviceSpec,
        index: int = 0,
        kernels: native.Kernels | None = None,
        choices: Choices | None = None,
    ) -> None:
        super().__init__(predictor, device, index, kernels, choices)
        linear = native.linear_of(kernels, Tensor) if kernels else None
        self._launch_tensors = linear.launch if linear else None
        self._scratch: dict[int, Scratch] = {}
        self._spare: list[Scratch] = []  # none or one
        self._lock = threading.Lock()

    def succeeded_by(self, choices: Choices, kernels: native.Kernels | None) -> GemmDispatcher:
        """One for what a newer tree answers, with that one's kernels."""
        made = GemmDispatcher(self.predictor, self.device, self.index, kernels, choices)
        # Launches of a stream follow one another, whoever makes them.
        made._scratch, made._spare, made._lock = self._scratch, self._spare, self._lock
        return made

    def choose(self, problem: GemmProblem) -> GemmConfig:
        """The config for ``problem``: what the tree says, the vendor's call where it abstains."""
        return self._config(self._choices.select(*(getattr(problem, name) for name in _FIELDS)))

    def linear(self, x: Tensor, w: Tensor, out: Tensor | None, static_weights: bool) -> Tensor | None:
        """``x @ w.T`` on the current stream of this dispatcher's GPU, on which x is; None if it is for PyTorch.

        x [..., K], w [N, K] or a transposed view. out [..., N] is overwritten; if it is None, the result is new
        memory, or what the vendor's routine returns. The tree is asked once.
        """
        if x.dim() > 2 and not x.is_contiguous():
            return self._linear_in_rows(x, w, out, static_weights)
        if self._launch_tensors is None:
            return self._linear_from_call(x, w, out, static_weights, None)
        answer: Any = self._launch_tensors(x, w, out, static_weights, _current_stream(self.index))
        if answer.__class__ is not int:
            return answer
        if answer != _LEFT_TO_VENDOR:
            return self._linear_from_call(x, w, out, static_weights, self._config(-1 - answer))
        if out is None:
            return functional.linear(x, w)
        _multiply(x, w, out)
        return out

    def _linear_from_call(
        self, x: Tensor, w: Tensor, out: Tensor | None, static_weights: bool, config: GemmConfig | None
    ) -> Tensor | None:
        """``linear`` where Python reads the tensors; config: what the tree says, None if it was not asked."""
        call = call_of(x, w, out, static_weights)
        if call is None:
            return None
        if config is None and self.kernels is None:
            config = self.choose(call.problem())
        if out is None and config == GEMM.vendor:
            return functional.linear(x, w)
        result = x.new_empty((*x.shape[:-1], call.n)) if out is None else out
        self.run(x, w, result, call._replace(out_ptr=result.data_ptr()), config)
        return result

    def _linear_in_rows(self, x: Tensor, w: Tensor, out: Tensor | None, static_weights: bool) -> Tensor | None:
        """``linear`` of an x of more dimensions whose rows do not follow one another."""
        if w.dim() != 2:
            return None
        shape = (*x.shape[:-1], w.shape[0])
        if out is not None and (out.shape != shape or not out.is_contiguous()):
            return None
        rows = None if out is None else out.view(-1, shape[-1])
        result = self.linear(x.reshape(-1, x.shape[-1]), w, rows, static_weights)
        if result is not None:
            result = result.view(shape) if out is None else out
        return result

    def run(self, x: Tensor, w: Tensor, out: Tensor, call: Call, config: GemmConfig | None = None) -> None:
        """Write ``x @ w.T`` into ``out`` on the current stream of this dispatcher's GPU, on which they are.

        call: ``call_of`` these tensors, which are as it says. config: what the tree says of it, if it was asked.
        """
        stream = _current_stream(self.index)
        if config is None and self._launch is not None:
            answer = self._launch(*call, stream)
            if answer >= 0:
                return
            config = self._config(-1 - answer)
        if config == GEMM.vendor:
            _multiply(x, w, out)
            return
        if out.dim() != 2:
            x, out = x.view(call.m, call.k), out.view(call.m, call.n)
        with torch.cuda.device(self.index):
            self._run_here(x, w.T if call.w_layout else w, out, call.problem(), config, stream)

    def _config(self, index: int) -> GemmConfig:
        config: Any = self._choices.configs[index]
        return config

    def _run_here(
        self, x: Tensor, w: Tensor, out: Tensor, problem: GemmProblem, config: GemmConfig | None, stream: int
    ) -> None:
        """Run what the native dispatcher has left; config is what the tree says, None if it was not asked."""
        config = config or self.choose(problem)
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
        if not _has_kernel(config):
            return bind_routine(config, problem, x, w, out, scratch)
        from aks.ops.gemm import launch  # imports triton, which serving from a bundle does not need

        # During a capture neither memory nor a module may be had: run each shape once before it.
        if not launch.is_ready(config, problem, self.index) and torch.cuda.is_current_stream_capturing():
            return None
        return launch.bind(config, problem, x, w, out, device=self.device, scratch=scratch)

    def scratch_of(self, stream: int) -> Scratch | None:
        """Memory of the stream; None if it has none yet, is being captured, and another capture took the reserve."""
        scratch = self._scratch.get(stream)
        if scratch is not None and self._spare:
            return scratch
        with self._lock:
            if not torch.cuda.is_current_stream_capturing():
                scratch = self._scratch.get(stream) or self._allocate()
                if not self._spare:
                    self._spare.append(self._allocate())
            elif scratch is None:
                scratch = self._spare.pop() if self._spare else None
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


def dispatcher_of(index: int) -> GemmDispatcher | None:
    """The dispatcher of CUDA device ``index``; None, with a warning, if no tree fits it."""
    return served.find(GEMM, index, _make)


@contextmanager
def preparing(index: int) -> Iterator[None]:
    """What is launched on CUDA device ``index`` meanwhile is planned for: afterwards the native dispatcher launches the
    vendor's answers at these shapes too, through cuBLASLt, which costs half of PyTorch's way to it."""
    dispatcher = dispatcher_of(index)
    kernels = dispatcher.kernels if dispatcher else None
    if kernels:
        kernels.plans_ahead = True
    try:
        yield
    finally:
        if kernels:
            kernels.plans_ahead = False


def _make(
    op: Op, predictor: Predictor, device: DeviceSpec, index: int, kernels: native.Kernels | None
) -> GemmDispatcher:
    return GemmDispatcher(predictor, device, index, kernels)


def linear(x: Tensor, w: Tensor, *, out: Tensor | None = None, static_weights: bool = False) -> Tensor:
    """What ``aks.linear`` (``aks.integrations.torch_ops``) is for plain tensors: without autocast, modes and compilers.

    x [..., K], w [N, K] or a transposed view, out [..., N]. What the kernels do not take (other dtypes, a CPU,
    gradients, no tree for the GPU, odd strides) goes to ``torch.nn.functional.linear``, whose errors are raised.
    """
    if x.is_cuda and x.dtype in _DTYPES and not _needs_grad(x, w):
        dispatcher = dispatcher_of(x.get_device())
        result = dispatcher and dispatcher.linear(x, w, out, static_weights)
        if result is not None:
            return result
    if out is None:
        return functional.linear(x, w)
    return out.copy_(functional.linear(x, w))


def _multiply(x: Tensor, w: Tensor, out: Tensor) -> None:
    """Write ``x @ w.T`` into ``out`` by the vendor's routine; PyTorch finds device and stream by itself."""
    if out.dim() != 2:  # only then: views cost as much as half a launch
        x, out = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    torch.mm(x, w.T, out=out)


def _needs_grad(x: Tensor, w: Tensor) -> bool:
    return (x.requires_grad or w.requires_grad) and torch.is_grad_enabled()
