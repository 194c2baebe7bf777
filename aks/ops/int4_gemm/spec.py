"""Axes, config space and rules, features, flops and bytes of ``int4_gemm``. Standard library and core only.

``y = x @ w.T + bias``: x [M, K] bf16, w [N, K] of 4 bits, y [M, N] and the bias [N] bf16, sums float32. A weight is
``(q - zero) * scale``, q from 0 to 15, with a scale (bf16) and a zero (from 0 to 15; 8 where there are none) for each
row and group of k. A last group may be short, as AutoGPTQ has it: any k goes with any group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.gemm.spec import SPLIT_COUNTERS, SPLIT_WORKSPACE_BYTES, TILE_RULES
from aks.ops.op import Op
from aks.ops.tiles import Tiling, arithmetic_ns, tile_features, tile_wave_features

KINDS = ("torch", "dequantized", "unpacked", "burst", "ring", "double", "sparse")
GROUPS = (32, 64, 128)
DENSITIES = (5, 10, 25, 50, 100)


@dataclass(frozen=True, slots=True)
class Int4GemmProblem(Problem):
    """One product.

    group: of k, how many weights share a scale. zeros: whether there are zero points. has_bf16: whether a bf16 copy of
    the weights is at hand, which is four times their memory. density: about how many percent of x are not 0, as the
    caller knows of the layer before; less than 100 says, too, that a copy of the weights is at hand that lies k by k
    (``packing.by_k``). alignment is the largest power of two, up to 16, that divides the pointers and row strides of x
    and y in bytes. static_weights says that no kernel still running may be writing the weights: only then may they be
    read before the preceding kernel has ended.
    """

    OP: ClassVar[str] = "int4_gemm"
    AXES: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("bf16",),
        "group": GROUPS,
        "zeros": (False, True),
        "has_bf16": (False, True),
        "density": DENSITIES,
        "alignment": (2, 4, 8, 16),
        "static_weights": (False, True),
    }

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    group: int = 128
    zeros: bool = False
    has_bf16: bool = False
    density: int = 100
    alignment: int = 16
    static_weights: bool = False


@dataclass(frozen=True, slots=True)
class Int4GemmConfig(Config):
    """One way to multiply. Knobs that a kind does not have are 0.

    kind
        ``torch``: PyTorch's own kernel for such weights, tinygemm (``torch._weight_int4pack_mm``), or what it does not
        take dequantised at each call and multiplied. ``dequantized``: the vendor's product with a bf16 copy of the
        weights. ``unpacked``: the same with weights that PyTorch's operations dequantise at each call, which many rows
        of x outweigh. The others are our kernel (``kernels.int4_kernel``), by how it asks for weights: ``burst`` for
        all of a program's share at once, and so with as many splits of k as that takes; ``ring`` for one block of
        128 k whenever one was used; ``double`` for blocks_k of them at a time. ``sparse`` (``sparse.sparse_kernel``) is
        for one row of x, and reads no weights of a k whose x is 0.
    blocks_k
        Blocks of 128 k whose weights a warp holds at once; ``double`` holds twice as many. Of ``sparse``: that a
        program has.
    num_stages
        Steps along k whose x is under way at once, through shared memory; 1: it comes when it is needed.
    scale_sums
        0 scales weights, rounded to bf16; 1 scales sums of groups, in float32.
    pdl
        Programmatic dependent launch, as of ``GemmConfig``: 0 none, 1 early start, 2 weights before the wait.
    """

    OP: ClassVar[str] = "int4_gemm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": KINDS}

    kind: str
    block_m: int = 0
    block_n: int = 0
    blocks_k: int = 0
    split_k: int = 0
    num_warps: int = 0
    num_stages: int = 0
    scale_sums: int = 0
    pdl: int = 0


VENDOR = Int4GemmConfig("torch")
MAX_SPLITS = 16

# What won somewhere, or nearly, of a sweep of up to 48 configs for each of 60 problems on an H200, with other splits.
# (block_m, block_n, blocks_k, num_warps, scale_sums, pdls) of burst. Where weights are not static, early starts and
# none are left of them.
_BURST = (
    (8, 64, 8, 4, 1, (2,)), (8, 64, 4, 4, 1, (2,)), (8, 128, 4, 8, 1, (0, 1, 2)), (8, 128, 4, 8, 0, (2,)),
    (8, 128, 2, 8, 1, (2,)), (8, 128, 4, 4, 1, (2,)), (16, 64, 4, 4, 1, (0, 1, 2)), (16, 64, 4, 4, 0, (2,)),
    (16, 128, 4, 8, 1, (2,)),
)  # fmt: skip
# (kind, block_m, block_n, blocks_k, num_warps, num_stages, split_ks, pdls). Tall blocks of x have no registers for sums
# of groups.
_LOOPS = (
    ("double", 8, 32, 4, 2, 3, (1, 2), (2,)),
    ("double", 8, 64, 2, 4, 3, (1, 2, 4), (2,)),
    ("double", 8, 64, 4, 4, 1, (2, 4, 6), (2,)),
    ("double", 8, 128, 4, 4, 3, (2, 4), (0, 1, 2)),
    ("double", 8, 128, 2, 8, 3, (4, 8), (2,)),
    ("ring", 8, 64, 2, 2, 3, (1, 2), (2,)),
    ("ring", 8, 64, 4, 4, 3, (2, 4), (2,)),
    ("ring", 8, 128, 2, 8, 1, (4, 8), (2,)),
    ("ring", 8, 128, 4, 8, 1, (1, 2), (2,)),
    ("double", 16, 64, 4, 4, 3, (1, 2, 4), (2,)),
    ("double", 16, 128, 2, 4, 3, (2, 4, 8), (0, 1, 2)),
    ("ring", 16, 64, 4, 4, 4, (1, 2, 4), (2,)),
    ("ring", 16, 128, 4, 4, 3, (1, 2, 4), (2,)),
    ("ring", 16, 128, 4, 8, 3, (4,), (2,)),
    ("double", 32, 64, 4, 4, 3, (1, 2, 4), (2,)),
    ("double", 32, 64, 2, 4, 3, (8,), (2,)),
    ("ring", 32, 64, 4, 4, 3, (1, 2, 4), (0, 1, 2)),
    ("ring", 32, 128, 2, 4, 3, (1, 2, 4), (2,)),
    ("double", 64, 64, 2, 4, 3, (2, 4), (2,)),
    ("double", 64, 64, 4, 4, 3, (1, 2), (2,)),
    ("ring", 64, 64, 2, 4, 3, (2, 4), (2,)),
    ("ring", 64, 64, 4, 4, 3, (1, 2), (0, 1, 2)),
    ("double", 64, 128, 1, 4, 3, (1, 2), (2,)),
    ("double", 64, 256, 1, 8, 3, (1,), (2,)),
    ("double", 128, 64, 2, 4, 3, (1, 2), (2,)),
    ("ring", 128, 64, 2, 4, 3, (1,), (2,)),
    ("double", 128, 128, 2, 8, 3, (1, 2), (0, 2)),
    ("ring", 128, 128, 2, 8, 3, (1, 2, 4), (2,)),
)  # fmt: skip
# (block_n, blocks_k, num_warps, pdl) of sparse.
_SPARSE = (
    (256, 1, 2, 1), (256, 2, 2, 1), (512, 1, 4, 0), (512, 1, 4, 1), (512, 2, 4, 1), (512, 4, 4, 1), (1024, 2, 8, 1),
    (1024, 4, 8, 1),
)  # fmt: skip


def _configs() -> Iterator[Int4GemmConfig]:
    yield VENDOR
    yield Int4GemmConfig("dequantized")
    yield Int4GemmConfig("unpacked")
    for block_m, block_n, blocks_k, num_warps, scale_sums, pdls in _BURST:
        for pdl in pdls:
            yield Int4GemmConfig("burst", block_m, block_n, blocks_k, 0, num_warps, 1, scale_sums, pdl)
    for kind, block_m, block_n, blocks_k, num_warps, num_stages, splits, pdls in _LOOPS:
        for split_k in splits:
            # The middle split has the other starts.
            for pdl in pdls if split_k == splits[len(splits) // 2] else (2,):
                yield Int4GemmConfig(
                    kind, block_m, block_n, blocks_k, split_k, num_warps, num_stages, int(block_m <= 32), pdl
                )
    for block_n, blocks_k, num_warps, pdl in _SPARSE:
        yield Int4GemmConfig("sparse", 1, block_n, blocks_k, 0, num_warps, 1, 0, pdl)


CONFIGS = tuple(_configs())

BLOCKS = "ceil_div(k, 128)"
SPLITS = f"max(1, split_k, (kind == BURST or kind == SPARSE) * ceil_div({BLOCKS}, max(1, blocks_k)))"
"""Programs that share a tile's k."""
_PER_SPLIT = f"(ceil_div(ceil_div({BLOCKS}, {SPLITS}), max(1, blocks_k)) * blocks_k)"
TILES = "(ceil_div(m, max(1, block_m)) * ceil_div(n, max(1, block_n)))"
_IS_WGMMA = "(num_warps % 4 == 0 and block_m >= 16)"
_WARP_ROWS = "(block_n // max(1, 16 * num_warps))"  # 16 rows each
_STEP_X = "blocks_k * block_m"
# Of 32 bits, in a thread: weights and what x and the operand take on their way, sums, addresses. Fitted to what the
# compiler takes.
_REGISTERS = (
    f"(kind == SPARSE) * 160 + (kind != SPARSE) * (blocks_k * {_WARP_ROWS} * 8 * (1 + (kind == DOUBLE))"
    f" + (num_stages < 2) * (2 * {_STEP_X} // max(1, num_warps)) + (num_stages > 1) * 8"
    f" + (not {_IS_WGMMA}) * 2 * block_m"
    f" + {_IS_WGMMA} * ((blocks_k > 1) * 16 * {_WARP_ROWS} + {_STEP_X} // max(1, num_warps))"
    f" + {_WARP_ROWS} * block_m // 2 * (1 + scale_sums)"
    f" + (8 + 24 * {_IS_WGMMA}) * {_WARP_ROWS} + 28 + 8 * {_IS_WGMMA})"
)
_SHARED_BYTES = "(256 * block_m * max(1, (num_stages > 1) * num_stages * blocks_k))"

