"""Kernel variants of an op: compiled ahead into Triton's disk cache, loaded at their first use. Imports triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.problem import Problem


class Variants:
    """What of an op's configs is compiled.

    A variant is hashable and can be pickled: a config, and what of the problem the compiler must know.
    variant_of makes it of a config and a problem, source_of says what Triton compiles for it and with
    which options, and has_kernel which configs have one at all: a vendor's call has none.
    """

    def __init__(
        self,
        variant_of: Callable[[Any, Any], Any],
        source_of: Callable[[Any], tuple[ASTSource, dict[str, Any]]],
        has_kernel: Callable[[Any], bool],
    ) -> None:
        self._variant_of = variant_of
        self._source_of = source_of
        self._has_kernel = has_kernel
        self._loaded: dict[tuple[Any, int], Any] = {}

    def compile(self, variant: Any, capability: int) -> Any:
        """The compiled kernel; Triton's disk cache makes the second time cheap."""
        source, options = self._source_of(variant)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    def load(self, variant: Any, capability: int, index: int) -> Any:
        """The kernel for CUDA device ``index``, the current one: Triton loads it there at its first use."""
        kernel = self._loaded.get((variant, index))
        if kernel is None:
            kernel = self._loaded[variant, index] = self.compile(variant, capability)
        return kernel

    def jobs(
        self, problems: Iterable[Any], configs_of: Callable[[Any], Iterable[Config]], device: DeviceSpec
    ) -> list[tuple[Any, int]]:
        """Variant and capability of everything that measuring will want, once, in the order of first use."""
        wanted: dict[tuple[Any, int], None] = {}
        for problem in problems:
            for config in configs_of(problem):
                if self._has_kernel(config):
                    wanted[self._variant_of(config, problem), device.capability] = None
        return list(wanted)

    def is_ready(self, config: Config, problem: Problem, index: int) -> bool:
        """Whether launching ``config`` on CUDA device ``index`` neither compiles nor loads a kernel."""
        return not self._has_kernel(config) or (self._variant_of(config, problem), index) in self._loaded


def power_of_two_in(value: int) -> int:
    """The largest power of two, up to 16, that divides ``value``."""
    return min(16, value & -value)
