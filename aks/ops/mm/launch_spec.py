"""Kernel variants, grids and arguments of ``mm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.launch_spec import LaunchSpec, Part
from aks.ops.mm.spec import BYTES

_REST_K = "k % max(1, block_k)"
_DIVISORS = (2, 4, 8, 16)

LAUNCH_SPEC = LaunchSpec(
    operands=("x_ptr", "w_ptr", "out_ptr", "x_row", "w_row", "out_row"),
    # Rows of y are contiguous, so n says how they are aligned; y itself is as allocators make it.
    derived={"alignment": f"gcd(16, x_ptr, w_ptr, {BYTES} * x_row, {BYTES} * w_row)"},
    has_kernel="kind == TRITON",
    variant=(
        Part("dtype", "dtype", (0, 1, 2)),
        Part("x_km", "x_layout", (0, 1)),
        Part("w_kn", "w_layout", (0, 1)),
        Part("alignment", "alignment", _DIVISORS),
        # What divides, up to 16, the bytes of M, N or K contiguous elements, where loads and stores run along
        # them: they are as wide as these allow. Where there is no mask along K, nothing depends on it.
        Part("m_bytes", f"gcd(16, {BYTES} * max(1, x_layout * m))", _DIVISORS),
        Part("n_bytes", f"gcd(16, {BYTES} * n)", _DIVISORS),
        Part("k_bytes", f"gcd(16, {BYTES} * max(1, ({_REST_K} != 0) * k))", _DIVISORS),
        Part("even_k", f"{_REST_K} == 0", (0, 1)),
    ),
    programs="ceil_div(m, max(1, block_m)) * ceil_div(n, max(1, block_n))",
    arguments={
        **{name: name for name in ("x_ptr", "w_ptr", "out_ptr", "x_row", "w_row", "out_row")},
        **{name: name.lower() for name in ("M", "N", "K")},
    },
)
