"""Axes, config space and rules, features, flops and bytes of ``mm``. Standard library and core only.

``y = x @ w.T``: x [M, K] and w [N, K] with either axis contiguous, y [M, N] with contiguous rows; float32
accumulation. The configs are those of the template for ``mm`` of PyTorch Inductor (``torch.compile`` with
``max_autotune``), so that what others measured of it can be read: see ``aks.data.autoheuristic``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.op import Op
from aks.ops.tiles import (
    PARTITION_FEATURES,
    analytic_ns,
    arithmetic_ns,
    tile_features,
    tile_wave_features,
    wave_features,
)

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class MmProblem(Problem):
    """One matrix product.

    dtype is that of x, w and y; fp32 is multiplied in TF32, by every config. x_layout is ``mk`` (rows of
    K contiguous elements) or ``km`` (given transposed: rows of M), w_layout ``nk`` (as ``nn.Linear`` has
    it) or ``kn``. alignment is the largest power of two, up to 16, that divides the pointers and the row
    strides of x and w in bytes; rows of y are contiguous, so n says how they are aligned.
    """

    OP: ClassVar[str] = "mm"
    AXES: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": tuple(ELEMENT_BYTES),
        "x_layout": ("mk", "km"),
        "w_layout": ("nk", "kn"),
        "alignment": (2, 4, 8, 16),
    }

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    x_layout: str = "mk"
    w_layout: str = "nk"
    alignment: int = 16


@dataclass(frozen=True, slots=True)
class MmConfig(Config):
    """One way to multiply. The vendor's call has no knobs: they are 0.

    kind
        ``aten``: the vendor's call, ``torch.mm``. ``triton``: a program for each tile of y.
    num_stages
        As Triton takes it: steps along k that a pipeline holds.
    """

    OP: ClassVar[str] = "mm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": ("aten", "triton")}

    kind: str
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    num_stages: int = 0
    num_warps: int = 0


VENDOR = MmConfig(kind="aten")

_BLOCKS = (16, 32, 64, 128, 256)
_STAGES = range(1, 9)
_WARPS = (1, 2, 4, 8, 16)
# Wide on purpose: whatever a file of records may hold. Measuring takes the configs that a file has.
CONFIGS = (VENDOR, *(MmConfig("triton", *knobs) for knobs in product(_BLOCKS, _BLOCKS, _BLOCKS, _STAGES, _WARPS)))

BYTES = "2 * max(1, dtype)"
"""Formula: of an element. dtype is 0 for bf16, 1 for fp16, 2 for fp32."""
# Formulas cannot subtract: s * s // (s + 1) is s - 1 for s >= 1. The step being multiplied needs no buffer of its
# own beside those that are under way. Held against the records of A100: all 5,030 cells with more failed, no other.
_BUFFERS = "max(1, num_stages * num_stages // (num_stages + 1))"
_SMEM = f"{_BUFFERS} * (block_m + block_n) * block_k * {BYTES}"

# Rules say what cannot run, nothing of what is wise: all that was recorded as timed must be legal.
RULES = (
    Rule("threads fit a block", "32 * num_warps <= max_threads_per_block"),
    Rule(
        # The records of H100 come from two compilers. One holds less where TF32 has an operand that is not
        # contiguous along k, which Hopper's tensor cores cannot read from shared memory: 84 cells ran, slowly.
        "stages of x and w fit shared memory (TF32 on capability 9.0 may hold less unless both are contiguous along k)",
        f"{_SMEM} <= smem_bytes_per_block or (dtype == 2 and capability >= 90 and (x_layout == 1 or w_layout == 1))",
    ),
)

_IO = "(m * n + m * k + n * k)"

_TILES = ((32, 32), (64, 64), (64, 128), (128, 128), (128, 256))
_TILE_WAVES = tile_wave_features(_TILES)

FEATURES = (
    Feature("m", "m"),
    Feature("n", "n"),
    Feature("k", "k"),
    Feature("dtype", "dtype", "0: bf16, 1: fp16, 2: fp32"),
    Feature("x_km", "x_layout", "x given as [K, M]"),
    Feature("w_kn", "w_layout", "w given as [K, N]"),
    Feature("alignment", "alignment", "bytes"),
    Feature("x_kib", f"m * k * {BYTES} // 1024"),
    Feature("w_kib", f"n * k * {BYTES} // 1024"),
    Feature("y_kib", f"m * n * {BYTES} // 1024"),
    Feature("x_l2_percent", f"m * k * {BYTES} // (l2_bytes // 100)", "bytes of x as a share of L2"),
    Feature("w_l2_percent", f"n * k * {BYTES} // (l2_bytes // 100)", "bytes of w as a share of L2"),
    Feature("intensity", f"m * n * k // {_IO}", "operations per element moved"),
    Feature("dram_ns", f"{_IO} * {BYTES} // dram_gb_s", "time to move all bytes once"),
    Feature("math_ns", "m * n * k // (tflops_16bit * 500) * max(1, dtype)", "at full rate: TF32 has half of 16 bits'"),
    *tile_features(_TILES),
    *_TILE_WAVES,
    *PARTITION_FEATURES,
    Feature("m_in_16", "m % 16"),
    Feature("n_in_16", "n % 16"),
    Feature("k_in_16", "k % 16"),
    Feature("k_per_sm", "k * ceil_div(n, 64) // sm_count", "k steps each SM would do at 64 columns a tile"),
)

# What a config makes of a problem: tiles of the vendor's routines are taken to be 128 x 256 x 64.
_BLOCK_M = "max(block_m, (kind == ATEN) * 128)"
_BLOCK_N = "max(block_n, (kind == ATEN) * 256)"
_BLOCK_K = "max(block_k, (kind == ATEN) * 64)"
_TILES_M, _TILES_N, _STEPS = f"ceil_div(m, {_BLOCK_M})", f"ceil_div(n, {_BLOCK_N})", f"ceil_div(k, {_BLOCK_K})"
_PROGRAMS = f"({_TILES_M} * {_TILES_N})"
_TILE, _STEPS_K = f"{_BLOCK_M} * {_BLOCK_N}", f"{_STEPS} * {_BLOCK_K}"
# Programs that an SM holds at once, by shared memory, by warps, and by registers (accumulators, and 64 a thread).
_RESIDENT = (
    f"max(1, min(32 * kind, smem_bytes_per_sm // ({_SMEM} + 1024), 64 // max(1, num_warps),"
    " registers_per_sm // (block_m * block_n + 2048 * num_warps + 1)))"
)
# Elements that all programs load: x once for each column of tiles, w once for each row of tiles.
_LOADS = f"({_TILES_M} * n * k + {_TILES_N} * m * k)"

CONFIG_FEATURES = (
    *(Feature(name, name) for name in ("kind", "num_stages", "num_warps")),
    Feature("block_m", _BLOCK_M),
    Feature("block_n", _BLOCK_N),
    Feature("block_k", _BLOCK_K),
    Feature("programs", _PROGRAMS),
    Feature("programs_per_sm", f"{_PROGRAMS} * 100 // sm_count", "percent"),
    Feature("resident", _RESIDENT, "programs that an SM holds at once"),
    Feature("resident_warps", f"{_RESIDENT} * num_warps", "on an SM"),
    *wave_features(_PROGRAMS, _RESIDENT),
    Feature("steps", _STEPS, "steps along k of a program"),
    Feature("m_padding", f"{_TILES_M} * {_BLOCK_M} * 100 // m", "percent"),
    Feature("n_padding", f"{_TILES_N} * {_BLOCK_N} * 100 // n", "percent"),
    Feature("k_padding", f"{_STEPS} * {_BLOCK_K} * 100 // k", "percent"),
    Feature("k_rest", f"k % {_BLOCK_K}"),
    Feature("smem_bytes", _SMEM, "of a program"),
    Feature("under_way_bytes", f"{_SMEM} * {_RESIDENT}", "on an SM, of all programs that it holds"),
    Feature("accumulators", "block_m * block_n // max(1, 32 * num_warps)", "of a thread"),
    Feature("program_work", f"{_BLOCK_M} * {_BLOCK_N} * k // 1024", "multiplications of a program, in 1024s"),
    Feature("reads_of_x", _TILES_N),
    Feature("reads_of_w", _TILES_M),
    Feature("loads_kib", f"{_LOADS} * {BYTES} // 1024", "what all programs load, from L2 if all goes well"),
    Feature("loads_l2_percent", f"{_LOADS} * {BYTES} // (l2_bytes // 100)", "as a share of L2"),
    Feature("loads_percent", f"{_LOADS} // k * 100 // (m + n)", "loads of an element of x or w"),
    Feature("loads_ns", f"{_LOADS} * {BYTES} // dram_gb_s", "time of all loads, did they come from DRAM"),
    Feature(
        "tiles_ns",
        f"{arithmetic_ns(_PROGRAMS, _TILE, _STEPS_K)} * max(1, dtype)",
        "time of the arithmetic of whole tiles in whole waves, at full rate",
    ),
)

MM = Op(
    name="mm",
    problem_type=MmProblem,
    config_type=MmConfig,
    space=ConfigSpace("mm", CONFIGS, RULES),
    features=FEATURES,
    tree_features=("m", "n", "k", "dtype", "x_km", "w_kn", "alignment"),
    config_features=CONFIG_FEATURES,
    vendor=VENDOR,
    # The roofline takes fp32 to run at the 16-bit rate, twice that of TF32: a bound that is too low, not wrong.
    flops="2 * m * n * k",
    bytes_moved=f"{BYTES} * {_IO}",
    weight_bytes=f"{BYTES} * n * k",
    analytic_ns=analytic_ns(_PROGRAMS, _BLOCK_M, _BLOCK_N, _STEPS_K, BYTES),
    partition_tree_features=tuple(feature.name for feature in _TILE_WAVES),
)
