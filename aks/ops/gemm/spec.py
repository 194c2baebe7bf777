"""Axes, config space and rules, features, flops and bytes of ``gemm``. Standard library and core only.

``y = x @ w.T``: x [M, K], w [N, K] (or given as [K, N]), y [M, N]; bf16 or fp16, float32 accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.op import Op
from aks.ops.tiles import PARTITION_FEATURES, Tiling, analytic_ns, tile_features, tile_wave_features

KINDS = ("torch_mm", "cublaslt", "gemv", "stream", "tiled", "tma", "persistent")


@dataclass(frozen=True, slots=True)
class GemmProblem(Problem):
    """One matrix product.

    w_layout is ``nk`` (a row of w holds one output's weights, as ``nn.Linear`` has it) or ``kn``.
    alignment is the largest power of two, up to 16, that divides every pointer and every row stride
    in bytes. static_weights says that no kernel still running may be writing w: only then may w be
    read before the preceding kernel has ended.
    """

    OP: ClassVar[str] = "gemm"
    AXES: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("bf16", "fp16"),
        "w_layout": ("nk", "kn"),
        "alignment": (2, 4, 8, 16),
        "static_weights": (False, True),
    }

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    w_layout: str = "nk"
    alignment: int = 16
    static_weights: bool = False


@dataclass(frozen=True, slots=True)
class GemmConfig(Config):
    """One way to multiply. Knobs that a kind does not have are 0.

    kind
        ``torch_mm``: the vendor's call. ``cublaslt``: entry ``algo`` of cuBLASLt's own ranking.
        ``gemv``: fused multiply-adds, for few rows of x. ``stream``: the same for a k that block_k
        covers, each program walking over rows of w with x in registers. ``tiled``: tensor cores, loads
        through pointers, any alignment. ``tma``: tensor cores, loads through tensor descriptors.
        ``persistent``: the same, each program walking over several tiles, for many rows of x.
    num_stages
        Steps along k whose loads are under way at once. For ``gemv``: 1 loads one tile ahead and keeps
        sums by position; 0 has tiles so large that there is nothing ahead, and adds over k at each.
    swap_ab
        1 computes y.T = w @ x.T: n lies along the tensor cores' long side, so few rows of x waste less.
    pdl
        Programmatic dependent launch. 0: none. 1: launched early, reads nothing before the
        preceding kernel has ended. 2: requests weights before that, so weights must be static.
    prefetch_kib
        KiB of weights that a program asks L2 for as it starts, before it waits: L2 is where all SMs
        meet, so this needs no promise.
    ctas_per_sm
        Programs that are launched for each SM, to walk over the tiles; 0: a program for each tile.
    """

    OP: ClassVar[str] = "gemm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": KINDS}

    kind: str
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    split_k: int = 0
    num_warps: int = 0
    num_stages: int = 0
    swap_ab: int = 0
    pdl: int = 0
    prefetch_kib: int = 0
    ctas_per_sm: int = 0
    algo: int = 0


VENDOR = GemmConfig(kind="torch_mm")
CUBLASLT_ALGOS = 4
"""Entries of cuBLASLt's ranking that are configs."""
CUBLASLT_WORKSPACE_BYTES = 32 << 20
"""What PyTorch gives cuBLAS on Hopper (``CUBLAS_WORKSPACE_CONFIG``'s default there)."""
CUBLASLT_DTYPES = {"bf16": 14, "fp16": 2}
"""``cudaDataType_t`` by dtype."""
SPLIT_WORKSPACE_BYTES = 64 << 20
"""Room for the partial sums of split-K: one buffer a stream."""
SPLIT_COUNTERS = 1 << 16
"""Tiles that split-K can have: each counts the programs that have arrived."""

# (pdl, prefetch_kib): no dependent launch; an early start that brings weights into L2; and into registers.
_STARTS = ((0, 0), (1, 32), (2, 32))

# What follows is what was left of a sweep of 4,500 configs (H200, common layer shapes of the training
# families), and then of measuring 188 of them on 211 problems of those families: what was the best
# somewhere, or nearly so where nothing else was.

# (block_n, block_k, num_warps) of matrix-vector kernels that look one tile ahead, and of deep ones
# (num_stages 0): a tile so large that a program's share of the weights is one or two loads.
_GEMV_AHEAD = ((2, 512, 1), (2, 1024, 4), (2, 2048, 8), (4, 512, 1), (4, 512, 4), (4, 1024, 8))
_GEMV_DEEP = (
    (2, 512, 1), (2, 1024, 1), (2, 2048, 1), (2, 4096, 4), (4, 512, 1), (4, 2048, 4), (4, 4096, 8), (8, 512, 1),
)  # fmt: skip
# (block_n, num_warps, ctas_per_sm) of ``stream`` at a block_k of 4096. Other lengths of a row have the same
# bytes a thread and threads an SM; which of them matters more than the length.
_STREAM = ((2, 4, 4), (2, 4, 3), (2, 2, 4), (1, 4, 5), (4, 4, 2), (2, 8, 3))
# (block_m, block_n, block_k, num_stages, split_ks) of y.T = w @ x.T: few rows of x cost few operations.
_SWAPPED = (
    (8, 64, 256, 3, (1, 2, 4)), (8, 64, 256, 4, (1,)), (8, 64, 512, 2, (1,)), (8, 128, 128, 4, (1, 4)),
    (16, 64, 128, 4, (1, 4, 8)), (16, 64, 256, 3, (1,)), (16, 64, 256, 4, (1, 2, 4)), (16, 128, 128, 4, (1,)),
    (32, 64, 128, 4, (1, 4)), (32, 64, 256, 4, (1, 2)), (32, 128, 128, 4, (1,)),
)  # fmt: skip
# (block_m, block_n, block_k, num_stages, split_ks) of y = x @ w.T with 4 warps, and with 8.
_UPRIGHT = ((64, 32, 256, 4, (1,)), (64, 32, 128, 6, (1,)), (64, 64, 128, 4, (1,)), (64, 64, 128, 6, (1,)))
_UPRIGHT_WIDE = ((64, 128, 128, 4, (1,)), (128, 128, 64, 4, (1, 2)))
# Loads through pointers: for what descriptors cannot take, and for GPUs without them.
_TILED_SWAPPED = ((16, 64, 128, 4, (1, 4)), (16, 64, 256, 4, (1, 4)))
_TILED = (
    (64, 64, 64, 4, 4, (1, 2)),
    (64, 128, 64, 4, 4, (1,)),
    (128, 128, 64, 4, 8, (1, 2)),
    (128, 256, 64, 3, 8, (1,)),
)
_PERSISTENT = ((128, 128, 64, 4), (128, 256, 64, 3))


def stream_shapes(at_4096: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int, int, int]]:
    """(block_n, block_k, num_warps, pdl, ctas_per_sm) of ``stream``, for (block_n, num_warps, ctas_per_sm) at a block_k
    of 4096: the same bytes a thread and threads an SM at other lengths. The first has pdl 1, too."""
    for block_k in (1024, 2048, 4096, 8192):
        for shape in at_4096:
            block_n, num_warps, ctas_per_sm = shape
            warps, ctas = num_warps * block_k // 4096, ctas_per_sm * 4096 // block_k
            if 1 <= warps <= 8 and ctas:
                for pdl in (1, 2) if shape == at_4096[0] else (2,):
                    yield block_n, block_k, warps, pdl, ctas


