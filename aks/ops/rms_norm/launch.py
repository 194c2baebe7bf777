"""From a config and tensors to a launch: kernel variants of ``rms_norm``, their compilation, grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton import knobs
from triton.compiler import ASTSource

from aks.core.device import DeviceSpec
from aks.ops.rms_norm import reference
from aks.ops.rms_norm.call import Operands, float32_bits
from aks.ops.rms_norm.kernels import rms_norm_kernel
from aks.ops.rms_norm.launch_spec import LAUNCH_SPEC
from aks.ops.rms_norm.spec import RmsNormConfig, RmsNormProblem
from aks.ops.scratch import NoScratch as Scratch
from aks.ops.variants import Variants, annotated_source, compile_options


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``)."""

    config: RmsNormConfig
    dtype: str
    residual: bool
    block_k: int


def make_variant(config: RmsNormConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LAUNCH_SPEC.variant``."""
    dtype, residual, block_k = values
    return Variant(config, RmsNormProblem.CHOICES["dtype"][dtype], bool(residual), block_k)


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""

    def type_of(name: str) -> str:
        return f"*{variant.dtype}" if name.endswith("_ptr") else "i64" if name.endswith("_row") else "i32"

    def divisor_of(name: str) -> int:  # legal are 16-byte rows alone
        return 16 if name.endswith("_ptr") else 1 if name in ("eps", "one_plus") else 8

    source = annotated_source(rms_norm_kernel, _constants(variant), type_of, divisor_of)
    return source, compile_options(variant.config)


def _constants(variant: Variant) -> dict[str, Any]:
    return {
        "BLOCK_K": variant.block_k,
        "RESIDUAL": variant.residual,
        # The interpreter runs one program after another and knows no inline assembly.
        "PDL": 0 if knobs.runtime.interpret else variant.config.pdl,
    }


VARIANTS = Variants(LAUNCH_SPEC, make_variant, source_of)
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready

__all__ = ["VARIANTS", "Scratch", "bind", "compile_job", "compile_jobs", "is_ready"]


def bind(
    config: RmsNormConfig,
    problem: RmsNormProblem,
    x: Tensor,
    w: Operands,
    out: Tensor,
    *,
    device: DeviceSpec,
    scratch: Scratch,
) -> Callable[[int], object]:
    """A function of a CUDA stream handle that launches ``config`` on these tensors: y goes to out's first rows.

    The config must be legal; everything that can be prepared is.
    """
    if not LAUNCH_SPEC.config_has_kernel(config):
        vendor = reference.vendor(problem, x, w, out)
        return lambda stream: vendor()
    variant = variant_of(config, problem)
    y, residual, total = out[: problem.m], w.residual, w.total
    # An operand that there is none of is not read: any address will do.
    tensors = [x, x if residual is None else residual, w.weight, y, y if total is None else total]
    rows = [tensor.stride(0) for tensor in (tensors[0], tensors[1], tensors[3], tensors[4])]
    arguments = [*tensors, problem.k, *rows, float32_bits(w.eps), int(w.one_plus), *_constants(variant).values()]
    return VARIANTS.launcher(rms_norm_kernel, variant, problem.m, arguments, device, x.get_device())
