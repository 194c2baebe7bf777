"""Inputs, the high-precision reference and the check against it, for products of 8-bit matrices with scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aks.ops.gemm.reference import compare, make_matrices, poison, product
from aks.ops.scaled.call import Operands, scaling_of
from aks.ops.scaled.spec import BLOCK

__all__ = ["Inputs", "check", "dequantize", "make_scaled", "poison", "reference"]


@dataclass(eq=False)
class Inputs:
    """x [M, K]; w: copies of what there is beside x, with w at different addresses; out [M, N] bf16, poisoned."""

    x: Tensor
    w: list[Operands]
    out: Tensor


def make_scaled(
    problem: Any, dtype: torch.dtype, std: float, *, copies: int, device: str | torch.device, seed: int, scaling: str
) -> Inputs:
    """Random operands of ``dtype`` with this standard deviation, aligned to exactly ``problem.alignment``.

    Scales are of what scaling says, as in ``aks.ops.scaled.call.scaling_of``, and uniform between 0.5 and 1.5 times
    what makes outputs about N(0, 1); the bias is N(0, 1). Scales of blocks lie as cuBLASLt wants them: of x those of
    one block of K side by side, of w rows of a multiple of 4.

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

    def scales(unit: float, *shape: int) -> Tensor:
        return (torch.rand(shape, device=device, generator=generator) + 0.5).mul_(unit)

    x_unit, w_unit, blocks = 1 / std, k**-0.5 / std, -(-k // BLOCK)
    if scaling == "block":
        x_scale = scales(x_unit, blocks, m).T
        w_scale = scales(w_unit, -(-n // BLOCK), -(-blocks // 4) * 4)[:, :blocks]
    else:
        by_row = scaling == "row"
        x_scale, w_scale = scales(x_unit, m if by_row else 1), scales(w_unit, n if by_row else 1)
    bias = torch.randn(n, device=device, generator=generator).bfloat16()
    return Inputs(x, [Operands(one, x_scale, w_scale, bias) for one in w], out)


def reference(problem: Any, x: Tensor, w: Operands) -> Tensor:
    """The product in higher precision (``aks.ops.gemm.reference.product``), 8-bit values exact: [M, N] float32.

    Scales of blocks are multiplied in first, in float32.
    """
    if scaling_of(problem.m, problem.n, problem.k, w.x_scale, w.w_scale) == "block":
        result = product(dequantize(x, w.x_scale, 1), dequantize(w.w, w.w_scale, BLOCK).T)
    else:
        result = product(x, w.w.T)
        result *= w.x_scale.view(-1, 1)
        result *= w.w_scale.view(-1)
    return result if w.bias is None else result.add_(w.bias)


def dequantize(values: Tensor, scales: Tensor, rows: int) -> Tensor:
    """values [R, K] in float32, times the scale of their block: scales [ceil(R / rows), ceil(K / 128)]."""
    by_column = scales.repeat_interleave(BLOCK, dim=1)[:, : values.shape[1]]
    return by_column.repeat_interleave(rows, dim=0)[: values.shape[0]] * values.float()


def check(problem: Any, out: Tensor, expected: Tensor, accumulation: float = 0.0) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is.

    accumulation: by how much of a standard deviation sums may be wrong. Beside it an element may err by its rounding
    to bf16, and by a little of a standard deviation for the order of additions (``aks.ops.gemm.reference.tolerances``).
    """
    unit = 2.0**-8
    whole = unit * (1 + 2 / math.sqrt(problem.m * problem.n)) + accumulation
    return compare(out, expected, torch.bfloat16, (whole, unit, 4 * unit + 6 * accumulation))
