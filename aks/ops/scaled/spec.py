"""Configs, rules and features of products of 8-bit matrices with scales. Standard library and core only.

``y = (x * x_scale) @ (w * w_scale).T + bias``: x [M, K], w [N, K] of a byte an element, scales float32, y [M, N] and
the bias [N] bf16. Products are added in int32 or float32, then scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.gemm.spec import stream_shapes
from aks.ops.op import Op
from aks.ops.tiles import analytic_ns, tile_features, tile_wave_features, wave_features

KINDS = ("torch", "gemv", "stream", "tiled", "tma", "persistent")


@dataclass(frozen=True, slots=True)
class ScaledConfig(Config):
    """One way to multiply. Knobs that a kind does not have are 0; they mean what those of ``GemmConfig`` do.

    kind
        ``torch``: the vendor's call. The others: the kernels of ``gemm``, which scale before they write.
    """

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


# As in the spec of gemm, at twice the block_k: as many bytes.
_STARTS = ((0, 0), (1, 32), (2, 32))
# (block_n, block_k, num_warps, num_stages) of matrix-vector kernels.
_GEMV = (
    (2, 1024, 1, 1), (2, 2048, 4, 1), (2, 4096, 8, 1), (4, 1024, 4, 1),
    (2, 1024, 1, 0), (2, 2048, 1, 0), (4, 1024, 1, 0), (2, 4096, 2, 0), (4, 4096, 4, 0), (2, 8192, 4, 0),
)  # fmt: skip
# (block_n, num_warps, ctas_per_sm) at a block_k of 4096 elements of 2 bytes.
_STREAM = ((2, 4, 4), (2, 4, 3), (1, 4, 5), (4, 4, 2), (2, 8, 2))
# (block_m, block_n, block_k, num_stages, split_ks) of y.T = w @ x.T.
_SWAPPED = (
    (8, 64, 256, 4, (1, 2, 4)), (8, 64, 512, 3, (1, 2, 4)), (8, 64, 512, 4, (1, 2)), (8, 64, 1024, 2, (1, 2)),
    (8, 128, 256, 4, (1, 4)),
    (16, 64, 256, 4, (1, 2, 4, 8)), (16, 64, 512, 3, (1, 2, 4)), (16, 64, 512, 4, (1, 2)), (16, 128, 256, 4, (1, 2)),
    (32, 64, 256, 4, (1, 2, 4)), (32, 64, 512, 3, (1, 2, 4)), (32, 128, 256, 4, (1, 2)),
    (64, 64, 256, 4, (1, 2, 4)), (64, 128, 128, 5, (1, 2)), (64, 128, 256, 3, (1, 2)),
    (128, 64, 256, 3, (1, 2)), (128, 128, 128, 4, (1, 2)),
)  # fmt: skip
# (block_m, block_n, block_k, num_stages, num_warps, split_ks) of y = x @ w.T.
_UPRIGHT = (
    (64, 64, 256, 4, 4, (1, 2)), (64, 128, 128, 5, 4, (1, 2)), (64, 128, 256, 3, 4, (1,)), (128, 64, 128, 5, 4, (1,)),
    (128, 128, 128, 4, 8, (1, 2, 4)), (128, 128, 128, 3, 8, (1,)), (128, 128, 256, 2, 8, (1,)),
    (64, 256, 128, 4, 8, (1,)), (128, 256, 128, 3, 8, (1,)),
)  # fmt: skip
# Loads through pointers: for what descriptors cannot take, and for GPUs without them.
_TILED_SWAPPED = ((16, 64, 256, 4, (1, 4)), (32, 64, 256, 4, (1, 4)))
_TILED = ((64, 64, 128, 4, 4, (1, 2)), (128, 128, 64, 4, 8, (1, 2)), (128, 128, 128, 3, 8, (1,)))
_PERSISTENT = (
    (64, 128, 128, 4, 4), (128, 128, 128, 4, 8), (128, 256, 128, 3, 8), (128, 256, 128, 4, 8), (256, 128, 128, 4, 8),
)  # fmt: skip


def make_configs(config_type: type[ScaledConfig]) -> tuple[ScaledConfig, ...]:
    """The vendor's call first, then all kernels."""
    return tuple(config_type(*knobs) for knobs in _knobs())


