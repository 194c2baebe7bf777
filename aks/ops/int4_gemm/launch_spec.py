"""Kernel variants, grids and arguments of ``int4_gemm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.gemm.spec import SPLIT_COUNTERS, SPLIT_WORKSPACE_BYTES
from aks.ops.int4_gemm.spec import GROUPS, SPLITS, TILES
from aks.ops.launch_spec import Buffer, LaunchSpec, Part

_POINTERS = ("x_ptr", "w_ptr", "meta_ptr", "by_k_ptr", "bias_ptr", "out_ptr")
_ROWS = ("x_row", "out_row")

LAUNCH_SPEC = LaunchSpec(
    operands=(*_POINTERS, *_ROWS),
    derived={"alignment": "gcd(16, x_ptr, out_ptr, 2 * x_row, 2 * out_row)"},
    has_kernel="kind >= BURST",
    variant=(
        Part("group", "group", GROUPS),
        Part("zeros", "zeros", (0, 1)),
        # Divides x, out, their row strides and the bytes of a row of K and of N: whole vectors, or nothing. Kernels are
        # many and odd rows few.
        Part("vector_bytes", "max(2, gcd(alignment, 2 * n, 2 * k) // 16 * 16)", (2, 16)),
        Part("even_k", f"kind != SPARSE and k % (128 * {SPLITS} * max(1, blocks_k)) == 0", (0, 1)),
        # A burst has as many splits as k needs: up to so many. 0 for configs that say themselves.
        Part("max_splits", f"(kind == BURST) * next_pow2({SPLITS})", (0, 1, 2, 4, 8, 16)),
    ),
    programs=f"{TILES} * {SPLITS}",
    arguments={
        **{name: name for name in (*_POINTERS, *_ROWS, "workspace_ptr", "counter_ptr")},
        **{name: name.lower() for name in ("M", "N", "K")},
        "has_bias": "bias_ptr != 0",
    },
    scratch=(Buffer("workspace_ptr", SPLIT_WORKSPACE_BYTES), Buffer("counter_ptr", 4 * SPLIT_COUNTERS)),
    needs_scratch="split_k != 1 and kind >= BURST",
)
