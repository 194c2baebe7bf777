"""Axes, config space and rules, features, flops and bytes of ``fp8_gemm``. Standard library and core only.

``y = (x * x_scale) @ (w * w_scale).T + bias``: x [M, K] and w [N, K] are e4m3 (4 bits of exponent, 3 of mantissa, no
infinities: Micikevicius et al., FP8 Formats for Deep Learning, 2022), y [M, N] and the bias [N] bf16, sums float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.scaled.spec import KINDS, ScaledConfig, make_op

SCALINGS = ("row", "tensor")


@dataclass(frozen=True, slots=True)
class Fp8GemmProblem(Problem):
    """One product.

    scaling: ``row`` has a scale for each row of x and of w, ``tensor`` one for each of them. fast_accum: whether tensor
    cores may add up all of K by themselves, which on Hopper keeps some 14 bits of a sum; else a float32 is added to
    every 128 of K. alignment is the largest power of two, up to 16, that divides every pointer and every row stride
    in bytes. static_weights says that no kernel still running may be writing w: only then may w be read before the
    preceding kernel has ended.
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


@dataclass(frozen=True, slots=True)
class Fp8GemmConfig(ScaledConfig):
    """A ``ScaledConfig``, whose vendor's call is ``torch._scaled_mm`` with the problem's scaling and accumulation."""

    OP: ClassVar[str] = "fp8_gemm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": KINDS}


FP8_GEMM = make_op(
    Fp8GemmProblem,
    Fp8GemmConfig,
    rules=(Rule("tensor cores of 8-bit floats need capability 8.9", "kind == TORCH or capability >= 89"),),
    features=(
        Feature("tensor_scaled", "scaling", "one scale for x and one for w"),
        Feature("fast_accum", "fast_accum"),
    ),
    spread=(
        {"scaling": "row", "fast_accum": True},
        {"scaling": "tensor", "fast_accum": True},
        {"scaling": "row", "fast_accum": False},
        {"scaling": "row", "fast_accum": True},
        {"scaling": "tensor", "fast_accum": False},
    ),
)
