"""Configs, rules and features of products of 8-bit matrices with scales. Standard library and core only.

``y = (x * x_scale) @ (w * w_scale).T + bias``: x [M, K], w [N, K] of a byte an element, scales float32, y [M, N] and
the bias [N] bf16. Products are added in int32 or float32, then scaled: all of K, or a block of it at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.gemm.spec import KNOBS, LAUNCH_RULES, PRODUCTS_RULE, SHAPE_RULES
from aks.ops.op import Op
from aks.ops.tiles import Tiling, analytic_ns, tile_features, tile_wave_features

BLOCK = 128
"""Elements along K, and of w along N, that have one scale where scales are of blocks."""
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


# What was left of measuring 259 configs on 328 problems of training families (H200): what was the best somewhere, or
# nearly so where nothing else was.

# prefetch_kib of each start (``pdl``).
_STARTS = (0, 32, 32)
# (block_n, block_k, num_warps, num_stages, pdls) of matrix-vector kernels.
_GEMV = (
    (2, 1024, 1, 1, (1, 2)), (2, 2048, 4, 1, (2,)), (2, 4096, 8, 1, (2,)), (4, 1024, 4, 1, (2,)),
    (2, 1024, 1, 0, (2,)), (2, 2048, 1, 0, (2,)), (4, 1024, 1, 0, (2,)), (2, 4096, 2, 0, (2,)), (4, 4096, 4, 0, (2,)),
)  # fmt: skip
# (block_n, block_k, num_warps, ctas_per_sm), all with weights in registers early.
_STREAM = ((1, 2048, 1, 20), (2, 2048, 2, 8), (2, 4096, 2, 8), (1, 8192, 4, 5), (2, 8192, 4, 4), (1, 16384, 8, 2))
# (block_m, block_n, block_k, num_stages, split_k, pdls) of y.T = w @ x.T.
_SWAPPED = (
    (8, 64, 256, 4, 1, (0, 1)), (8, 64, 256, 4, 4, (1,)), (8, 64, 512, 3, 1, (0, 1, 2)), (8, 64, 512, 3, 2, (0,)),
    (8, 64, 512, 3, 4, (0, 2)), (8, 64, 512, 4, 1, (0, 1)), (8, 64, 1024, 2, 1, (1, 2)), (8, 64, 1024, 2, 2, (2,)),
    (8, 128, 256, 4, 1, (2,)),
    (16, 64, 128, 6, 1, (0, 1)), (16, 64, 256, 4, 1, (0, 1)), (16, 64, 256, 4, 2, (0,)), (16, 64, 256, 4, 4, (1,)),
    (16, 64, 256, 4, 8, (1, 2)), (16, 64, 512, 3, 1, (1, 2)), (16, 64, 512, 3, 4, (1, 2)), (16, 64, 512, 4, 1, (0, 1)),
    (16, 64, 512, 4, 2, (1, 2)), (16, 128, 256, 4, 1, (0,)),
    (32, 64, 128, 6, 1, (0, 1)), (32, 64, 256, 4, 1, (0, 1)), (32, 64, 256, 4, 2, (1,)), (32, 64, 512, 3, 1, (1,)),
    (32, 64, 512, 3, 4, (1,)), (32, 128, 256, 4, 1, (0,)), (32, 128, 256, 4, 2, (0,)),
    (64, 64, 256, 4, 1, (0, 1)), (64, 64, 256, 4, 2, (1,)), (64, 64, 256, 4, 4, (1,)), (64, 128, 128, 5, 1, (0, 1)),
    (64, 128, 256, 4, 1, (0, 1)), (64, 128, 256, 4, 4, (0,)),
    (128, 64, 256, 4, 4, (1,)), (128, 128, 128, 4, 1, (1,)),
)  # fmt: skip
# (block_m, block_n, block_k, num_stages, num_warps, split_k, pdls) of y = x @ w.T.
_UPRIGHT = (
    (64, 128, 128, 4, 4, 1, (0, 1)), (64, 128, 128, 5, 4, 1, (0, 1)), (64, 256, 128, 4, 4, 1, (0,)),
    (64, 256, 128, 4, 4, 2, (0,)), (64, 256, 128, 4, 8, 1, (0,)),
    (128, 128, 128, 4, 8, 1, (0, 1)), (128, 128, 128, 4, 8, 2, (0,)), (128, 256, 128, 3, 8, 1, (0,)),
)  # fmt: skip
# The same of loads through pointers: for what descriptors cannot take, and for GPUs without them.
_TILED_SWAPPED = (
    (16, 64, 256, 4, 1, (0, 1)), (16, 64, 256, 4, 4, (1,)), (32, 64, 256, 4, 1, (0, 1)), (32, 64, 256, 4, 4, (0, 1)),
)  # fmt: skip
_TILED = (
    (64, 64, 128, 4, 4, 1, (0,)), (64, 64, 128, 4, 4, 2, (0,)), (128, 128, 64, 4, 8, 1, (0,)),
    (128, 128, 128, 3, 8, 1, (0,)),
)  # fmt: skip
# (block_m, block_n, block_k, num_stages, num_warps)
_PERSISTENT = ((128, 128, 128, 4, 8), (128, 256, 128, 3, 8), (128, 256, 128, 4, 8), (256, 128, 128, 4, 8))

Swapped = tuple[int, int, int, int, int, tuple[int, ...]]
"""block_m, block_n, block_k, num_stages, split_k and pdls of y.T = w @ x.T."""


def make_configs(config_type: type[ScaledConfig], more: Sequence[tuple[Any, ...]] = ()) -> tuple[ScaledConfig, ...]:
    """The vendor's call first, then all kernels: those of both ops, and these knobs."""
    return tuple(config_type(*knobs) for knobs in (*_knobs(), *more))