def _configs() -> Iterator[GemmConfig]:
    yield VENDOR
    for algo in range(CUBLASLT_ALGOS):
        yield GemmConfig("cublaslt", algo=algo)
    for block_n, block_k, num_warps in _GEMV_AHEAD:
        for pdl in (0, 1, 2):
            yield GemmConfig("gemv", 0, block_n, block_k, 1, num_warps, 1, 0, pdl)
    yield GemmConfig("gemv", 0, 2, 2048, 2, 8, 1, 0, 2)
    for block_n, block_k, num_warps in _GEMV_DEEP:
        for pdl in (1, 2):
            yield GemmConfig("gemv", 0, block_n, block_k, 1, num_warps, 0, 0, pdl)
    for block_n, block_k, warps, pdl, ctas in stream_shapes(_STREAM):
        yield GemmConfig("stream", 0, block_n, block_k, 1, warps, 1, 0, pdl, ctas_per_sm=ctas)
    for kind, shapes in (("tma", _SWAPPED), ("tiled", _TILED_SWAPPED)):
        for block_m, block_n, block_k, num_stages, splits in shapes:
            for split_k in splits:
                # Weights in registers are a stage more in shared memory, and only pay for the smallest products.
                for pdl, prefetch_kib in _STARTS if block_m <= 16 else _STARTS[:2]:
                    yield GemmConfig(kind, block_m, block_n, block_k, split_k, 4, num_stages, 1, pdl, prefetch_kib)
    for block_m, block_n, block_k, num_stages, splits in _UPRIGHT:
        for split_k in splits:
            for pdl, prefetch_kib in _STARTS[:2]:
                yield GemmConfig("tma", block_m, block_n, block_k, split_k, 4, num_stages, 0, pdl, prefetch_kib)
    for block_m, block_n, block_k, num_stages, splits in _UPRIGHT_WIDE:
        for split_k in splits:
            yield GemmConfig("tma", block_m, block_n, block_k, split_k, 8, num_stages)
    for block_m, block_n, block_k, num_stages, num_warps, splits in _TILED:
        for split_k in splits:
            yield GemmConfig("tiled", block_m, block_n, block_k, split_k, num_warps, num_stages)
    for block_m, block_n, block_k, num_stages in _PERSISTENT:
        yield GemmConfig("persistent", block_m, block_n, block_k, 1, 8, num_stages, ctas_per_sm=1)


