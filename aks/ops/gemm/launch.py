"""From a config and tensors to a launch: kernel variants, their compilation, grids and scratch memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from triton import knobs
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from aks.core.device import DeviceSpec
from aks.ops.gemm import kernels
from aks.ops.gemm.launch_spec import LAUNCH_SPEC
from aks.ops.gemm.routines import Scratch, bind_routine
from aks.ops.gemm.spec import GemmConfig, GemmProblem
from aks.ops.variants import Variants, annotated_source, compile_options

BLOCK_ARGUMENTS = ("x_scale_block", "w_scale_block")
"""Arguments of the kernels that scales of blocks alone have."""
SCALE_ARGUMENTS = (
    "x_scale_ptr", "w_scale_ptr", "x_scale_step", "w_scale_step", *BLOCK_ARGUMENTS, "MAX_IMPRECISE",
)  # fmt: skip
"""Arguments of the kernels that ops of 8-bit types alone have."""
_ABSENT = (
    "up_ptr", "up_desc", "bias_ptr", "residual_ptr", "residual_row", "has_bias", "has_residual", "activation",
    *SCALE_ARGUMENTS,
)  # fmt: skip
KERNELS = {
    "gemv": kernels.gemv_kernel,
    "stream": kernels.stream_kernel,
    "tiled": kernels.tiled_kernel,
    "tma": kernels.tma_kernel,
    "persistent": kernels.persistent_kernel,
}
"""By kind of config, of every op that runs them."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``).

    vector_bytes divides every pointer, every row stride and the bytes of a row of K and of N.
    """

    config: GemmConfig
    dtype: str
    w_kn: bool
    vector_bytes: int
    even_k: bool
    rows: int


def make_variant(config: GemmConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LAUNCH_SPEC.variant``."""
    dtype, w_kn, vector_bytes, wide_rows, even_k, rows = values
    divisor = vector_bytes or (16 if wide_rows else 2)
    return Variant(config, GemmProblem.CHOICES["dtype"][dtype], bool(w_kn), divisor, bool(even_k), rows)


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""
    type_of, divisor_of = partial(_argument_type, variant=variant), partial(_divisor, variant=variant)
    return source_for(variant.config, _constants(variant), type_of, divisor_of)


def source_for(
    config: Any, constants: dict[str, Any], type_of: Callable[[str], str], divisor_of: Callable[[str], int]
) -> tuple[ASTSource, dict[str, Any]]:
    """``source_of`` for any op that runs these kernels, as ``aks.ops.variants.annotated_source``."""
    options = compile_options(config, max(1, config.num_stages))
    return annotated_source(KERNELS[config.kind], constants, type_of, divisor_of), options


def constants_for(
    config: Any,
    *,
    rows: int,
    even_k: bool,
    w_kn: bool = False,
    element_bytes: int = 2,
    absent: Iterable[str],
    **more: Any,
) -> dict[str, Any]:
    """Constants of the kernel of a config, of any op that runs these kernels.

    rows: that all of x is held in, 0 if block_m says. absent: arguments that the op has not. more: constants that it
    alone has.
    """
    interprets = knobs.runtime.interpret  # one program after another, and no inline assembly
    known = {
        **dict.fromkeys(absent),
        "BLOCK_M": rows or config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "SPLIT_K": config.split_k,
        "SWAP_AB": bool(config.swap_ab),
        "EVEN_K": even_k,
        "W_KN": w_kn,
        "PDL": 0 if interprets else config.pdl,
        "PREFETCH_K": 0 if interprets else (config.prefetch_kib << 10) // (element_bytes * config.block_n),
        "GROUP_M": 8,
        "DEEP": config.num_stages == 0 and config.kind == "gemv",
        **more,
    }
    return {name: known[name] for name in KERNELS[config.kind].arg_names if name in known}


def _constants(variant: Variant) -> dict[str, Any]:
    return constants_for(variant.config, rows=variant.rows, even_k=variant.even_k, w_kn=variant.w_kn, absent=_ABSENT)


def _argument_type(name: str, variant: Variant) -> str:
    element = variant.dtype  # Triton has the same names
    config = variant.config
    match name:
        case "x_desc":
            return f"tensordesc<{element}[{config.block_m}, {config.block_k}]>"
        case "w_desc":
            rows, columns = _w_block(variant)
            return f"tensordesc<{element}[{rows}, {columns}]>"
        case "workspace_ptr":
            return "*fp32"
        case "counter_ptr":
            return "*i32"
        case "M" | "N" | "K":
            return "i32"
        case "x_row" | "w_row" | "out_row":
            return "i64"
        case _:
            return f"*{element}"


def _w_block(variant: Variant) -> tuple[int, int]:
    config = variant.config
    return (config.block_k, config.block_n) if variant.w_kn else (config.block_n, config.block_k)


def _divisor(name: str, variant: Variant) -> int:
    """What the compiler may rely on to divide the argument: bytes for pointers, elements otherwise."""
    match name:
        case "workspace_ptr" | "counter_ptr":
            return 16
        case "x_ptr" | "w_ptr" | "out_ptr":
            return variant.vector_bytes
        case "N" | "K" | "x_row" | "w_row" | "out_row":
            return variant.vector_bytes // 2
        case _:
            return 1


VARIANTS = Variants(LAUNCH_SPEC, make_variant, source_of)
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready


@lru_cache(maxsize=1 << 16)
def grid_of(config: GemmConfig, problem: GemmProblem, sm_count: int) -> int:
    """Programs to launch."""
    return LAUNCH_SPEC.count_programs(config, problem.variables(), sm_count)


def bind(
    config: GemmConfig, problem: GemmProblem, x, w, out, *, device: DeviceSpec, scratch: Scratch
) -> Callable[[int], object]:
    """A function of a CUDA stream handle that launches ``config`` on these tensors.

    The config must be legal; everything that can be prepared is.

    Raises
    ------
    UnsupportedAlgoError
        If cuBLASLt offers fewer algorithms than the config's index asks for.
    """
    if not LAUNCH_SPEC.config_has_kernel(config):
        return bind_routine(config, problem, x, w, out, scratch)
    variant = variant_of(config, problem)
    arguments = arguments_of(config, variant, problem, x, w, out, scratch)
    grid = grid_of(config, problem, device.sm_count)
    return VARIANTS.launcher(KERNELS[config.kind], variant, grid, arguments, device, x.get_device())


def arguments_of(config: GemmConfig, variant: Variant, problem: GemmProblem, x, w, out, scratch: Scratch) -> list[Any]:
    """The kernel's arguments in order; constants are passed too, and ignored by the launcher."""
    known = _constants(variant) | {
        "x_ptr": x,
        "w_ptr": w,
        "out_ptr": out,
        "workspace_ptr": scratch.workspace,
        "counter_ptr": scratch.counters,
        "M": problem.m,
        "N": problem.n,
        "K": problem.k,
        "x_row": x.stride(0),
        "w_row": w.stride(0),
        "out_row": out.stride(0),
    }
    if config.kind in ("tma", "persistent"):
        known["x_desc"] = TensorDescriptor(x, list(x.shape), [x.stride(0), 1], [config.block_m, config.block_k])
        known["w_desc"] = TensorDescriptor(w, list(w.shape), [w.stride(0), 1], list(_w_block(variant)))
    return [known[name] for name in KERNELS[config.kind].arg_names]
