"""Axes, config space and rules, features, flops and bytes of ``gemm``. Standard library and core only.

``y = x @ w.T``: x [M, K], w [N, K] (or given as [K, N]), y [M, N]; bf16 or fp16, float32 accumulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule, product
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.op import Op


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
        ``gemv``: fused multiply-adds, for few rows of x. ``tiled``: tensor cores, loads through
        pointers, any alignment. ``tma``: tensor cores, loads through tensor descriptors, persistent.
    swap_ab
        1 computes y.T = w @ x.T: n lies along the tensor cores' long side, so few rows of x waste less.
    pdl
        Programmatic dependent launch. 0: none. 1: launched early, reads nothing before the
        preceding kernel has ended. 2: requests weights before that, so weights must be static.
    """

    OP: ClassVar[str] = "gemm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": ("torch_mm", "cublaslt", "gemv", "tiled", "tma")}

    kind: str
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    split_k: int = 0
    num_warps: int = 0
    num_stages: int = 0
    swap_ab: int = 0
    pdl: int = 0
    algo: int = 0


VENDOR = GemmConfig(kind="torch_mm")
CUBLASLT_ALGOS = 8

CONFIGS = (
    VENDOR,
    *product(GemmConfig, kind=["cublaslt"], algo=range(CUBLASLT_ALGOS)),
    *product(
        GemmConfig,
        kind=["gemv"],
        block_n=[4, 8, 16],
        block_k=[512, 1024],
        split_k=[1, 2, 4],
        num_warps=[4],
        pdl=[0, 2],
    ),
    *product(
        GemmConfig,
        kind=["tiled"],
        block_m=[16, 32, 64],
        block_n=[32, 64, 128],
        block_k=[64, 128],
        split_k=[1, 2, 4, 8],
        num_warps=[4],
        num_stages=[3, 5],
        pdl=[0, 2],
    ),
    *product(
        GemmConfig,
        kind=["tma"],
        block_m=[64, 128],
        block_n=[128, 256],
        block_k=[64],
        split_k=[1, 2],
        num_warps=[8],
        num_stages=[3, 4],
    ),
)

RULES = (
    Rule("block_m no taller than m needs", "block_m <= max(16, next_pow2(m))"),
    Rule("block_n no wider than n needs", "block_n <= max(32, next_pow2(n))"),
    Rule("every split of k has a block", "split_k < 2 or split_k * block_k <= k"),
    Rule("at most 4 rows of x (gemv)", "kind != GEMV or m <= 4"),
    Rule("stages of x and w fit shared memory", "num_stages * (block_m + block_n) * block_k * 2 <= smem_bytes_per_block"),
    Rule("accumulator fits registers", "kind == GEMV or block_m * block_n <= 4096 * num_warps"),
    Rule("threads fit a block", "32 * num_warps <= max_threads_per_block"),
    Rule("tensor descriptors need capability 9.0", "kind != TMA or capability >= 90"),
    Rule("tensor descriptors need 16-byte rows and pointers", "kind != TMA or alignment >= 16"),
    Rule("dependent launch needs capability 9.0", "pdl == 0 or capability >= 90"),
    Rule("weights requested early must be static", "pdl < 2 or static_weights == 1"),
    Rule("cublaslt by index needs 16-byte rows and pointers", "kind != CUBLASLT or alignment >= 16"),
)

_TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256))

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
    *(Feature(f"tiles_{bm}x{bn}", f"ceil_div(m, {bm}) * ceil_div(n, {bn})") for bm, bn in _TILES),
    *(Feature(f"waves_{bm}x{bn}", f"ceil_div(ceil_div(m, {bm}) * ceil_div(n, {bn}), sm_count)") for bm, bn in _TILES),
    *(
        Feature(
            f"tail_{bm}x{bn}",
            f"ceil_div(m, {bm}) * ceil_div(n, {bn}) % sm_count * 100 // sm_count",
            "share of the SMs busy in the last wave, percent",
        )
        for bm, bn in _TILES
    ),
    Feature("m_in_16", "m % 16"),
    Feature("k_per_sm", "k * ceil_div(n, 64) // sm_count", "k steps each SM would do at 64 columns a tile"),
)

GEMM = Op(
    name="gemm",
    problem_type=GemmProblem,
    config_type=GemmConfig,
    space=ConfigSpace("gemm", CONFIGS, RULES),
    features=FEATURES,
    vendor=VENDOR,
    flops="2 * m * n * k",
    bytes_moved="2 * (m * n + m * k + n * k)",
)
