"""Kernel variants, grids and arguments of ``fused_linear`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.fused_linear.spec import EPILOGUES, GATED
from aks.ops.gemm.spec import SPLIT_COUNTERS, SPLIT_WORKSPACE_BYTES
from aks.ops.launch_spec import Buffer, LaunchSpec, Matrix, Part

_TILES = "(ceil_div(m, max(1, block_m, (block_m == 0) * m)) * ceil_div(n, max(1, block_n)))"
# Entries of kernels.ACTIVATIONS.
_ACTIVATION = " + ".join(
    f"(epilogue == {EPILOGUES.index(name)}) * {activation}"
    for activation, names in ((1, ("silu", "silu_mul")), (2, ("gelu",)), (3, ("gelu_tanh", "gelu_tanh_mul")))
    for name in names
)

LAUNCH_SPEC = LaunchSpec(
    operands=(
        "x_ptr",
        "w_ptr",
        "up_ptr",
        "bias_ptr",
        "residual_ptr",
        "out_ptr",
        "x_row",
        "w_row",
        "residual_row",
        "out_row",
    ),
    # What there is none of has address and stride 0, which all divide.
    derived={
        "alignment": "gcd(16, x_ptr, w_ptr, up_ptr, bias_ptr, residual_ptr, out_ptr,"
        " 2 * x_row, 2 * w_row, 2 * residual_row, 2 * out_row)"
    },
    has_kernel="kind != TORCH",
    variant=(
        Part("dtype", "dtype", (0, 1)),
        Part("gated", GATED, (0, 1)),
        Part("even_k", "kind == GEMV and num_stages > 0 and k % max(1, block_k) == 0", (0, 1)),
        Part("rows", "(block_m == 0) * next_pow2(m)", (0, 1, 2, 4)),
    ),
    programs=(
        f"max((ctas_per_sm == 0) * {_TILES} * max(1, split_k),"
        f" (ctas_per_sm > 0) * min({_TILES}, sm_count * max(1, ctas_per_sm)))"
    ),
    arguments={
        **{
            name: name
            for name in (
                "x_ptr",
                "w_ptr",
                "up_ptr",
                "bias_ptr",
                "residual_ptr",
                "out_ptr",
                "workspace_ptr",
                "counter_ptr",
                "x_row",
                "w_row",
                "residual_row",
                "out_row",
            )
        },
        **{name: name.lower() for name in ("M", "N", "K")},
        "has_bias": "bias_ptr != 0",
        "has_residual": "residual_ptr != 0",
        "activation": _ACTIVATION,
        "x_desc": Matrix("x_ptr", "m", "k", "x_row"),
        "w_desc": Matrix("w_ptr", "n", "k", "w_row"),
        "up_desc": Matrix("up_ptr", "n", "k", "w_row"),
    },
    scratch=(Buffer("workspace_ptr", SPLIT_WORKSPACE_BYTES), Buffer("counter_ptr", 4 * SPLIT_COUNTERS)),
    needs_scratch="split_k > 1",
)