RULES = (
    Rule("many rows of x (unpacked)", "kind != UNPACKED or m >= 64"),
    Rule("a bf16 copy of the weights is at hand (dequantized)", "kind != DEQUANTIZED or has_bf16 == 1"),
    Rule(
        "one row of x, known to have zeros, and weights k by k (sparse)", "kind != SPARSE or (m == 1 and density < 100)"
    ),
    *TILE_RULES,
    Rule("weights are dequantised at most 16 times", "block_m == 0 or m <= 16 * block_m"),
    Rule("at most 16 splits of k", f"kind == SPARSE or {SPLITS} <= {MAX_SPLITS}"),
    Rule("every split of k has a block", f"kind < BURST or {SPLITS} * {_PER_SPLIT} < {BLOCKS} + {_PER_SPLIT}"),
    Rule("k is two steps or more (ring, double)", f"kind < RING or kind == SPARSE or {_PER_SPLIT} >= 2 * blocks_k"),
    Rule("weights, sums and operands fit registers", f"({_REGISTERS}) <= 255 and ({_REGISTERS}) * num_warps <= 2048"),
    Rule("stages of x fit shared memory", f"{_SHARED_BYTES} + 2048 <= smem_bytes_per_block"),
    Rule(
        "partial sums fit the workspace",
        # Sparse: and a list of the k that are not 0.
        f"({SPLITS} < 2 and kind != SPARSE)"
        f" or {TILES} * {SPLITS} * (block_m * block_n + (kind == SPARSE) * 128 * blocks_k) * 4"
        f" <= {SPLIT_WORKSPACE_BYTES}",
    ),
    Rule("a counter for every tile", f"({SPLITS} < 2 and kind != SPARSE) or {TILES} <= {SPLIT_COUNTERS}"),
    Rule("places of scales fit 32 bits", "kind < BURST or (n + 64) * (k + 128) // group < 1073741824"),
    Rule("arithmetic of bf16 pairs needs capability 9.0", "kind < BURST or capability >= 90"),
    Rule("weights read before the wait must be static", "pdl < 2 or static_weights == 1"),
)

