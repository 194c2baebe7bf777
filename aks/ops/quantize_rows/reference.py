"""What quantising is, inputs, the high-precision reference, the check against it, and PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aks.ops.gemm.reference import DTYPES, make_matrices, poison_of
from aks.ops.quantize_rows.call import EIGHT_BIT, Operands, parts_of, rows_behind
from aks.ops.quantize_rows.spec import QuantizeRowsProblem

__all__ = ["Inputs", "check", "make_inputs", "poison", "quantize", "reference", "vendor"]

TOPS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The largest value of each type; int8 is taken for symmetric."""
FLOOR = 2.0**-64
"""The least absolute maximum, so that a row of zeros has a scale to divide by."""
_SLACK = 2.0**-10
"""Of a quotient: how far from half way it may be rounded the other way (some GPUs convert through fp16)."""


@dataclass(eq=False)
class Inputs:
    """x [M, K]; w: nothing beside it; out, poisoned: [M, K], then rows in which the scales lie (``scales_behind``)."""

    x: Tensor
    w: list[Operands]
    out: Tensor


def quantize(x: Tensor, dtype: torch.dtype, by_row: bool = True) -> tuple[Tensor, Tensor]:
    """Values of ``dtype`` and their float32 scales, by PyTorch's kernels: ``x = values * scale`` but for rounding.

    In float32, for each row or for all of x together::

        absmax = max(|x|), no less than 2^-64
        scale  = absmax / top                                        (top: 448 of e4m3, 127 of int8)
        values = x * (top / absmax), cut off at -top and top, rounded to the nearest, ties to even

    Where x has an infinity or NaN, its scale is that: whatever is computed of the row (or of x) is NaN. Values are NaN
    there too, as far as they are not 0; int8, which has none, has 0.

    Parameters
    ----------
    x : Tensor
        [..., K] of floats.
    dtype : torch.dtype
        ``torch.float8_e4m3fn`` or ``torch.int8``.
    by_row : bool
        A scale for each row, [...]; else one for all, [1].
    """
    top = TOPS[dtype]
    absmax = (x.abs().amax(-1, keepdim=True) if by_row else x.abs().amax().view(1)).float().clamp_(min=FLOOR)
    tops = torch.full_like(absmax, top)  # with a number PyTorch multiplies by a reciprocal, which rounds twice
    values = (x.float() * (tops / absmax)).clamp_(-top, top)
    if dtype == torch.int8:
        values = values.round_().nan_to_num_(0.0)
    scale = absmax / tops
    return values.to(dtype), scale.squeeze(-1) if by_row else scale


def make_inputs(
    problem: QuantizeRowsProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0
) -> Inputs:
    """Random rows aligned to exactly ``problem.alignment``: N(0, 1).

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    m, k = problem.m, problem.k
    (x,), (out,), _ = make_matrices(
        (((m, k), 1, 1.0), ((m + rows_behind(m, k), k), 1, 0.0), ((1, k), copies, 0.0)),
        dtype=(DTYPES[problem.dtype], EIGHT_BIT[problem.out_dtype], EIGHT_BIT[problem.out_dtype]),
        alignment=problem.alignment,
        device=device,
        seed=seed,
    )
    return Inputs(x, [Operands()] * copies, out)


def reference(problem: QuantizeRowsProblem, x: Tensor, w: Operands) -> Tensor:
    """The quotients x / scale, not yet rounded, and in the last column the scales, in float64: [M, K + 1] float32."""
    exact, top = x.double(), TOPS[EIGHT_BIT[problem.out_dtype]]
    absmax = exact.abs().amax(-1, keepdim=True).clamp(min=FLOOR)
    return torch.cat([exact * (top / absmax), absmax / top], dim=-1).float()


def check(problem: QuantizeRowsProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out``, as ``make_inputs`` makes it, given ``reference``; empty if nothing is.

    A scale may err by the rounding of a float32, a value be the other neighbour of its quotient where that lies half
    way between both.
    """
    dtype, k = EIGHT_BIT[problem.out_dtype], problem.k
    if out.dtype != dtype or out.shape != (problem.m + rows_behind(problem.m, k), k):
        return f"output is {tuple(out.shape)} {out.dtype}; wanted {problem.m} rows of {k}, and those behind, {dtype}"
    values, scale = parts_of(problem, Operands(), out)
    exact, exact_scale = expected[:, :k], expected[:, k]
    # What is NaN agrees with nothing.
    wrong_scales = ~((scale - exact_scale).abs() <= 2.0**-22 * exact_scale)
    if wrong_scales.any():
        row = int(wrong_scales.nonzero()[0])
        return (
            f"{int(wrong_scales.sum())} scales are wrong; the first, of row {row}, is {float(scale[row]):.8g}, "
            f"wanted {float(exact_scale[row]):.8g}"
        )
    nearest = (exact.round() if dtype == torch.int8 else exact).to(dtype).float()
    allowed = (nearest - exact).abs() + _SLACK * exact.abs()
    wrong = ~((values.float() - exact).abs() <= allowed)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        return (
            f"{int(wrong.sum())} of {wrong.numel()} values are wrong; the first, at {(row, column)}, is "
            f"{float(values[row, column].float()):.6g}, wanted {float(exact[row, column]):.6g} rounded"
        )
    return ""


def poison(out: Tensor) -> None:
    """Fill ``out`` with NaN, or -128, so that an element that is not written shows."""
    out.fill_(poison_of(out.dtype))


def vendor(problem: QuantizeRowsProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that quantises into ``out`` by PyTorch's kernels, one after the other, on the current stream."""
    values, scale = parts_of(problem, w, out)

    def run() -> None:
        made, made_scale = quantize(x, values.dtype)
        values.copy_(made)
        scale.copy_(made_scale)

    return run
