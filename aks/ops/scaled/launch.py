"""From a config and tensors to a launch, for products of 8-bit matrices: kernel variants, their compilation, grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from aks.core.device import DeviceSpec
from aks.ops.gemm.launch import BLOCK_ARGUMENTS, KERNELS, constants_for, source_for
from aks.ops.gemm.routines import Scratch
from aks.ops.launch_spec import LaunchSpec
from aks.ops.scaled.call import Operands, scale_strides, scaling_of
from aks.ops.scaled.spec import ScaledConfig
from aks.ops.variants import Variants

_ABSENT = ("up_ptr", "up_desc", "residual_ptr", "residual_row", "has_residual", "activation")
_ACCURATE = 128
"""Of K, whose products a tensor core may add up by itself where sums are to be accurate."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``).

    dtype is Triton's name of the 8-bit type. vector_bytes divides every pointer and the bytes of every row.
    """

    config: ScaledConfig
    dtype: str
    vector_bytes: int
    even_k: bool
    rows: int
    accurate: bool
    block_scaled: bool


def make_variant(dtype: str, config: ScaledConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LaunchSpec.variant``."""
    vector_bytes, wide_rows, even_k, rows, *modes = values
    return Variant(config, dtype, vector_bytes or (16 if wide_rows else 1), bool(even_k), rows, *map(bool, modes))


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""
    type_of, divisor_of = partial(_argument_type, variant=variant), partial(_divisor, variant=variant)
    return source_for(variant.config, _constants(variant), type_of, divisor_of)


def _constants(variant: Variant) -> dict[str, Any]:
    config = variant.config
    return constants_for(
        config,
        rows=variant.rows,
        even_k=variant.even_k,
        element_bytes=1,
        absent=_ABSENT if variant.block_scaled else (*_ABSENT, *BLOCK_ARGUMENTS),
        MAX_IMPRECISE=min(_ACCURATE, config.block_k) if variant.accurate else None,
    )


def _argument_type(name: str, variant: Variant) -> str:
    config = variant.config
    match name:
        case "x_desc":
            return f"tensordesc<{variant.dtype}[{config.block_m}, {config.block_k}]>"
        case "w_desc":
            return f"tensordesc<{variant.dtype}[{config.block_n}, {config.block_k}]>"
        case "x_ptr" | "w_ptr":
            return f"*{variant.dtype}"
        case "out_ptr" | "bias_ptr":
            return "*bf16"
        case "workspace_ptr" | "x_scale_ptr" | "w_scale_ptr":
            return "*fp32"
        case "counter_ptr":
            return "*i32"
        case "x_row" | "w_row" | "out_row":
            return "i64"
        case "x_scale_step" | "w_scale_step" | "x_scale_block" | "w_scale_block" if variant.block_scaled:
            return "i64"
        case _:
            return "i32"


def _divisor(name: str, variant: Variant) -> int:
    """What the compiler may rely on to divide the argument: bytes for pointers, elements otherwise."""
    match name:
        case "workspace_ptr" | "counter_ptr":
            return 16
        case "x_ptr" | "w_ptr" | "out_ptr" | "K" | "x_row" | "w_row":
            return variant.vector_bytes
        case "N" | "out_row":
            return variant.vector_bytes // 2
        case _:
            return 1


def make_variants(spec: LaunchSpec, dtype: str) -> Variants:
    """The variants of an op of this 8-bit type."""
    return Variants(spec, partial(make_variant, dtype), source_of)


def bind(
    variants: Variants,
    spec: LaunchSpec,
    vendor: Callable[..., Callable[[], object]],
    config: Any,
    problem: Any,
    x: Tensor,
    w: Operands,
    out: Tensor,
    *,
    device: DeviceSpec,
    scratch: Scratch,
) -> Callable[[int], object]:
    """A function of a CUDA stream handle that launches ``config`` on these tensors.

    variants, spec and vendor (``reference.vendor``) are the op's. The config must be legal; everything that can be
    prepared is.
    """
    if not spec.config_has_kernel(config):
        call = vendor(problem, x, w, out)
        return lambda stream: call()
    variant = variants.variant_of(config, problem)
    kernel, constants = KERNELS[config.kind], _constants(variant)
    scaling = scaling_of(problem.m, problem.n, problem.k, w.x_scale, w.w_scale)
    x_scale_step, x_scale_block, w_scale_step, w_scale_block = scale_strides(scaling, w.x_scale, w.w_scale)
    known = {
        "x_ptr": x,
        "w_ptr": w.w,
        "out_ptr": out,
        "x_scale_ptr": w.x_scale,
        "w_scale_ptr": w.w_scale,
        "x_scale_step": x_scale_step,
        "w_scale_step": w_scale_step,
        "x_scale_block": x_scale_block,
        "w_scale_block": w_scale_block,
        "bias_ptr": out if w.bias is None else w.bias,  # one that there is none of is not read
        "has_bias": int(w.bias is not None),
        "workspace_ptr": scratch.workspace,
        "counter_ptr": scratch.counters,
        **{"M": problem.m, "N": problem.n, "K": problem.k},
        **{"x_row": x.stride(0), "w_row": w.w.stride(0), "out_row": out.stride(0)},
    }
    if config.kind in ("tma", "persistent"):
        for name, tensor, block in (("x", x, config.block_m), ("w", w.w, config.block_n)):
            known[f"{name}_desc"] = TensorDescriptor(
                tensor, list(tensor.shape), [tensor.stride(0), 1], [block, config.block_k]
            )
    arguments = [constants[name] if name in constants else known[name] for name in kernel.arg_names]
    grid = spec.count_programs(config, problem.variables(), device.sm_count)
    return variants.launcher(kernel, variant, grid, arguments, device, x.get_device())
