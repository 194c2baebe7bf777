"""Kernel variants, grids and arguments of products of 8-bit matrices as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.gemm.spec import SPLIT_COUNTERS, SPLIT_WORKSPACE_BYTES
from aks.ops.launch_spec import Buffer, LaunchSpec, Matrix, Part

_VECTOR = "gcd(alignment, 2 * n, k)"
_TILES = "(ceil_div(m, max(1, block_m, (block_m == 0) * m)) * ceil_div(n, max(1, block_n)))"
_POINTERS = ("x_ptr", "w_ptr", "x_scale_ptr", "w_scale_ptr", "bias_ptr", "out_ptr")
_ROWS = ("x_row", "w_row", "out_row")
_SCALES = ("x_scale_step", "x_scale_block", "w_scale_step", "w_scale_block")
"""Strides of scales: from a row's to the next, from a block of K to the next (``aks.ops.scaled.call``)."""


def make_launch_spec(accurate: str = "False", block_scaled: str = "False", scalings: bool = False) -> LaunchSpec:
    """The ``LaunchSpec`` of an op.

    accurate and block_scaled are over the problem: whether every 128 of K are added to a float32, and whether scales
    are of blocks. scalings: whether scales are of more than rows, so that a call has their strides.
    """
    return LaunchSpec(
        operands=(*_POINTERS, *_ROWS, *(_SCALES if scalings else ())),
        derived={"alignment": "gcd(16, x_ptr, w_ptr, out_ptr, x_row, w_row, 2 * out_row)"},
        has_kernel="kind > TORCH",
        variant=(
            # As in gemm's: what divides every pointer and the bytes of every row; 0 for descriptors, which need 16 of
            # x and w, and whose stores are as wide where n is a multiple too.
            Part("vector_bytes", f"(kind < TMA) * {_VECTOR}", (0, 1, 2, 4, 8, 16)),
            Part("wide_rows", f"kind >= TMA and {_VECTOR} == 16", (0, 1)),
            Part(
                "even_k",
                "((kind == GEMV and num_stages > 0) or kind == TILED) and k % max(1, block_k * split_k) == 0",
                (0, 1),
            ),
            Part("rows", "(block_m == 0) * next_pow2(m)", (0, 1, 2, 4)),
            # Matrix-vector kernels add up in float32 anyway.
            Part("accurate", f"kind > STREAM and ({accurate})", _truths(accurate)),
            Part("block_scaled", block_scaled, _truths(block_scaled)),
        ),
        programs=(
            f"max((ctas_per_sm == 0) * {_TILES} * max(1, split_k),"
            f" (ctas_per_sm > 0) * min({_TILES}, sm_count * max(1, ctas_per_sm)))"
        ),
        arguments={
            **{name: name for name in (*_POINTERS, *_ROWS, "workspace_ptr", "counter_ptr")},
            **{name: name.lower() for name in ("M", "N", "K")},
            **{name: name if scalings else str(int(name.endswith("step"))) for name in _SCALES},
            "has_bias": "bias_ptr != 0",
            "x_desc": Matrix("x_ptr", "m", "k", "x_row"),
            "w_desc": Matrix("w_ptr", "n", "k", "w_row"),
        },
        scratch=(Buffer("workspace_ptr", SPLIT_WORKSPACE_BYTES), Buffer("counter_ptr", 4 * SPLIT_COUNTERS)),
        needs_scratch="split_k > 1",
    )


def _truths(formula: str) -> tuple[int, ...]:
    """What a condition may be."""
    return (0,) if formula == "False" else (0, 1)
