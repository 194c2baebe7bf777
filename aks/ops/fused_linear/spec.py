"""Axes, config space and rules, features, flops and bytes of ``fused_linear``. Standard library and core only.

A linear layer and what follows it, in one kernel: x [M, K], w and up [N, K], bias [N], residual and y [M, N];
bf16 or fp16, float32 until y is rounded. By ``epilogue``:

- ``bias``: ``y = x @ w.T + bias``; ``silu``, ``gelu``, ``gelu_tanh``: the activation of that
- ``residual``: ``y = x @ w.T + bias + residual``
- ``silu_mul``, ``gelu_tanh_mul``: ``y = act(x @ w.T) * (x @ up.T)``, the gated layers of most language models

The bias may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.gemm.spec import KNOBS, stream_shapes
from aks.ops.op import Op
from aks.ops.tiles import Tiling, analytic_ns, tile_features, tile_wave_features

EPILOGUES = ("bias", "residual", "silu", "gelu", "gelu_tanh", "silu_mul", "gelu_tanh_mul")
KINDS = ("torch", "gemv", "stream", "tma")
GATED = f"(epilogue >= {EPILOGUES.index('silu_mul')})"
"""Formula: 1 where there are two weights."""


@dataclass(frozen=True, slots=True)
class FusedLinearProblem(Problem):
    """One linear layer with its epilogue.

    alignment is the largest power of two, up to 16, that divides every pointer and every row stride in bytes.
    static_weights says that no kernel still running may be writing w or up: only then may they be read before
    the preceding kernel has ended.
    """

    OP: ClassVar[str] = "fused_linear"
    AXES: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("bf16", "fp16"),
        "epilogue": EPILOGUES,
        "alignment": (2, 4, 8, 16),
        "static_weights": (False, True),
    }

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    epilogue: str = "silu_mul"
    alignment: int = 16
    static_weights: bool = False

    @property
    def gated(self) -> bool:
        """Whether there are two weights."""
        return self.epilogue.endswith("_mul")


@dataclass(frozen=True, slots=True)
class FusedLinearConfig(Config):
    """One way to compute it. Knobs that a kind does not have are 0; they mean what those of ``GemmConfig`` do.

    kind
        ``torch``: the vendor's product, then PyTorch's kernels, of which it has one for a product with a bias.
        ``gemv``, ``stream`` and ``tma``: the kernels of ``gemm``, with the epilogue before they write.
    """

    OP: ClassVar[str] = "fused_linear"
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


VENDOR = FusedLinearConfig(kind="torch")

# As in the spec of gemm, where what was a sweep is now a list. (block_n, block_k, num_warps, num_stages):
_GEMV = (
    (2, 512, 1, 0), (2, 1024, 1, 0), (2, 2048, 4, 0), (2, 4096, 4, 0), (4, 512, 1, 0), (4, 2048, 4, 0),
    (2, 1024, 4, 1), (2, 2048, 8, 1), (4, 512, 4, 1), (1, 2048, 4, 1),
)  # fmt: skip
# (block_n, num_warps, ctas_per_sm) at a block_k of 4096.
_STREAM = ((1, 4, 4), (2, 4, 4), (1, 4, 5), (2, 4, 3), (2, 8, 2), (2, 8, 3), (1, 8, 3), (4, 4, 2))
# (block_m, block_n, block_k, num_stages, split_ks) of y.T = w @ x.T.
_SWAPPED = (
    (8, 64, 128, 3, (1, 2)), (8, 64, 128, 4, (1, 2, 4)), (8, 64, 256, 2, (1, 2)), (8, 64, 256, 4, (1, 2, 4)),
    (16, 64, 128, 3, (1, 2)), (16, 64, 128, 4, (1, 4)), (16, 64, 256, 4, (1, 2, 4)), (16, 128, 64, 4, (1,)),
    (32, 64, 128, 3, (1, 2)), (32, 64, 128, 4, (1, 4)), (32, 64, 256, 4, (1, 2)), (32, 128, 64, 4, (1,)),
    (64, 64, 128, 4, (1, 2)), (64, 128, 64, 4, (1, 2)),
)  # fmt: skip
# (block_m, block_n, block_k, num_stages, split_ks, num_warps) of y = x @ w.T.
_UPRIGHT = (
    (64, 64, 128, 4, (1,), 4), (64, 128, 64, 4, (1,), 4), (128, 64, 64, 4, (1, 2), 4),
    (128, 128, 64, 3, (1,), 8), (128, 128, 64, 4, (1, 2), 8),
)  # fmt: skip


def _configs() -> Iterator[FusedLinearConfig]:
    yield VENDOR
    for place, (block_n, block_k, num_warps, num_stages) in enumerate(_GEMV):
        for pdl in (1, 2) if place in (1, 7) else (2,):
            yield FusedLinearConfig("gemv", 0, block_n, block_k, 1, num_warps, num_stages, 0, pdl)
    for block_n, block_k, warps, pdl, ctas in stream_shapes(_STREAM):
        yield FusedLinearConfig("stream", 0, block_n, block_k, 1, warps, 1, 0, pdl, ctas_per_sm=ctas)
    for block_m, block_n, block_k, num_stages, splits in _SWAPPED:
        for split_k in splits:
            for pdl, prefetch_kib in ((0, 0), (1, 32)):
                yield FusedLinearConfig(
                    "tma", block_m, block_n, block_k, split_k, 4, num_stages, 1, pdl, prefetch_kib
                )  # fmt: skip
    for block_m, block_n, block_k, num_stages, splits, num_warps in _UPRIGHT:
        for split_k in splits:
            yield FusedLinearConfig("tma", block_m, block_n, block_k, split_k, num_warps, num_stages)


CONFIGS = tuple(dict.fromkeys(_configs()))

_TILES_OF = "ceil_div(m, max(1, block_m)) * ceil_div(n, max(1, block_n))"

RULES = (
    Rule("block_m no taller than m needs", "block_m <= max(16, next_pow2(m))"),
    Rule("weights are read at most 4 times", "block_m == 0 or block_m >= 64 or m <= 4 * block_m"),
    Rule("block_n no wider than n needs", "block_n <= max(64, next_pow2(n))"),
    Rule("every split of k has a block", "split_k < 2 or split_k * block_k <= k"),
    Rule("at most 4 rows of x (gemv)", "kind != GEMV or m <= 4"),
    Rule("at most 2 rows of x (stream)", "kind != STREAM or m <= 2"),
    Rule("block_k is the next power of two of k (stream)", "kind != STREAM or (k <= block_k and 2 * k > block_k)"),
    Rule(
        "products of a tile fit registers (gemv, stream)",
        f"kind == TORCH or kind == TMA or next_pow2(m) * block_n * block_k * (1 + {GATED}) <= 4096 * num_warps",
    ),
    Rule("accumulators fit registers", f"kind != TMA or block_m * block_n * (1 + {GATED}) <= 4096 * num_warps"),
    Rule(
        "stages of x, w and up fit shared memory",
        f"kind != TMA or num_stages * (block_m + block_n * (1 + {GATED})) * block_k * 2 + 1024 <= smem_bytes_per_block",
    ),
    Rule(
        "partial sums fit the workspace",
        f"split_k < 2 or {_TILES_OF} * split_k * max(4, block_m) * block_n * (4 + 4 * {GATED}) <= 67108864",
    ),
    Rule("a counter for every tile", f"split_k < 2 or {_TILES_OF} <= 65536"),
    Rule("threads fit a block", "32 * num_warps <= max_threads_per_block"),
    Rule("rows and pointers of 16 bytes", "kind == TORCH or (alignment == 16 and n % 8 == 0 and k % 8 == 0)"),
    Rule("tensor descriptors need capability 9.0", "kind != TMA or capability >= 90"),
    Rule("dependent launch needs capability 9.0", "pdl == 0 or capability >= 90"),
    Rule("weights read before the wait must be static", "pdl < 2 or static_weights == 1"),
)

# Columns of weights, those of both where there are two.
_N = f"(n * (1 + {GATED}))"
_TILES = ((16, 64), (64, 64), (64, 128), (128, 128))
_TILE_WAVES = tile_wave_features(_TILES)

FEATURES = (
    Feature("m", "m"),
    Feature("n", "n"),
    Feature("k", "k"),
    Feature("fp16", "dtype"),
    Feature("epilogue", "epilogue", ", ".join(f"{place}: {name}" for place, name in enumerate(EPILOGUES))),
    Feature("gated", GATED, "two weights"),
    Feature("alignment", "alignment", "bytes"),
    Feature("weight_kib", f"{_N} * k * 2 // 1024"),
    Feature("weight_l2_percent", f"{_N} * k * 200 // l2_bytes", "weight bytes as a share of L2"),
    Feature("io_kib", "m * (n + k) * 2 // 1024", "bytes of x and y"),
    Feature("intensity", f"m * {_N} * k // (m * n + m * k + {_N} * k)", "operations per byte moved"),
    Feature("dram_ns", f"(m * n + m * k + {_N} * k) * 2 // dram_gb_s", "time to move all bytes once"),
    Feature("math_ns", f"m * {_N} * k * 2 // (tflops_16bit * 1000)", "time of the arithmetic at full rate"),
    *tile_features(_TILES),
    *_TILE_WAVES,
    Feature("m_in_16", "m % 16"),
    Feature("k_per_sm", f"k * ceil_div({_N}, 64) // sm_count", "k steps each SM would do at 64 columns a tile"),
)

_TILING = Tiling(
    block_m="max(block_m, (kind == GEMV) * next_pow2(m), (kind == STREAM) * next_pow2(m), (kind == TORCH) * 128)",
    block_n="max(block_n, (kind == TORCH) * 256)",
    block_k="max(block_k, 64)",
    resident="max(1, ctas_per_sm, (kind == GEMV) * min(16, 48 // max(num_warps, 1)), (kind == TMA) * smem_bytes_per_sm"
    f" // (num_stages * (block_m + block_n * (1 + {GATED})) * block_k * 2 + 2048))",
)
_BLOCK_N = f"{_TILING.block_n} * (1 + {GATED})"

CONFIG_FEATURES = _TILING.features(KNOBS, _BLOCK_N, " * 2")

FUSED_LINEAR = Op(
    name="fused_linear",
    problem_type=FusedLinearProblem,
    config_type=FusedLinearConfig,
    space=ConfigSpace("fused_linear", CONFIGS, RULES),
    features=FEATURES,
    tree_features=("m", "n", "k", "fp16", "epilogue", "alignment"),
    config_features=CONFIG_FEATURES,
    vendor=VENDOR,
    flops=f"2 * m * {_N} * k",
    bytes_moved=f"2 * (m * n + m * k + {_N} * k + (epilogue == {EPILOGUES.index('residual')}) * m * n)",
    weight_bytes=f"2 * {_N} * k",
    analytic_ns=analytic_ns(_TILING.programs, _TILING.block_m, f"({_BLOCK_N})", _TILING.padded_k, "2"),
    partition_tree_features=tuple(feature.name for feature in _TILE_WAVES),
    # Decoding is where fusing pays: what follows a product costs as much as the product's own differences.
    spread=tuple(
        {"epilogue": epilogue}
        for epilogue in ("silu_mul", "residual", "silu_mul", "bias", "gelu_tanh_mul", "residual", "gelu_tanh")
    ),
)
