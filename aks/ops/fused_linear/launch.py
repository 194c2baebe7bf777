"""From a config and tensors to a launch: kernel variants of ``fused_linear``, their compilation, grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from aks.core import formula
from aks.core.device import DeviceSpec
from aks.ops.fused_linear import reference
from aks.ops.fused_linear.call import Operands, call_for
from aks.ops.fused_linear.launch_spec import LAUNCH_SPEC
from aks.ops.fused_linear.spec import FusedLinearConfig, FusedLinearProblem
from aks.ops.gemm.launch import KERNELS, SCALE_ARGUMENTS, constants_for, source_for
from aks.ops.gemm.routines import Scratch
from aks.ops.variants import Variants

_FLAGS = {
    name: formula.compile_python(str(LAUNCH_SPEC.arguments[name]))
    for name in ("has_bias", "has_residual", "activation")
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``)."""

    config: FusedLinearConfig
    dtype: str
    gated: bool
    even_k: bool
    rows: int


def make_variant(config: FusedLinearConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LAUNCH_SPEC.variant``."""
    dtype, gated, even_k, rows = values
    return Variant(config, FusedLinearProblem.CHOICES["dtype"][dtype], bool(gated), bool(even_k), rows)


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""
    return source_for(variant.config, _constants(variant), partial(_argument_type, variant=variant), _divisor)


def _constants(variant: Variant) -> dict[str, Any]:
    absent = (
        ("bias_ptr", "residual_ptr", "residual_row", "has_bias", "has_residual")
        if variant.gated
        else ("up_ptr", "up_desc")
    )
    return constants_for(variant.config, rows=variant.rows, even_k=variant.even_k, absent=(*absent, *SCALE_ARGUMENTS))


def _divisor(name: str) -> int:
    """As of ``gemm``; legal are 16-byte rows and pointers alone."""
    return 16 if name.endswith("_ptr") else 8 if name in ("N", "K") or name.endswith("_row") else 1


def _argument_type(name: str, variant: Variant) -> str:
    config = variant.config
    match name:
        case "x_desc":
            return f"tensordesc<{variant.dtype}[{config.block_m}, {config.block_k}]>"
        case "w_desc" | "up_desc":
            return f"tensordesc<{variant.dtype}[{config.block_n}, {config.block_k}]>"
        case "workspace_ptr":
            return "*fp32"
        case "counter_ptr":
            return "*i32"
        case "M" | "N" | "K" | "has_bias" | "has_residual" | "activation":
            return "i32"
        case "x_row" | "w_row" | "residual_row" | "out_row":
            return "i64"
        case _:
            return f"*{variant.dtype}"


VARIANTS = Variants(LAUNCH_SPEC, make_variant, source_of)
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready


def bind(
    config: FusedLinearConfig,
    problem: FusedLinearProblem,
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
    variant = variant_of(config, problem)
    grid = LAUNCH_SPEC.count_programs(config, problem.variables(), device.sm_count)
    arguments = arguments_of(variant, problem, x, w, out, scratch)
    return VARIANTS.launcher(KERNELS[config.kind], variant, grid, arguments, device, x.get_device())


def arguments_of(
    variant: Variant, problem: FusedLinearProblem, x: Tensor, w: Operands, out: Tensor, scratch: Scratch
) -> list[Any]:
    """The kernel's arguments in order; constants are passed too, and ignored by the launcher."""
    config, constants = variant.config, _constants(variant)
    call = call_for(problem, x, w, out)
    if call is None:
        raise ValueError(f"operands are not those of {problem.key()}")
    values = call._asdict()
    known = {
        **{name: flag(values) for name, flag in _FLAGS.items()},
        **{name: values[name] for name in ("x_row", "w_row", "residual_row", "out_row")},
        # An operand that there is none of is not read: any address will do.
        **{
            f"{name}_ptr": x if tensor is None else tensor
            for name, tensor in {**w._asdict(), "x": x, "out": out}.items()
        },
        "workspace_ptr": scratch.workspace,
        "counter_ptr": scratch.counters,
        **{"M": problem.m, "N": problem.n, "K": problem.k},
    }
    if config.kind == "tma":
        blocks = {"x": config.block_m, "w": config.block_n, "up": config.block_n}
        for name, tensor in {"x": x, "w": w.w, "up": w.up}.items():
            if tensor is not None:
                known[f"{name}_desc"] = TensorDescriptor(
                    tensor, list(tensor.shape), [tensor.stride(0), 1], [blocks[name], config.block_k]
                )
    return [constants[name] if name in constants else known[name] for name in KERNELS[config.kind].arg_names]