_TILES = ((16, 64), (64, 64), (64, 128), (128, 128))
_TILE_WAVES = tile_wave_features(_TILES)
WEIGHT_BYTES = "(n * k // 2 + n * ceil_div(k, group) * (2 + 2 * zeros))"
_IO_BYTES = "2 * m * (n + k)"

FEATURES = (
    Feature("m", "m"),
    Feature("n", "n"),
    Feature("k", "k"),
    Feature("group", "group", "weights of a scale"),
    Feature("zeros", "zeros"),
    Feature("has_bf16", "has_bf16"),
    Feature("density", "density", "of x that is not 0, percent"),
    Feature("alignment", "alignment", "bytes"),
    Feature("weight_kib", f"{WEIGHT_BYTES} // 1024"),
    Feature("weight_l2_percent", f"{WEIGHT_BYTES} * 100 // l2_bytes", "weight bytes as a share of L2"),
    Feature("io_kib", f"{_IO_BYTES} // 1024", "bytes of x and y"),
    Feature("intensity", f"2 * m * n * k // ({WEIGHT_BYTES} + {_IO_BYTES})", "operations per byte moved"),
    Feature("dram_ns", f"({WEIGHT_BYTES} + {_IO_BYTES}) // dram_gb_s", "time to move all bytes once"),
    Feature("dense_ns", f"(2 * n * k + {_IO_BYTES}) // dram_gb_s", "the same with weights of bf16"),
    Feature("math_ns", "m * n * k * 2 // (tflops_16bit * 1000)", "time of the arithmetic at full rate"),
    *tile_features(_TILES),
    *_TILE_WAVES,
    Feature("m_in_16", "m % 16"),
    Feature("k_blocks", BLOCKS, "of 128"),
    Feature("k_per_sm", f"{BLOCKS} * ceil_div(n, 64) // sm_count", "blocks of 64 x 128 weights for each SM"),
    Feature("tinygemm", "n % 8 == 0 and k % 32 == 0 and k % group == 0", "whether PyTorch's kernel takes the weights"),
)

