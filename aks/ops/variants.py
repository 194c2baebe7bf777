"""Kernel variants of an op: compiled ahead into Triton's disk cache, loaded at their first use. Imports triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.problem import Problem
from aks.ops.binaries import to_binary
from aks.ops.binary import Binary
from aks.ops.launch_spec import LaunchSpec


def annotated_source(
    kernel: Any, constants: dict[str, Any], type_of: Callable[[str], str], divisor_of: Callable[[str], int]
) -> ASTSource:
    """What Triton compiles of a kernel with these constants.

    Of the other arguments type_of gives the type, as Triton names it, and divisor_of what it may rely on to divide
    them: bytes of pointers, elements otherwise.
    """
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else type_of(name)
        if name not in constants and (divisor := divisor_of(name)) > 1:
            attributes[(index,)] = [["tt.divisibility", divisor]]
    return ASTSource(kernel, signature, constants, attributes)


def compile_options(config: Any, num_stages: int | None = None) -> dict[str, Any]:
    """Options of a config with num_warps and pdl; num_stages: of loops, where the compiler is told of them."""
    options = {"num_warps": config.num_warps}
    if num_stages is not None:
        options["num_stages"] = num_stages
    return {**options, "launch_pdl": True} if config.pdl else options


class Variants:
    """What of an op's configs is compiled.

    A variant is hashable and can be pickled: a config, and what of the problem the compiler must know.
    spec says what that is, make_variant makes it of a config and these values, source_of says what Triton
    compiles for it and with which options.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        make_variant: Callable[[Any, Sequence[int]], Any],
        source_of: Callable[[Any], tuple[ASTSource, dict[str, Any]]],
    ) -> None:
        self.make_variant = make_variant
        self.source_of = source_of
        self._spec = spec
        self.variant_of = lru_cache(maxsize=1 << 16)(self._variant_of)
        """The variant that runs a config on a problem. Evaluating formulas takes longer than launching."""
        self.loaded: dict[tuple[Any, int], Any] = {}
        """Kernels by variant and CUDA device, as far as they were needed."""

    def _variant_of(self, config: Config, problem: Problem) -> Any:
        return self.make_variant(config, self._spec.variant_values(config, problem.variables()))

    def compile(self, variant: Any, capability: int) -> Any:
        """The compiled kernel; Triton's disk cache makes the second time cheap."""
        source, options = self.source_of(variant)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    def compile_job(self, job: tuple[Any, int]) -> None:
        """Compile one of ``jobs`` into Triton's disk cache."""
        self.compile(*job)

    def compile_binary(self, variant: Any, capability: int) -> Binary:
        """The kernel for a bundle: without line numbers, which are half of its bytes and name local paths."""
        source, options = self.source_of(variant)
        with knobs.compilation.scope():
            knobs.compilation.disable_line_info = True
            kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        return to_binary(source, kernel, capability)

    def load(self, variant: Any, capability: int, index: int) -> Any:
        """The kernel for CUDA device ``index``, the current one: Triton loads it there at its first use."""
        kernel = self.loaded.get((variant, index))
        if kernel is None:
            kernel = self.loaded[variant, index] = self.compile(variant, capability)
        return kernel

    def launcher(
        self, kernel: Any, variant: Any, grid: int, arguments: Sequence[Any], device: DeviceSpec, index: int
    ) -> Callable[[int], object]:
        """A function of a CUDA stream handle that launches a variant of ``kernel`` with so many programs.

        arguments are all of the kernel's, in order; of constants the compiled one takes no notice. In Triton's
        interpreter the kernel itself runs.
        """
        if knobs.runtime.interpret:
            interpreted = kernel[(grid,)]
            return lambda stream: interpreted(*arguments)
        compiled = self.load(variant, device.capability, index)
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

        def launch(stream: int) -> None:
            run(grid, 1, 1, stream, function, metadata, None, None, None, *arguments)

        return launch

    def jobs(
        self, problems: Iterable[Any], configs_of: Callable[[Any], Iterable[Config]], device: DeviceSpec
    ) -> list[tuple[Any, int]]:
        """Variant and capability of everything that measuring will want, once, in the order of first use."""
        wanted: dict[tuple[Any, int], None] = {}
        for problem in problems:
            for config in configs_of(problem):
                if self._spec.config_has_kernel(config):
                    wanted[self.variant_of(config, problem), device.capability] = None
        return list(wanted)

    def is_ready(self, config: Config, problem: Problem, index: int) -> bool:
        """Whether launching ``config`` on CUDA device ``index`` neither compiles nor loads a kernel."""
        if not self._spec.config_has_kernel(config):
            return True
        return (self.variant_of(config, problem), index) in self.loaded
