"""Axes, config space and rules, features and bytes of ``quantize_rows``. Standard library and core only.

What a product of 8-bit matrices wants of its x: for each row of x [M, K], bf16 or fp16, ``scale = absmax / top`` and
``q = x / scale`` rounded, with top the largest value of the 8-bit type (``aks.ops.quantize_rows.reference.quantize``).
Or that for every group of a row by itself, as scales of blocks want it (``aks.ops.fp8_gemm.spec``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.errors import InvalidProblemError
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.op import Op
from aks.ops.rows import LAUNCH_RULE, MAX_K, MIN_K, RESIDENT, THREADS_RULE, row_features
from aks.ops.scaled.spec import BLOCK

OUT_DTYPES = ("fp8", "int8")
GROUPS = (0, BLOCK)
"""Elements of a row that have one scale; 0: all."""


@dataclass(frozen=True, slots=True)
class QuantizeRowsProblem(Problem):
    """Rows to quantise. out_dtype: ``fp8`` is e4m3.

    group: 0, a scale for each row; or 128, one for every 128 of a row, of ``fp8`` alone, as the products take them.
    alignment is the largest power of two, up to 16, that divides the pointers of x and of the output, and their row
    strides in bytes.
    """

    OP: ClassVar[str] = "quantize_rows"
    AXES: ClassVar[tuple[str, ...]] = ("m", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("bf16", "fp16"),
        "out_dtype": OUT_DTYPES,
        "group": GROUPS,
        "alignment": (1, 2, 4, 8, 16),
    }

    m: int
    k: int
    dtype: str = "bf16"
    out_dtype: str = "fp8"
    group: int = 0
    alignment: int = 16

    def __post_init__(self) -> None:
        Problem.__post_init__(self)  # with slots, super() would look for another class
        if self.group and self.out_dtype != "fp8":
            raise InvalidProblemError(
                f"quantize_rows problem has out_dtype={self.out_dtype!r} and group={self.group}; scales of groups are "
                "for fp8 alone: group must be 0"
            )


@dataclass(frozen=True, slots=True)
class QuantizeRowsConfig(Config):
    """One way to quantise. Knobs that a kind does not have are 0.

    kind
        ``torch``: PyTorch's kernels. ``row``: a program holds block_m whole rows in registers. ``loop``: a program goes
        over block_m rows twice, block_k at a time; the second time they come from a cache. ``tile``: a program has
        block_m rows of block_k elements, for groups, which do not wait for the rest of their row.
    pdl
        Programmatic dependent launch: launched early, and lets the kernel after it be.
    """

    OP: ClassVar[str] = "quantize_rows"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": ("torch", "row", "loop", "tile")}

    kind: str
    block_m: int = 0
    block_k: int = 0
    num_warps: int = 0
    pdl: int = 0


VENDOR = QuantizeRowsConfig(kind="torch")


# (block_m, block_k, num_warps) of tiles: 8 to 32 elements a thread. Scales of one group lie side by side, so that tall
# tiles write whole sectors of them.
_TILES = (
    (1, 128, 1), (1, 256, 1), (1, 512, 1), (1, 512, 2), (1, 1024, 2), (1, 1024, 4), (1, 2048, 4), (1, 2048, 8),
    (1, 4096, 8), (1, 8192, 16),
    (4, 128, 1), (4, 256, 2), (4, 512, 4), (4, 1024, 8), (8, 128, 1), (8, 128, 2), (8, 128, 4), (8, 256, 4),
    (8, 512, 8), (16, 128, 4), (16, 128, 8), (32, 128, 4), (32, 128, 8),
)  # fmt: skip


def _configs() -> Iterator[QuantizeRowsConfig]:
    yield VENDOR
    for num_warps in (1, 2, 4, 8, 16):
        for pdl in (0, 1):
            yield QuantizeRowsConfig("row", 1, 0, num_warps, pdl)
    for block_m, num_warps in ((2, 4), (4, 4), (4, 8), (8, 8)):
        yield QuantizeRowsConfig("row", block_m, 0, num_warps, 1)
    for block_k, num_warps in ((2048, 4), (4096, 8), (8192, 8), (8192, 16)):
        for pdl in (0, 1):
            yield QuantizeRowsConfig("loop", 1, block_k, num_warps, pdl)
    for block_m, block_k, num_warps in _TILES:
        for pdl in (0, 1):
            yield QuantizeRowsConfig("tile", block_m, block_k, num_warps, pdl)


RULES = (
    Rule("tiles are for groups, the others for whole rows", "kind == TORCH or (kind == TILE) == (group > 0)"),
    Rule(
        "whole rows fit registers",
        f"kind != ROW or (k <= {MAX_K} and block_m * next_pow2(k) <= 2048 * num_warps)",
    ),
    Rule(
        "every thread has an element",
        f"kind != ROW or (k >= {MIN_K} and block_m * next_pow2(k) >= 64 * num_warps)",
    ),
    Rule("block_m no taller than m needs", "block_m <= next_pow2(m)"),
    Rule("a row is longer than a step (loop)", "kind != LOOP or k > block_k"),
    Rule("block_k no longer than a row needs (tile)", f"kind != TILE or block_k <= max({BLOCK}, next_pow2(k))"),
    THREADS_RULE,
    Rule("rows and pointers of 16 bytes", "kind == TORCH or (alignment == 16 and k % 16 == 0)"),
    LAUNCH_RULE,
    Rule("8-bit floats need capability 8.9", "kind == TORCH or out_dtype == 1 or capability >= 89"),
)

_BYTES = "(m * (3 * k + 4 * max(1, (group > 0) * ceil_div(k, max(1, group)))))"
_BLOCK_K = "max(block_k, (kind == ROW) * next_pow2(k), (kind == TORCH) * 1024)"
_STEPS = f"ceil_div(k, {_BLOCK_K})"
PROGRAMS = f"(ceil_div(m, max(1, block_m)) * max(1, (kind == TILE) * {_STEPS}))"
"""Formula of a launch's programs: of tiles each step along k has its own."""
_STEPS_EACH = f"max(1, (kind != TILE) * {_STEPS})"
_ELEMENTS = f"max(1, block_m) * {_BLOCK_K} // max(1, 32 * num_warps)"

