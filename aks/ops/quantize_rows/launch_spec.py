"""Kernel variants, grids and arguments of ``quantize_rows`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.launch_spec import LaunchSpec, Part
from aks.ops.quantize_rows.spec import PROGRAMS
from aks.ops.rows import BLOCKS

_POINTERS = ("x_ptr", "scale_ptr", "out_ptr")
_STRIDES = ("x_row", "out_row", "scale_step", "scale_block")

LAUNCH_SPEC = LaunchSpec(
    operands=(*_POINTERS, *_STRIDES),
    derived={"alignment": "gcd(16, x_ptr, out_ptr, 2 * x_row, out_row)"},
    has_kernel="kind > TORCH",
    variant=(
        Part("dtype", "dtype", (0, 1)),
        Part("out_dtype", "out_dtype", (0, 1)),
        Part("block_k", "(kind == ROW) * next_pow2(k)", (0, *BLOCKS)),
    ),
    programs=PROGRAMS,
    arguments={**{name: name for name in (*_POINTERS, *_STRIDES)}, "M": "m", "K": "k"},
)