CONFIGS = tuple(_configs())

# A config that only pads or re-reads is as good as illegal: measuring it teaches nothing.
TILE_RULES = (
    Rule("block_m no taller than m needs", "block_m <= max(16, next_pow2(m))"),
    Rule(
        "weights are read at most 4 times (tiles that loop over K once)",
        "block_m == 0 or block_m >= 64 or m <= 4 * block_m",
    ),
    Rule("block_n no wider than n needs", "block_n <= max(64, next_pow2(n))"),
)
"""For any op with tiles of a product."""
SHAPE_RULES = (
    *TILE_RULES,
    Rule("every split of k has a block", "split_k < 2 or split_k * block_k <= k"),
    Rule("at most 4 rows of x (gemv)", "kind != GEMV or m <= 4"),
    Rule("at most 2 rows of x (stream)", "kind != STREAM or m <= 2"),
    Rule("block_k is the next power of two of k (stream)", "kind != STREAM or (k <= block_k and 2 * k > block_k)"),
)
"""For any op that runs these kernels, as are the next two."""
PRODUCTS_RULE = Rule(
    "products of a tile fit registers (gemv, stream)",
    "kind < GEMV or kind > STREAM or next_pow2(m) * block_n * block_k <= 4096 * num_warps",
)
LAUNCH_RULES = (
    Rule(
        "partial sums fit the workspace",
        "split_k < 2 or ceil_div(m, max(1, block_m)) * ceil_div(n, max(1, block_n)) * split_k"
        " * max(4, block_m) * block_n * 4 <= 67108864",
    ),
    Rule(
        "a counter for every tile",
        "split_k < 2 or ceil_div(m, max(1, block_m)) * ceil_div(n, max(1, block_n)) <= 65536",
    ),
    Rule("threads fit a block", "32 * num_warps <= max_threads_per_block"),
    Rule("tensor descriptors need capability 9.0", "kind < TMA or capability >= 90"),
    Rule("tensor descriptors need 16-byte rows and pointers", "kind < TMA or alignment >= 16"),
    Rule("dependent launch needs capability 9.0", "pdl == 0 or capability >= 90"),
    Rule("weights read before the wait must be static", "pdl < 2 or static_weights == 1"),
)
RULES = (
    *SHAPE_RULES,
    Rule("rows of w are contiguous (stream)", "kind != STREAM or w_layout == 0"),
    PRODUCTS_RULE,
    Rule("accumulator fits registers", "kind <= STREAM or block_m * block_n <= 4096 * num_warps"),
    Rule(
        "stages of x and w fit shared memory",
        "(num_stages + pdl // 2) * (block_m + block_n) * block_k * 2 + kind // PERSISTENT * 32768 + 1024"
        " <= smem_bytes_per_block",
    ),
    *LAUNCH_RULES,
    Rule("cublaslt by index needs 16-byte rows and pointers", "kind != CUBLASLT or alignment >= 16"),
)

_TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256))
_TILE_WAVES = tile_wave_features(_TILES)

FEATURES = (
    Feature("m", "m"),
    Feature("n", "n"),
    Feature("k", "k"),
    Feature("fp16", "dtype"),
    Feature("w_kn", "w_layout", "w given as [K, N]"),
    Feature("alignment", "alignment", "bytes"),
    Feature("weight_kib", "n * k * 2 // 1024"),
    Feature("weight_l2_percent", "n * k * 200 // l2_bytes", "weight bytes as a share of L2"),
    Feature("io_kib", "m * (n + k) * 2 // 1024", "bytes of x and y"),
    Feature("intensity", "m * n * k // (m * n + m * k + n * k)", "operations per byte moved"),
    Feature("dram_ns", "(m * n + m * k + n * k) * 2 // dram_gb_s", "time to move all bytes once"),
    Feature("math_ns", "m * n * k * 2 // (tflops_16bit * 1000)", "time of the arithmetic at full rate"),
    Feature("sm_ns", "(m * n + m * k + n * k) * 2000 // (sm_count * clock_mhz * 64)", "time of the SMs' loads from L2"),
    *tile_features(_TILES),
    *_TILE_WAVES,
    *PARTITION_FEATURES,
    Feature("m_in_16", "m % 16"),
    Feature("k_per_sm", "k * ceil_div(n, 64) // sm_count", "k steps each SM would do at 64 columns a tile"),
)

# What a config makes of a problem: tiles of the vendor's routines are taken to be 128 x 256.
_TILING = Tiling(
    block_m="max(block_m, (kind >= GEMV) * (kind <= STREAM) * next_pow2(m), (kind < GEMV) * 128)",
    block_n="max(block_n, (kind < GEMV) * 256)",
    block_k="max(block_k, 64)",
    # As many as are launched, by shared memory, or by registers.
    resident="max(1, ctas_per_sm, (kind == GEMV) * min(16, 48 // max(num_warps, 1)),"
    " (kind > STREAM) * smem_bytes_per_sm // ((num_stages + pdl // 2) * (block_m + block_n) * block_k * 2 + 2048))",
)
KNOBS = ("kind", "block_k", "num_warps", "num_stages", "swap_ab", "pdl", "prefetch_kib", "ctas_per_sm")

CONFIG_FEATURES = (
    *_TILING.features((*KNOBS, "algo"), _TILING.block_n, " * 2"),
    Feature("n_rest", f"n % {_TILING.block_n}"),
)

GEMM = Op(
    name="gemm",
    problem_type=GemmProblem,
    config_type=GemmConfig,
    space=ConfigSpace("gemm", CONFIGS, RULES),
    features=FEATURES,
    # With all features trees for a whole GPU were no better on held-out families, and three times as slow in Python.
    tree_features=("m", "n", "k", "fp16", "w_kn", "alignment"),
    config_features=CONFIG_FEATURES,
    vendor=VENDOR,
    flops="2 * m * n * k",
    bytes_moved="2 * (m * n + m * k + n * k)",
    weight_bytes="2 * n * k",
    analytic_ns=analytic_ns(_TILING.programs, _TILING.block_m, _TILING.block_n, _TILING.padded_k, "2"),
    partition_tree_features=tuple(feature.name for feature in _TILE_WAVES),
)
