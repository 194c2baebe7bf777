"""From a problem to a measured launch of a user's kernel: its arguments, outputs and their check. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import KernelError
from aks.core.problem import Problem
from aks.ops.adaptive.op import AdaptiveOp
from aks.ops.adaptive.spec import JOINED
from aks.ops.scratch import NoScratch

TORCH_DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i1": torch.bool,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_name(dtypes: tuple[torch.dtype, ...]) -> str:
    """What a problem's ``dtype`` is for tensors of these types: one name if they are all the same."""
    names = [_NAMES.get(dtype, str(dtype).removeprefix("torch.")) for dtype in dtypes]
    return names[0] if len(set(names)) == 1 else JOINED.join(names)


@dataclass(frozen=True, slots=True)
class Call:
    """One launch: grid as in ``kernel[grid]``, and the arguments by name, without what configs set."""

    grid: Any
    arguments: dict[str, Any]


@dataclass
class Inputs:
    """As ``aks.ops.gemm.reference.Inputs``: w are whole calls, of different memory; out the first one's outputs."""

    w: list[Call]
    out: dict[str, Tensor]
    x: None = None


class Harness:
    """What timing asks of an op's modules ``launch`` and ``reference``, for a user's kernel."""

    Scratch = NoScratch

    def __init__(self, op: AdaptiveOp) -> None:
        self.op = op
        self.kernel = op.kernel

    def make_inputs(self, problem: Problem, *, copies: int = 1, device: str | torch.device = "cuda") -> Inputs:
        """``copies`` calls by the user's example, of memory of their own.

        Raises
        ------
        KernelError
            If there is no example, or it makes another problem's arguments.
        """
        calls = [self._example(problem, torch.device(device)) for _ in range(copies)]
        out = {name: calls[0].arguments[name] for name in self.kernel.outputs}
        return Inputs(calls, out)

    def reference(self, problem: Problem, x: None, w: Call) -> Mapping[str, Tensor]:
        """What the outputs of the call must be: by the user's reference, or else what the default config writes."""
        if self.kernel.expected is not None:
            return self.kernel.expected(w.arguments)
        out = {name: w.arguments[name] for name in self.kernel.outputs}
        self.poison(out)
        self._launch(self.op.vendor, w)
        return {name: tensor.clone() for name, tensor in out.items()}

    def poison(self, out: Mapping[str, Tensor]) -> None:
        """Fill outputs with what no kernel should write: NaN, or the largest integer."""
        for tensor in out.values():
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
            else:
                tensor.fill_(True if tensor.dtype is torch.bool else torch.iinfo(tensor.dtype).max)

    def check(self, problem: Problem, out: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
        """Say what is wrong with ``out``; empty if nothing is. Tolerances are ``torch.testing.assert_close``'s."""
        if missing := sorted(set(out) - set(expected)):
            return f"the reference does not give {', '.join(missing)}"
        for name, tensor in out.items():
            try:
                torch.testing.assert_close(
                    tensor, expected[name], rtol=self.kernel.rtol, atol=self.kernel.atol, check_dtype=False
                )
            except AssertionError as error:
                return f"{name}: {' '.join(str(error).split())}"[:500]
        return ""

    def bind(
        self, config: Config, problem: Problem, x: None, w: Call, out: Any, *, device: DeviceSpec, scratch: NoScratch
    ) -> Callable[[int], object]:
        """A function that launches ``config`` with the arguments of ``w``, on PyTorch's current stream."""
        return lambda stream: self._launch(config, w)

    def _launch(self, config: Config, call: Call) -> None:
        self.kernel.fn[call.grid](**call.arguments, **self.op.options(config))

    def _example(self, problem: Problem, device: torch.device) -> Call:
        name, make = self.op.name, self.kernel.make_example
        if make is None:
            raise KernelError(
                f"{name} has no example to measure: write a function that makes its grid and arguments for a problem, "
                f"and decorate it with @{name}.example"
            )
        row = problem.to_row()
        dtype = TORCH_DTYPES[row.pop("dtype").split(JOINED)[0]]
        made = make(**row, dtype=dtype, device=device)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict)):
            raise KernelError(f"the example of {name} gave a {type(made).__name__}; wanted (grid, {{name: argument}})")
        call = Call(*made)
        self._check_arguments(problem, call.arguments)
        return call

    def _check_arguments(self, problem: Problem, arguments: dict[str, Any]) -> None:
        name, row = self.op.name, problem.to_row()
        for output in self.kernel.outputs:
            if not isinstance(arguments.get(output), Tensor):
                raise KernelError(f"the example of {name} made no tensor {output!r}, which is one of its outputs")
        found = {axis: arguments.get(axis) for axis in problem.AXES}
        found["dtype"] = dtype_name(self.kernel.tensor_dtypes(arguments))
        if found != row:
            raise KernelError(
                f"the example of {name} made arguments of {found}; wanted those of the problem that it was given, {row}"
            )
