"""Axes, config space and rules, features, flops and bytes of ``int8_gemm``. Standard library and core only.

``y = (x * x_scale) @ (w * w_scale).T + bias``: x [M, K] and w [N, K] int8, a scale for each row of both (a token, an
output channel), y [M, N] and the bias [N] bf16, sums int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Rule
from aks.core.problem import Problem
from aks.ops.scaled.spec import KINDS, ScaledConfig, make_op


@dataclass(frozen=True, slots=True)
class Int8GemmProblem(Problem):
    """One product.

    alignment is the largest power of two, up to 16, that divides every pointer and every row stride in bytes.
    static_weights says that no kernel still running may be writing w: only then may w be read before the preceding
    kernel has ended.
    """

    OP: ClassVar[str] = "int8_gemm"
    AXES: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("int8",),
        "alignment": (1, 2, 4, 8, 16),
        "static_weights": (False, True),
    }

    m: int
    n: int
    k: int
    dtype: str = "int8"
    alignment: int = 16
    static_weights: bool = False


@dataclass(frozen=True, slots=True)
class Int8GemmConfig(ScaledConfig):
    """A ``ScaledConfig``, whose vendor's call is ``torch._int_mm`` and PyTorch's multiplications by the scales."""

    OP: ClassVar[str] = "int8_gemm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": KINDS}


INT8_GEMM = make_op(
    Int8GemmProblem,
    Int8GemmConfig,
    rules=(Rule("tensor cores of 8-bit integers need capability 8.0", "kind == TORCH or capability >= 80"),),
)