CONFIG_FEATURES = (
    *(Feature(name, name) for name in ("kind", "block_m", "num_warps", "pdl")),
    Feature("elements", _ELEMENTS, "of a step, a thread"),
    Feature("steps", _STEPS_EACH, "of a program"),
    Feature("waves", f"{PROGRAMS} * 100 // (sm_count * {RESIDENT})", "percent"),
)

QUANTIZE_ROWS = Op(
    name="quantize_rows",
    problem_type=QuantizeRowsProblem,
    config_type=QuantizeRowsConfig,
    space=ConfigSpace("quantize_rows", tuple(_configs()), RULES),
    features=row_features(_BYTES, (Feature("to_int8", "out_dtype"), Feature("group", "group"))),
    tree_features=("m", "k", "fp16", "to_int8", "group", "alignment"),
    config_features=CONFIG_FEATURES,
    vendor=VENDOR,
    flops="4 * m * k",
    bytes_moved=_BYTES,
    # There are no weights, and what a layer before has just written is in L2: nothing to rotate.
    weight_bytes="2 * k",
    analytic_ns=f"{_BYTES} // dram_gb_s + ceil_div({PROGRAMS}, sm_count * {RESIDENT}) * {_ELEMENTS}"
    f" * {_STEPS_EACH} + (kind == TORCH) * 8000",
    spread=({"out_dtype": "fp8"}, {"out_dtype": "fp8", "group": BLOCK}, {"out_dtype": "int8"}),
)
