"""Kernel variants, grids and arguments of ``rms_norm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.launch_spec import LaunchSpec, Part
from aks.ops.rows import BLOCKS

_POINTERS = ("x_ptr", "residual_ptr", "weight_ptr", "out_ptr", "total_ptr")
_ROWS = ("x_row", "residual_row", "out_row", "total_row")

LAUNCH_SPEC = LaunchSpec(
    # eps is a float32's bits; one_plus: 1 multiplies by 1 + weight.
    operands=(*_POINTERS, *_ROWS, "eps", "one_plus"),
    # What there is none of has address and stride 0, which all divide.
    derived={"alignment": f"gcd(16, {', '.join(_POINTERS)}, {', '.join(f'2 * {row}' for row in _ROWS)})"},
    has_kernel="kind == ROW",
    variant=(
        Part("dtype", "dtype", (0, 1)),
        Part("residual", "residual", (0, 1)),
        Part("block_k", "next_pow2(k)", BLOCKS),
    ),
    programs="m",
    arguments={**{name: name for name in (*_POINTERS, *_ROWS, "eps", "one_plus")}, "K": "k"},
)