def _knobs() -> Iterator[tuple[Any, ...]]:
    yield ("torch",)
    for place, (block_n, block_k, num_warps, num_stages) in enumerate(_GEMV):
        for pdl in (1, 2) if place in (1, 5) else (2,):
            yield "gemv", 0, block_n, block_k, 1, num_warps, num_stages, 0, pdl
    for block_n, block_k, num_warps, pdl, ctas_per_sm in stream_shapes(_STREAM):
        yield "stream", 0, block_n, 2 * block_k, 1, num_warps, 1, 0, pdl, 0, ctas_per_sm
    for kind, shapes in (("tma", _SWAPPED), ("tiled", _TILED_SWAPPED)):
        for block_m, block_n, block_k, num_stages, splits in shapes:
            for split_k in splits:
                for pdl, prefetch_kib in _STARTS if block_m <= 16 and kind == "tma" else _STARTS[:2]:
                    yield kind, block_m, block_n, block_k, split_k, 4, num_stages, 1, pdl, prefetch_kib
    for kind, shapes in (("tma", _UPRIGHT), ("tiled", _TILED)):
        for block_m, block_n, block_k, num_stages, num_warps, splits in shapes:
            for split_k in splits:
                yield kind, block_m, block_n, block_k, split_k, num_warps, num_stages
    for block_m, block_n, block_k, num_stages, num_warps in _PERSISTENT:
        yield "persistent", block_m, block_n, block_k, 1, num_warps, num_stages, 0, 0, 0, 1


_TILES_OF = "ceil_div(m, max(1, block_m)) * ceil_div(n, max(1, block_n))"

RULES = (
    Rule("block_m no taller than m needs", "block_m <= max(16, next_pow2(m))"),
    Rule(
        "weights are read at most 4 times (tiles that loop over K once)",
        "block_m == 0 or block_m >= 64 or m <= 4 * block_m",
    ),
    Rule("block_n no wider than n needs", "block_n <= max(64, next_pow2(n))"),
    Rule("every split of k has a block", "split_k < 2 or split_k * block_k <= k"),
    Rule("at most 4 rows of x (gemv)", "kind != GEMV or m <= 4"),
    Rule("at most 2 rows of x (stream)", "kind != STREAM or m <= 2"),
    Rule("block_k is the next power of two of k (stream)", "kind != STREAM or (k <= block_k and 2 * k > block_k)"),
    Rule(
        "products of a tile fit registers (gemv, stream)",
        "kind < GEMV or kind > STREAM or next_pow2(m) * block_n * block_k <= 4096 * num_warps",
    ),
    Rule("accumulator fits registers", "block_m * block_n <= 4096 * max(1, num_warps)"),
    Rule(
        "stages of x and w fit shared memory",
        "(num_stages + pdl // 2) * (block_m + block_n) * block_k + kind // PERSISTENT * 32768 + 1024"
        " <= smem_bytes_per_block",
    ),
    Rule(
        "partial sums fit the workspace",
        f"split_k < 2 or {_TILES_OF} * split_k * max(4, block_m) * block_n * 4 <= 67108864",
    ),
    Rule("a counter for every tile", f"split_k < 2 or {_TILES_OF} <= 65536"),
    Rule("threads fit a block", "32 * num_warps <= max_threads_per_block"),
    Rule("tensor descriptors need capability 9.0", "kind < TMA or capability >= 90"),
    Rule("tensor descriptors need 16-byte rows and pointers", "kind < TMA or alignment >= 16"),
    Rule("dependent launch needs capability 9.0", "pdl == 0 or capability >= 90"),
    Rule("weights read before the wait must be static", "pdl < 2 or static_weights == 1"),
)

_TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256))
_TILE_WAVES = tile_wave_features(_TILES)
_BYTES = "(2 * m * n + m * k + n * k)"

