"""Launches of a Triton kernel without Triton's way to find the compiled one, which costs most of a launch."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from triton import JITFunction, knobs
from triton.runtime import driver

from aks.core.config import Config
from aks.ops.adaptive.op import AdaptiveOp

_INT32, _INT64 = 2**31, 2**63


class _Compiled(NamedTuple):
    run: Any
    function: Any
    metadata: Any
    knobs: tuple[Any, ...]
    config: Config
    """Kept, so that its id is nobody else's."""


class Launches:
    """Kernels of one ``@triton.jit`` function that are compiled and loaded, by device, config and kind of arguments.

    The kind is what Triton compiles anew for: the dtype of a tensor and whether its address is a multiple of
    16, whether an integer is 1 or a multiple of 16 and how wide it is, the value of a constant. What has another
    type, hooks, ``@triton.heuristics`` and Triton's interpreter go Triton's own way.

    parameters are all of the kernel's, in order; names those that configs do not set.
    """

    def __init__(
        self, op: AdaptiveOp, fn: Any, parameters: tuple[str, ...], names: tuple[str, ...], constants: frozenset[str]
    ) -> None:
        self.op, self.fn, self.parameters, self.names = op, fn, parameters, names
        own = [parameter for parameter in parameters if parameter not in names]
        self._constant = [name in constants for name in names]
        # Where in (arguments, knobs) each parameter is; None if they are in the kernel's order already.
        order = [[*names, *own].index(parameter) for parameter in parameters]
        self._order = None if order == sorted(order) else order
        self._own = own
        self._direct = type(fn) is JITFunction
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}

    def prepare(self, index: int, config: Config, arguments: tuple[Any, ...]) -> None:
        """Compile and load the kernel for arguments like these on CUDA device ``index``, the current one."""
        if not knobs.runtime.interpret:
            self._compile(index, config, arguments, self._kind(arguments))

    def launch(self, index: int, config: Config, grid: Any, arguments: tuple[Any, ...]) -> None:
        """Launch on PyTorch's current stream. arguments: the values of ``names``."""
        kind = self._kind(arguments)
        active: Any = driver.active if kind else None  # there is none where only the interpreter runs
        if kind is None or active.get_current_device() != index:
            self.fn[grid](**self._by_name(config, arguments))
            return
        compiled = self._compiled.get((index, id(config), kind))
        if compiled is None:
            compiled = self._compile(index, config, arguments, kind)
        values = arguments + compiled.knobs
        if self._order:
            values = tuple([values[place] for place in self._order])
        if callable(grid):
            grid = grid(dict(zip(self.parameters, values, strict=True)))
        x, y, z = (*grid, 1, 1)[:3]
        run, stream = compiled.run, active.get_current_stream(index)
        run(x, y, z, stream, compiled.function, compiled.metadata, None, None, None, *values)

    def _compile(self, index: int, config: Config, arguments: tuple[Any, ...], kind: tuple[Any, ...] | None) -> Any:
        kernel = self.fn.warmup(grid=(1,), **self._by_name(config, arguments))
        if kind is None:
            return None
        row = self.op.options(config)
        # Asking for run loads the kernel.
        made = _Compiled(
            kernel.run, kernel.function, kernel.packed_metadata, tuple(row[name] for name in self._own), config
        )
        return self._compiled.setdefault((index, id(config), kind), made)

    def _by_name(self, config: Config, arguments: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.names, arguments, strict=True)) | self.op.options(config)

    def _kind(self, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """What the compiler must know of the arguments; None if only Triton knows."""
        if not self._direct or self.fn.pre_run_hooks or getattr(knobs.runtime.launch_enter_hook, "calls", None):
            return None
        kind: list[Any] = []
        for value, constant in zip(arguments, self._constant, strict=True):
            if isinstance(value, Tensor):
                kind += value.dtype, value.data_ptr() % 16 == 0
            elif constant:
                kind += value.__class__, value
            elif value.__class__ is int:
                # 1 is a constant of the kernel's; 0 is a multiple of 16.
                kind.append(value if value == 1 else (value % 16 == 0, -_INT32 <= value < _INT32, value < _INT64))
            elif value.__class__ is float or value is None or value.__class__ is bool:
                kind.append(value.__class__)
            else:
                return None
        return tuple(kind)
