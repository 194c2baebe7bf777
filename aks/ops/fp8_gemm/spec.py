"""Axes, config space and rules, features, flops and bytes of ``fp8_gemm``. Standard library and core only.

``y = (x * x_scale) @ (w * w_scale).T + bias``: x [M, K] and w [N, K] are e4m3 (4 bits of exponent, 3 of mantissa, no
infinities: Micikevicius et al., FP8 Formats for Deep Learning, 2022), y [M, N] and the bias [N] bf16, sums float32.
Scales are float32: of rows, x_scale [M] and w_scale [N]; of tensors, one each; or of blocks, one for every 128 of a row
of x, [M, ceil(K / 128)], and for every 128 x 128 of w, [ceil(N / 128), ceil(K / 128)] (DeepSeek-V3 Technical Report,
2024, 3.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Rule
from aks.core.errors import InvalidProblemError
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.scaled.spec import BLOCK, KINDS, ScaledConfig, make_op, swapped_knobs

SCALINGS = ("row", "tensor", "block")
BLOCK_SCALING = SCALINGS.index("block")


@dataclass(frozen=True, slots=True)
class Fp8GemmProblem(Problem):
    """One product.

    scaling: ``row`` has a scale for each row of x and of w, ``tensor`` one for each of them, ``block`` one for every
    128 of a row of x and every 128 x 128 of w. fast_accum: whether tensor cores may add up all of K by themselves,
    which on Hopper keeps some 14 bits of a sum; else every 128 of K are added to a float32. With scales of blocks they
    always are, and fast_accum is False. alignment is the largest power of two, up to 16, that divides every pointer of
    a matrix and every row stride in bytes. static_weights says that no kernel still running may be writing w: only
    then may w be read before the preceding kernel has ended.
    """

    OP: ClassVar[str] = "fp8_gemm"
    AXES: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("fp8",),
        "scaling": SCALINGS,
        "fast_accum": (False, True),
        "alignment": (1, 2, 4, 8, 16),
        "static_weights": (False, True),
    }

    m: int
    n: int
    k: int
    dtype: str = "fp8"
    scaling: str = "row"
    fast_accum: bool = False
    alignment: int = 16
    static_weights: bool = False

    def __post_init__(self) -> None:
        Problem.__post_init__(self)  # with slots, super() would look for another class
        if self.scaling == "block" and self.fast_accum:
            raise InvalidProblemError(
                "fp8_gemm problem has scaling='block' and fast_accum=True; with scales of blocks every 128 of K are "
                "added to a float32: fast_accum must be False"
            )


@dataclass(frozen=True, slots=True)
class Fp8GemmConfig(ScaledConfig):
    """A ``ScaledConfig``, whose vendor's call is PyTorch's scaled product, of this scaling and accumulation."""

    OP: ClassVar[str] = "fp8_gemm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": KINDS}


# A step along K is a block's: as many bytes are on the way as with the longer steps of other scales, in more stages.
# (block_m, block_n, block_k, num_stages, split_k, pdls) of y.T = w @ x.T.
_BLOCK_SWAPPED = (
    (8, 64, 128, 8, 1, (0, 1, 2)), (8, 64, 128, 8, 2, (1, 2)), (8, 64, 128, 8, 4, (1, 2)), (8, 64, 128, 12, 1, (0, 1)),
    (8, 64, 128, 12, 2, (0,)),
    (16, 64, 128, 6, 4, (1, 2)), (16, 64, 128, 10, 1, (0, 1, 2)), (16, 64, 128, 10, 2, (0, 1)),
    (16, 64, 128, 10, 4, (0, 1, 2)), (16, 64, 128, 10, 8, (1,)), (16, 128, 128, 6, 1, (0, 1)),
    (32, 64, 128, 8, 1, (0, 1)), (32, 64, 128, 8, 2, (0, 1)), (32, 64, 128, 8, 4, (0, 1)), (32, 64, 128, 8, 8, (1,)),
    (32, 128, 128, 5, 1, (0, 1)), (32, 128, 128, 5, 2, (0,)),
    (64, 64, 128, 6, 1, (0, 1)), (64, 64, 128, 6, 2, (0, 1)), (64, 64, 128, 6, 4, (1,)),
)  # fmt: skip
_BLOCK_TILED = (
    (16, 64, 128, 6, 1, (0, 1)), (16, 64, 128, 6, 4, (1,)), (32, 64, 128, 6, 1, (0, 1)), (32, 64, 128, 6, 4, (1,)),
)  # fmt: skip

_IN_BLOCKS = f"(scaling == {BLOCK_SCALING})"
_RULES = (
    Rule("tensor cores of 8-bit floats need capability 8.9", "kind == TORCH or capability >= 89"),
    Rule(
        "a step of tensor cores along k is a block (block scales)",
        f"not {_IN_BLOCKS} or kind < TILED or block_k == {BLOCK}",
    ),
    Rule("all columns of a tile have one scale of w (block scales)", f"not {_IN_BLOCKS} or block_n <= {BLOCK}"),
    Rule(
        "products of a step fit registers beside the sums (block scales)",
        f"not {_IN_BLOCKS} or block_m * block_n <= 2048 * max(1, num_warps)",
    ),
    Rule("more than 6 steps at once are for block scales, whose steps are short", f"{_IN_BLOCKS} or num_stages <= 6"),
)

FP8_GEMM = make_op(
    Fp8GemmProblem,
    Fp8GemmConfig,
    rules=_RULES,
    more_configs=(
        *swapped_knobs("tma", _BLOCK_SWAPPED),
        *swapped_knobs("tiled", _BLOCK_TILED),
        ("tma", 64, 64, 128, 1, 4, 6),
    ),
    features=(
        Feature("scaling", "scaling", "scales of rows, of tensors, of blocks"),
        Feature("fast_accum", "fast_accum"),
    ),
    spread=(
        {"scaling": "row", "fast_accum": True},
        {"scaling": "block", "fast_accum": False},
        {"scaling": "tensor", "fast_accum": True},
        {"scaling": "row", "fast_accum": False},
        {"scaling": "block", "fast_accum": False},
        {"scaling": "row", "fast_accum": True},
        {"scaling": "tensor", "fast_accum": False},
    ),
)
