"""Dispatchers of ops that fuse what PyTorch has several kernels for (``fused_linear``, ``rms_norm``) or are quantised.

Where their trees decline, the caller runs PyTorch's kernels one after the other, as it would have without us.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aks.core.device import DeviceSpec
from aks.ops.gemm.spec import GEMM
from aks.ops.op import Op
from aks.runtime import native, served
from aks.runtime.dispatcher import _current_stream, _make, dispatcher_of
from aks.runtime.predictor import Choices, Predictor


class LayerDispatcher(served.Dispatcher):
    """Launches the kernel that a tree names on one GPU, or nothing where it names the vendor's way.

    With ``kernels`` (a bundle's, loaded by the native module) it selects and launches there; without them, kernels
    are compiled when first needed, and kept. While a stream is being captured nothing is compiled.
    """

    def __init__(
        self,
        op: Op,
        predictor: Predictor,
        device: DeviceSpec,
        index: int = 0,
        kernels: native.Kernels | None = None,
        choices: Choices | None = None,
    ) -> None:
        super().__init__(predictor, device, index, kernels, choices)
        self.op = op

    def succeeded_by(self, choices: Choices, kernels: native.Kernels | None) -> LayerDispatcher:
        """One for what a newer tree answers, with that one's kernels."""
        return LayerDispatcher(self.op, self.predictor, self.device, self.index, kernels, choices)

    def launch(self, call: Any, x: Tensor, operands: Any, out: Tensor) -> bool:
        """Launch on the current stream of this GPU, on which all are; False if the caller shall compute it.

        call: ``call_of`` these tensors.
        """
        stream = _current_stream(self.index)
        if self._launch is not None:
            answer = self._launch(*call, stream)
            return answer >= 0 or self._run_routine(self._choices.configs[-1 - answer], call, x, operands, out)
        problem = call.problem()
        config: Any = self._choices.configs[self._choices.select(**problem.to_row())]
        if config == self.op.vendor:
            return False
        launch = self.op.launch  # imports triton, which serving from a bundle does not need
        if not launch.is_ready(config, problem, self.index) and torch.cuda.is_current_stream_capturing():
            return False
        of_stream = dispatcher_of(self.index)  # launches of a stream share its scratch memory, whatever their op
        scratch = of_stream.scratch_of(stream) if of_stream else None
        if scratch is None:
            return False
        rows, columns = x.view(problem.m, -1), out.view(problem.m, -1)
        with torch.cuda.device(self.index):
            bound = launch.bind(
                config, problem, rows, as_rows(operands, problem.m), columns, device=self.device, scratch=scratch
            )
            bound(stream)
        return True

    def _run_routine(self, config: Any, call: Any, x: Tensor, operands: Any, out: Tensor) -> bool:
        """Run what a config without a kernel says; the vendor's way is the caller's, as is a kernel that cannot run."""
        if config == self.op.vendor or self.op.launch_spec.config_has_kernel(config):
            return False
        problem = call.problem()
        rows, columns = x.view(problem.m, -1), out.view(problem.m, -1)
        with torch.cuda.device(self.index):
            self.op.reference.ROUTINES[config.kind](problem, rows, as_rows(operands, problem.m), columns)()
        return True


def as_rows(operands: Any, m: int) -> Any:
    """The named tuple of operands with its tensors of more than two dimensions, which are contiguous, as m rows."""
    deep = {name: value for name, value in operands._asdict().items() if isinstance(value, Tensor) and value.dim() > 2}
    return operands._replace(**{name: tensor.view(m, -1) for name, tensor in deep.items()})


def layer_dispatcher(op: Op, index: int) -> LayerDispatcher | None:
    """The dispatcher of an op on CUDA device ``index``; None, with a warning, if no tree fits it."""
    return served.find(op, index, LayerDispatcher)


_MAKERS: dict[str, served.Make] = {GEMM.name: _make}


def dispatcher_for(op: Op, index: int) -> served.Dispatcher | None:
    """What serves an op on CUDA device ``index``: as ``layer_dispatcher``, or ``dispatcher_of`` for ``gemm``."""
    return served.find(op, index, _MAKERS.get(op.name, LayerDispatcher))
