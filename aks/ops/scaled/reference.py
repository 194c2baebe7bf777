"""Inputs, the high-precision reference and the check against it, for products of 8-bit matrices with scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aks.ops.gemm.reference import compare, make_matrices, poison, product
from aks.ops.scaled.call import Operands

__all__ = ["Inputs", "check", "make_scaled", "poison", "reference"]


@dataclass(eq=False)
class Inputs:
    """x [M, K]; w: copies of what there is beside x, with w at different addresses; out [M, N] bf16, poisoned."""

    x: Tensor
    w: list[Operands]
    out: Tensor


def make_scaled(
    problem: Any, dtype: torch.dtype, std: float, *, copies: int, device: str | torch.device, seed: int, by_row: bool
) -> Inputs:
    """Random operands of ``dtype`` with this standard deviation, aligned to exactly ``problem.alignment``.

    Scales are uniform between 0.5 and 1.5 times what makes outputs about N(0, 1); the bias is N(0, 1).

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    m, n, k = problem.m, problem.n, problem.k
    (x,), w, (out,) = make_matrices(
        (((m, k), 1, std), ((n, k), copies, std), ((m, n), 1, 0.0)),
        dtype=(dtype, dtype, torch.bfloat16),
        alignment=problem.alignment,
        device=device,
        seed=seed,
    )
    generator = torch.Generator(device=device).manual_seed(seed + 1)

    def scales(rows: int, unit: float) -> Tensor:
        size = rows if by_row else 1
        return (torch.rand(size, device=device, generator=generator) + 0.5).mul_(unit)

    x_scale, w_scale = scales(m, 1 / std), scales(n, k**-0.5 / std)
    bias = torch.randn(n, device=device, generator=generator).bfloat16()
    return Inputs(x, [Operands(one, x_scale, w_scale, bias) for one in w], out)


def reference(problem: Any, x: Tensor, w: Operands) -> Tensor:
    """The product in higher precision (``aks.ops.gemm.reference.product``), 8-bit values exact: [M, N] float32."""
    result = product(x, w.w.T)
    result *= w.x_scale[:, None] if w.x_scale.numel() > 1 else w.x_scale
    result *= w.w_scale
    return result if w.bias is None else result.add_(w.bias)


def check(problem: Any, out: Tensor, expected: Tensor, accumulation: float = 0.0) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is.

    accumulation: by how much of a standard deviation sums may be wrong. Beside it an element may err by its rounding
    to bf16, and by a little of a standard deviation for the order of additions (``aks.ops.gemm.reference.tolerances``).
    """
    unit = 2.0**-8
    whole = unit * (1 + 2 / math.sqrt(problem.m * problem.n)) + accumulation
    return compare(out, expected, torch.bfloat16, (whole, unit, 4 * unit + 6 * accumulation))
