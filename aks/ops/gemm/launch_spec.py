"""Kernel variants, grids and arguments of ``gemm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.gemm.spec import (
    CUBLASLT_ALGOS,
    CUBLASLT_DTYPES,
    CUBLASLT_WORKSPACE_BYTES,
    SPLIT_COUNTERS,
    SPLIT_WORKSPACE_BYTES,
    GemmProblem,
)
from aks.ops.launch_spec import Buffer, LaunchSpec, Matrix, Part, Product

_ALIGNMENT = "gcd(alignment, 2 * n, 2 * k)"
_TILES = "(ceil_div(m, max(1, block_m, (block_m == 0) * m)) * ceil_div(n, max(1, block_n)))"

_X = Matrix("x_ptr", "m", "k", "x_row")
_W = Matrix(
    "w_ptr",
    "max((w_layout == 0) * n, (w_layout == 1) * k)",
    "max((w_layout == 0) * k, (w_layout == 1) * n)",
    "w_row",
)

LAUNCH_SPEC = LaunchSpec(
    operands=("x_ptr", "w_ptr", "out_ptr", "x_row", "w_row", "out_row"),
    derived={"alignment": "gcd(16, x_ptr, w_ptr, out_ptr, 2 * x_row, 2 * w_row, 2 * out_row)"},
    has_kernel="kind >= GEMV",
    variant=(
        Part("dtype", "dtype", (0, 1)),
        Part("w_kn", "w_layout", (0, 1)),
        # Divides every pointer, every row stride and the bytes of a row of K and of N: loads are as wide as it
        # allows. 0 for kernels that load through descriptors.
        Part("vector_bytes", f"(kind < TMA) * {_ALIGNMENT}", (0, 2, 4, 8, 16)),
        # Descriptors have 16-byte rows and pointers; where n and k are multiples of that too, stores (and the
        # weights that pdl=2 loads) are as wide. One variant for all the others: their edge is odd anyway.
        Part("wide_rows", f"kind >= TMA and {_ALIGNMENT} == 16", (0, 1)),
        # Descriptors need no masks along K, nor do matrix-vector kernels that look nothing ahead.
        Part(
            "even_k",
            "((kind == GEMV and num_stages > 0) or kind == TILED) and k % max(1, block_k * split_k) == 0",
            (0, 1),
        ),
        # The power of two that covers M, for kernels that hold all of x.
        Part("rows", "(block_m == 0) * next_pow2(m)", (0, 1, 2, 4)),
    ),
    programs=(
        f"max((ctas_per_sm == 0) * {_TILES} * max(1, split_k),"
        f" (ctas_per_sm > 0) * min({_TILES}, sm_count * max(1, ctas_per_sm)))"
    ),
    arguments={
        **{name: name for name in ("x_ptr", "w_ptr", "out_ptr", "workspace_ptr", "counter_ptr")},
        **{name: name for name in ("x_row", "w_row", "out_row")},
        **{name: name.lower() for name in ("M", "N", "K")},
        "x_desc": _X,
        "w_desc": _W,
    },
    scratch=(Buffer("workspace_ptr", SPLIT_WORKSPACE_BYTES), Buffer("counter_ptr", 4 * SPLIT_COUNTERS)),
    needs_scratch="split_k > 1",
    product=Product(
        applies="kind == CUBLASLT",
        algorithm="algo",
        a=_W,
        b=_X,
        d=Matrix("out_ptr", "m", "n", "out_row"),
        transpose_a="w_layout == 0",
        element_type=" + ".join(
            f"(dtype == {place}) * {CUBLASLT_DTYPES[name]}" for place, name in enumerate(GemmProblem.CHOICES["dtype"])
        ),
        workspace="workspace_ptr",
        workspace_bytes=CUBLASLT_WORKSPACE_BYTES,
        alignment=16,
        num_algorithms=CUBLASLT_ALGOS,
        # Of torch.mm: on the H200 0.999 of its time (median; 5 and 95 %: 0.990, 1.009; data/gemm/h200.parquet).
        vendor="alignment >= 16",
    ),
)
