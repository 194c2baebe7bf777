"""From a config and tensors to a launch: kernel variants of ``int4_gemm``, their compilation, grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from triton import knobs
from triton.compiler import ASTSource

from aks.core.device import DeviceSpec
from aks.ops.gemm.routines import Scratch
from aks.ops.int4_gemm import reference
from aks.ops.int4_gemm.call import Operands
from aks.ops.int4_gemm.kernels import int4_kernel
from aks.ops.int4_gemm.launch_spec import LAUNCH_SPEC
from aks.ops.int4_gemm.sparse import sparse_kernel
from aks.ops.int4_gemm.spec import Int4GemmConfig, Int4GemmProblem
from aks.ops.variants import Variants, annotated_source, compile_options

__all__ = ["VARIANTS", "Scratch", "bind", "compile_job", "compile_jobs", "compile_variant", "is_ready", "variant_of"]

_MODES = ("burst", "ring", "double")
KERNELS = {**dict.fromkeys(_MODES, int4_kernel), "sparse": sparse_kernel}
"""By kind of config."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``).

    vector_bytes divides the pointers and row strides of x and out, and the bytes of a row of K and of N. split_k is
    the config's, or of a burst what its splits are at most.
    """

    config: Int4GemmConfig
    group: int
    zeros: bool
    vector_bytes: int
    even_k: bool
    split_k: int


def make_variant(config: Int4GemmConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LAUNCH_SPEC.variant``."""
    group, zeros, vector_bytes, even_k, max_splits = values
    return Variant(config, group, bool(zeros), vector_bytes, bool(even_k), max_splits or config.split_k)


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""
    config = variant.config
    source = annotated_source(
        KERNELS[config.kind], _constants(variant), _argument_type, partial(_divisor, variant=variant)
    )
    return source, compile_options(config, config.num_stages)


def _constants(variant: Variant) -> dict[str, Any]:
    config, interprets = variant.config, knobs.runtime.interpret
    common = {
        "BLOCK_N": config.block_n,
        "BLOCKS_K": config.blocks_k,
        "GROUP": variant.group,
        "ZEROS": variant.zeros,
        "PDL": 0 if interprets else config.pdl,
    }
    if config.kind == "sparse":
        return {**common, "ROWS": 8, "UNROLL": 2}
    return {
        **common,
        "BLOCK_M": config.block_m,
        "SPLIT_K": variant.split_k,
        "WARPS": config.num_warps,
        "EVEN": variant.even_k,
        # Operands of wgmma have at least 16 columns here: Triton takes mma.sync for 8, and for less than 4 warps.
        "WGMMA": config.num_warps % 4 == 0 and config.block_m >= 16,
        "MODE": _MODES.index(config.kind),
        "STAGES": config.num_stages,
        "SCALE_SUMS": bool(config.scale_sums),
    }


def _argument_type(name: str) -> str:
    match name:
        case "x_ptr" | "out_ptr" | "bias_ptr":
            return "*bf16"
        case "w_ptr" | "by_k_ptr" | "meta_ptr" | "counter_ptr":
            return "*i32"
        case "workspace_ptr":
            return "*fp32"
        case "x_row" | "out_row":
            return "i64"
        case _:
            return "i32"


def _divisor(name: str, variant: Variant) -> int:
    """What the compiler may rely on to divide the argument: bytes for pointers, elements otherwise."""
    match name:
        case "w_ptr" | "by_k_ptr" | "meta_ptr" | "workspace_ptr" | "counter_ptr":
            return 16
        case "x_ptr" | "out_ptr":
            return variant.vector_bytes
        case "N" | "K" | "x_row" | "out_row":
            return variant.vector_bytes // 2
        case _:
            return 1


VARIANTS = Variants(LAUNCH_SPEC, make_variant, source_of)
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready


def bind(
    config: Int4GemmConfig,
    problem: Int4GemmProblem,
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
        call = reference.ROUTINES[config.kind](problem, x, w, out)
        return lambda stream: call()
    variant = variant_of(config, problem)
    known = _constants(variant) | {
        "x_ptr": x,
        "w_ptr": w.weight.words,
        "meta_ptr": w.weight.meta,
        # What there is none of is not read.
        "by_k_ptr": w.weight.words if w.by_k is None else w.by_k,
        "bias_ptr": out if w.bias is None else w.bias,
        "has_bias": int(w.bias is not None),
        "out_ptr": out,
        "workspace_ptr": scratch.workspace,
        "counter_ptr": scratch.counters,
        **{"M": problem.m, "N": problem.n, "K": problem.k, "x_row": x.stride(0), "out_row": out.stride(0)},
    }
    kernel = KERNELS[config.kind]
    arguments = [known[name] for name in kernel.arg_names]
    grid = LAUNCH_SPEC.count_programs(config, problem.variables(), device.sm_count)
    return VARIANTS.launcher(kernel, variant, grid, arguments, device, x.get_device())