# Tiles of the vendor's product are taken to be 128 x 256, those of tinygemm to be 16 x 64.
_TILING = Tiling(
    block_m="max(block_m, (kind == TORCH) * 16, (kind > TORCH) * (kind < BURST) * 128)",
    block_n="max(block_n, (kind == TORCH) * 64, (kind > TORCH) * (kind < BURST) * 256)",
    block_k="max(128, 128 * blocks_k)",
    resident=(
        f"max(1, (kind >= BURST) * min(2048 // (({_REGISTERS}) * max(1, num_warps)),"
        f" smem_bytes_per_sm // ({_SHARED_BYTES} + 2048)))"
    ),
    splits=SPLITS,
)
KNOBS = ("kind", "blocks_k", "num_warps", "num_stages", "scale_sums", "pdl")
_CONFIG_FEATURES = (
    *_TILING.features(KNOBS, _TILING.block_n, " // 2"),
    Feature("n_rest", f"n % {_TILING.block_n}"),
    Feature("registers", _REGISTERS, "of a thread"),
    Feature(
        "flight_kib", "blocks_k * block_n * (1 + (kind == DOUBLE)) // 16", "weights that a program waits for at once"
    ),
)

_WAVES = f"ceil_div({_TILING.programs}, sm_count)"
_MOVED_BYTES = (
    # Unpacking goes over the weights many times.
    f"((kind == DEQUANTIZED) * 2 * n * k + (kind == UNPACKED) * 32 * n * k + (kind != DEQUANTIZED) * {WEIGHT_BYTES}"
    f" * ((kind != SPARSE) * 100 + (kind == SPARSE) * density) // 100 + {_IO_BYTES})"
)
# As ``aks.ops.tiles.analytic_ns``, with weights of half a byte.
_ANALYTIC_NS = (
    f"{_MOVED_BYTES} // dram_gb_s * ({_WAVES} * sm_count) // {_TILING.programs}"
    f" + {_WAVES} * (2 * {_TILING.block_m} + (1 + 3 * (kind > TORCH) * (kind < BURST)) * {_TILING.block_n} // 2)"
    f" * {_TILING.padded_k} * 1000 // (64 * clock_mhz)"
    f" + {arithmetic_ns(_TILING.programs, f'{_TILING.block_m} * {_TILING.block_n}', _TILING.padded_k)}"
)

INT4_GEMM = Op(
    name="int4_gemm",
    problem_type=Int4GemmProblem,
    config_type=Int4GemmConfig,
    space=ConfigSpace("int4_gemm", CONFIGS, RULES),
    features=FEATURES,
    tree_features=("m", "n", "k", "group", "zeros", "has_bf16", "density", "alignment"),
    config_features=_CONFIG_FEATURES,
    vendor=VENDOR,
    flops="2 * m * n * k",
    bytes_moved=f"{WEIGHT_BYTES} + {_IO_BYTES}",
    weight_bytes=WEIGHT_BYTES,
    analytic_ns=_ANALYTIC_NS,
    partition_tree_features=tuple(feature.name for feature in _TILE_WAVES),
    # Groups of 128 without zeros, with a bf16 copy, are what everything is compared on.
    spread=(
        {"group": 128, "zeros": False, "has_bf16": True},
        {"group": 128, "zeros": True, "has_bf16": True},
        {"group": 128, "zeros": False, "has_bf16": False},
        {"group": 64, "zeros": False, "has_bf16": True},
        {"group": 32, "zeros": True, "has_bf16": False},
    ),
)
