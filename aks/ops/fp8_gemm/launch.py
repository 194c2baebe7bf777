"""From a config and tensors to a launch: kernel variants of ``fp8_gemm``, their compilation, grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from aks.core.device import DeviceSpec
from aks.ops.fp8_gemm import reference
from aks.ops.fp8_gemm.launch_spec import LAUNCH_SPEC
from aks.ops.fp8_gemm.spec import Fp8GemmConfig, Fp8GemmProblem
from aks.ops.gemm.routines import Scratch
from aks.ops.scaled.call import Operands
from aks.ops.scaled.launch import bind_kernel, make_variants

VARIANTS = make_variants(LAUNCH_SPEC, "fp8e4nv")
make_variant, source_of = VARIANTS.make_variant, VARIANTS.source_of
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, is_ready = VARIANTS.jobs, VARIANTS.is_ready

__all__ = ["VARIANTS", "Scratch", "bind", "compile_job", "compile_jobs", "is_ready"]


def compile_job(job: tuple[Any, int]) -> None:
    """Compile one job into Triton's disk cache."""
    compile_variant(*job)


def bind(
    config: Fp8GemmConfig,
    problem: Fp8GemmProblem,
    x: Tensor,
    w: Operands,
    out: Tensor,
    *,
    device: DeviceSpec,
    scratch: Scratch,
) -> Callable[[int], object]:
    """A function of a CUDA stream handle that launches ``config`` on these tensors.

    The config must be legal; everything that can be prepared is.
    """
    if not LAUNCH_SPEC.config_has_kernel(config):
        vendor = reference.vendor(problem, x, w, out)
        return lambda stream: vendor()
    return bind_kernel(VARIANTS, LAUNCH_SPEC, config, problem, x, w, out, device=device, scratch=scratch)