def swapped_knobs(kind: str, shapes: Sequence[Swapped]) -> Iterator[tuple[Any, ...]]:
    """Knobs of tiles of y.T = w @ x.T."""
    for block_m, block_n, block_k, num_stages, split_k, pdls in shapes:
        for pdl in pdls:
            yield kind, block_m, block_n, block_k, split_k, 4, num_stages, 1, pdl, _STARTS[pdl]


def _knobs() -> Iterator[tuple[Any, ...]]:
    yield ("torch",)
    for block_n, block_k, num_warps, num_stages, pdls in _GEMV:
        for pdl in pdls:
            yield "gemv", 0, block_n, block_k, 1, num_warps, num_stages, 0, pdl
    for block_n, block_k, num_warps, ctas_per_sm in _STREAM:
        yield "stream", 0, block_n, block_k, 1, num_warps, 1, 0, 2, 0, ctas_per_sm
    yield from swapped_knobs("tma", _SWAPPED)
    yield from swapped_knobs("tiled", _TILED_SWAPPED)
    for kind, shapes in (("tma", _UPRIGHT), ("tiled", _TILED)):
        for block_m, block_n, block_k, num_stages, num_warps, split_k, pdls in shapes:
            for pdl in pdls:
                yield kind, block_m, block_n, block_k, split_k, num_warps, num_stages, 0, pdl, _STARTS[pdl]
    for block_m, block_n, block_k, num_stages, num_warps in _PERSISTENT:
        yield "persistent", block_m, block_n, block_k, 1, num_warps, num_stages, 0, 0, 0, 1


RULES = (
    *SHAPE_RULES,
    PRODUCTS_RULE,
    Rule("accumulator fits registers", "block_m * block_n <= 4096 * max(1, num_warps)"),
    Rule(
        "stages of x and w fit shared memory",
        "(num_stages + pdl // 2) * (block_m + block_n) * block_k + kind // PERSISTENT * 32768 + 1024"
        " <= smem_bytes_per_block",
    ),
    *LAUNCH_RULES,
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
_TILING = Tiling(
    block_m="max(block_m, (kind >= GEMV) * (kind <= STREAM) * next_pow2(m), (kind == TORCH) * 128)",
    block_n="max(block_n, (kind == TORCH) * 256)",
    block_k="max(block_k, 128)",
    resident="max(1, ctas_per_sm, (kind == GEMV) * min(16, 48 // max(num_warps, 1)),"
    " (kind > STREAM) * smem_bytes_per_sm // ((num_stages + pdl // 2) * (block_m + block_n) * block_k + 2048))",
)
_CONFIG_FEATURES = (*_TILING.features(KNOBS, _TILING.block_n, ""), Feature("n_rest", f"n % {_TILING.block_n}"))


def make_op(
    problem_type: type[Problem],
    config_type: type[ScaledConfig],
    *,
    rules: Sequence[Rule],
    more_configs: Sequence[tuple[Any, ...]] = (),
    features: Sequence[Feature] = (),
    spread: Sequence[Mapping[str, Any]] = ({},),
) -> Op:
    """The op of these types, whose rules, configs (their knobs) and features are added to the common ones."""
    configs = make_configs(config_type, more_configs)
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
        analytic_ns=analytic_ns(_TILING.programs, _TILING.block_m, _TILING.block_n, _TILING.padded_k, "1", rate=2),
        partition_tree_features=tuple(feature.name for feature in _TILE_WAVES),
        spread=tuple(spread),
        rate=2,
    )