_FEATURES = (
    Feature("m", "m"),
    Feature("n", "n"),
    Feature("k", "k"),
    Feature("alignment", "alignment", "bytes"),
    Feature("weight_kib", "n * k // 1024"),
    Feature("weight_l2_percent", "n * k * 100 // l2_bytes", "weight bytes as a share of L2"),
    Feature("io_kib", "m * (2 * n + k) // 1024", "bytes of x and y"),
    Feature("intensity", f"2 * m * n * k // {_BYTES}", "operations per byte moved"),
    Feature("dram_ns", f"{_BYTES} // dram_gb_s", "time to move all bytes once"),
    Feature("math_ns", "m * n * k // (tflops_16bit * 1000)", "time of the arithmetic at full rate"),
    *tile_features(_TILES),
    *_TILE_WAVES,
    Feature("m_in_16", "m % 16"),
    Feature("k_per_sm", "k * ceil_div(n, 64) // sm_count", "k steps each SM would do at 64 columns a tile"),
)

# Tiles of the vendor's routines are taken to be 128 x 256.
_BLOCK_M = "max(block_m, (kind >= GEMV) * (kind <= STREAM) * next_pow2(m), (kind == TORCH) * 128)"
_BLOCK_N = "max(block_n, (kind == TORCH) * 256)"
_BLOCK_K = "max(block_k, 128)"
_SPLIT_K = "max(split_k, 1)"
_K_SHARE = f"ceil_div(k, {_SPLIT_K})"
_STEPS = f"ceil_div({_K_SHARE}, {_BLOCK_K})"
_PROGRAMS = f"(ceil_div(m, {_BLOCK_M}) * ceil_div(n, {_BLOCK_N}) * {_SPLIT_K})"
_RESIDENT = (
    "max(1, ctas_per_sm, (kind == GEMV) * min(16, 48 // max(num_warps, 1)), (kind > STREAM) * smem_bytes_per_sm"
    " // ((num_stages + pdl // 2) * (block_m + block_n) * block_k + 2048))"
)

_CONFIG_FEATURES = (
    *(
        Feature(name, name)
        for name in ("kind", "block_k", "num_warps", "num_stages", "swap_ab", "pdl", "prefetch_kib", "ctas_per_sm")
    ),
    Feature("block_m", _BLOCK_M),
    Feature("block_n", _BLOCK_N),
    Feature("split_k", _SPLIT_K),
    Feature("programs", _PROGRAMS),
    Feature("programs_per_sm", f"{_PROGRAMS} * 100 // sm_count", "percent"),
    Feature("resident", _RESIDENT, "programs that an SM holds at once"),
    *wave_features(_PROGRAMS, _RESIDENT),
    Feature("steps", _STEPS, "steps along k of a program"),
    Feature("k_padding", f"{_STEPS} * {_BLOCK_K} * {_SPLIT_K} * 100 // k", "percent"),
    Feature("n_padding", f"ceil_div(n, {_BLOCK_N}) * {_BLOCK_N} * 100 // n", "percent"),
    Feature("m_padding", f"ceil_div(m, {_BLOCK_M}) * {_BLOCK_M} * 100 // m", "percent"),
    Feature("reads_of_w", f"ceil_div(m, {_BLOCK_M})"),
    Feature("program_kib", f"{_BLOCK_N} * {_K_SHARE} // 1024", "weights that a program reads"),
    Feature("k_rest", f"k % {_BLOCK_K}"),
    Feature("n_rest", f"n % {_BLOCK_N}"),
)


def make_op(
    problem_type: type[Problem],
    config_type: type[ScaledConfig],
    *,
    rules: Sequence[Rule],
    features: Sequence[Feature] = (),
    spread: Sequence[Mapping[str, Any]] = ({},),
) -> Op:
    """The op of these types, whose rules and features are added to the common ones."""
    configs = make_configs(config_type)
    return Op(
        name=problem_type.OP,
        problem_type=problem_type,
        config_type=config_type,
        space=ConfigSpace(problem_type.OP, configs, (*RULES, *rules)),
        features=(*_FEATURES, *features),
        tree_features=("m", "n", "k", "alignment", *(feature.name for feature in features)),
        config_features=_CONFIG_FEATURES,
        vendor=configs[0],
        flops="2 * m * n * k",
        bytes_moved=_BYTES,
        weight_bytes="n * k",
        analytic_ns=analytic_ns(_PROGRAMS, _BLOCK_M, _BLOCK_N, f"{_STEPS} * {_BLOCK_K}", "1", rate=2),
        partition_tree_features=tuple(feature.name for feature in _TILE_WAVES),
        spread=tuple(spread),
        rate=2,
    )
