"""From a config and tensors to a launch: kernel variants of ``quantize_rows``, their compilation, grids."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton import knobs
from triton.compiler import ASTSource

from aks.core.device import DeviceSpec
from aks.ops.quantize_rows import reference
from aks.ops.quantize_rows.call import EIGHT_BIT, Operands, parts_of, scale_strides
from aks.ops.quantize_rows.kernels import quantize_groups_kernel, quantize_rows_kernel
from aks.ops.quantize_rows.launch_spec import LAUNCH_SPEC
from aks.ops.quantize_rows.spec import OUT_DTYPES, QuantizeRowsConfig, QuantizeRowsProblem
from aks.ops.scaled.spec import BLOCK
from aks.ops.scratch import NoScratch as Scratch
from aks.ops.variants import Variants, annotated_source, compile_options

_TRITON_NAMES = {"fp8": "fp8e4nv", "int8": "i8"}
_DIVISORS = {"x_ptr": 16, "out_ptr": 16, "x_row": 8, "out_row": 16, "K": 16}
"""Legal are rows of 16 bytes alone."""
_KERNELS = {"row": quantize_rows_kernel, "loop": quantize_rows_kernel, "tile": quantize_groups_kernel}
_FLOOR_BITS = struct.unpack("<i", struct.pack("<f", reference.FLOOR))[0]


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``).

    block_k is what covers a whole row, 0 where the config says how long a step is.
    """

    config: QuantizeRowsConfig
    dtype: str
    out_dtype: str
    block_k: int


def make_variant(config: QuantizeRowsConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LAUNCH_SPEC.variant``."""
    dtype, out_dtype, block_k = values
    return Variant(config, QuantizeRowsProblem.CHOICES["dtype"][dtype], OUT_DTYPES[out_dtype], block_k)


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""
    types = {"x_ptr": f"*{variant.dtype}", "scale_ptr": "*fp32", "out_ptr": f"*{_TRITON_NAMES[variant.out_dtype]}"}

    def type_of(name: str) -> str:
        return types.get(name) or ("i64" if name.endswith(("_row", "_step", "_block")) else "i32")

    kernel, constants = _KERNELS[variant.config.kind], _constants(variant)
    source = annotated_source(kernel, constants, type_of, lambda name: _DIVISORS.get(name, 1))
    return source, compile_options(variant.config)


def _constants(variant: Variant) -> dict[str, Any]:
    return {
        "FLOOR_BITS": _FLOOR_BITS,
        "TOP": reference.TOPS[EIGHT_BIT[variant.out_dtype]],
        "BLOCK_M": variant.config.block_m,
        "BLOCK_K": variant.block_k or variant.config.block_k,
        **({"GROUP": BLOCK} if variant.config.kind == "tile" else {"WHOLE": variant.block_k > 0}),
        # The interpreter runs one program after another and knows no inline assembly.
        "PDL": 0 if knobs.runtime.interpret else variant.config.pdl,
    }


VARIANTS = Variants(LAUNCH_SPEC, make_variant, source_of)
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready

__all__ = ["VARIANTS", "Scratch", "bind", "compile_job", "compile_jobs", "is_ready"]


def bind(
    config: QuantizeRowsConfig,
    problem: QuantizeRowsProblem,
    x: Tensor,
    w: Operands,
    out: Tensor,
    *,
    device: DeviceSpec,
    scratch: Scratch,
) -> Callable[[int], object]:
    """A function of a CUDA stream handle that launches ``config`` on these tensors: values go to out's first rows.

    The config must be legal; everything that can be prepared is.
    """
    if not LAUNCH_SPEC.config_has_kernel(config):
        vendor = reference.vendor(problem, x, w, out)
        return lambda stream: vendor()
    variant = variant_of(config, problem)
    values, scale = parts_of(problem, w, out)
    known = {
        "x_ptr": x, "scale_ptr": scale, "out_ptr": values, "M": problem.m, "K": problem.k,
        "x_row": x.stride(0), "out_row": values.stride(0),
        **dict(zip(("scale_step", "scale_block"), scale_strides(scale, problem.group), strict=True)),
        **_constants(variant),
    }  # fmt: skip
    kernel = _KERNELS[config.kind]
    grid = LAUNCH_SPEC.count_programs(config, problem.variables(), device.sm_count)
    return VARIANTS.launcher(kernel, variant, grid, [known[name] for name in kernel.arg_names], device, x.get_device())
