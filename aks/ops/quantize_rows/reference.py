"""What quantising is, inputs, the high-precision reference, the check against it, and PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aks.ops.gemm.reference import DTYPES, make_matrices, poison_of
from aks.ops.quantize_rows.call import EIGHT_BIT, Operands, parts_of, rows_behind
from aks.ops.quantize_rows.spec import QuantizeRowsProblem
from aks.ops.scaled.spec import BLOCK

__all__ = ["Inputs", "check", "make_inputs", "poison", "quantize", "quantize_blocks", "reference", "vendor"]

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
    scale, inverse = _scales(x.abs().amax(-1, keepdim=True) if by_row else x.abs().amax().view(1), dtype)
    return _round(x.float() * inverse, dtype), scale.squeeze(-1) if by_row else scale


def quantize_blocks(x: Tensor, dtype: torch.dtype, rows: int = BLOCK) -> tuple[Tensor, Tensor]:
    """``quantize`` with a scale for every so many rows and 128 columns of x [R, K]: [ceil(R / rows), ceil(K / 128)].

    With 1 row these are the groups of the op, with 128 the blocks that products take of a weight.
    """
    (m, k), beyond = x.shape, (0, -x.shape[1] % BLOCK, 0, -len(x) % rows)
    padded = functional.pad(x, beyond) if any(beyond) else x
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, rows))
    scale, inverse = _scales(blocks.abs().amax((1, 3)), dtype)
    values = _round(blocks.float() * inverse[:, None, :, None], dtype)
    return values.reshape(padded.shape)[:m, :k].contiguous(), scale


def _scales(absmax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales for absolute maxima, and what to multiply by."""
    absmax = absmax.float().clamp_(min=FLOOR)
    tops = torch.full_like(absmax, TOPS[dtype])  # by a number PyTorch divides through a reciprocal, which rounds twice
    return absmax / tops, tops / absmax


def _round(quotients: Tensor, dtype: torch.dtype) -> Tensor:
    values = quotients.clamp_(-TOPS[dtype], TOPS[dtype])
    return (values.round_().nan_to_num_(0.0) if dtype == torch.int8 else values).to(dtype)


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
        (((m, k), 1, 1.0), ((m + rows_behind(m, k, problem.group), k), 1, 0.0), ((1, k), copies, 0.0)),
        dtype=(DTYPES[problem.dtype], EIGHT_BIT[problem.out_dtype], EIGHT_BIT[problem.out_dtype]),
        alignment=problem.alignment,
        device=device,
        seed=seed,
    )
    return Inputs(x, [Operands()] * copies, out)


def reference(problem: QuantizeRowsProblem, x: Tensor, w: Operands) -> Tensor:
    """The quotients x / scale, not yet rounded, and behind each row its scales, in float64: [M, K + scales] float32."""
    exact, top, group = x.double(), TOPS[EIGHT_BIT[problem.out_dtype]], problem.group or problem.k
    parts = [part.abs().amax(-1, keepdim=True).clamp(min=FLOOR) for part in exact.split(group, dim=-1)]
    quotients = [part * (top / absmax) for part, absmax in zip(exact.split(group, dim=-1), parts, strict=True)]
    return torch.cat([*quotients, *(absmax / top for absmax in parts)], dim=-1).float()


def check(problem: QuantizeRowsProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out``, as ``make_inputs`` makes it, given ``reference``; empty if nothing is.

    A scale may err by the rounding of a float32, a value be the other neighbour of its quotient where that lies half
    way between both.
    """
    dtype, k = EIGHT_BIT[problem.out_dtype], problem.k
    if out.dtype != dtype or out.shape != (problem.m + rows_behind(problem.m, k, problem.group), k):
        return f"output is {tuple(out.shape)} {out.dtype}; wanted {problem.m} rows of {k}, and those behind, {dtype}"
    values, scale = parts_of(problem, Operands(), out)
    exact, exact_scale = expected[:, :k], expected[:, k:]
    scale = scale.view(problem.m, -1)
    # What is NaN agrees with nothing.
    wrong_scales = ~((scale - exact_scale).abs() <= 2.0**-22 * exact_scale)
    if wrong_scales.any():
        row, part = wrong_scales.nonzero()[0].tolist()
        of_group = f"group {part} of " if problem.group else ""
        return (
            f"{int(wrong_scales.sum())} scales are wrong; the first, of {of_group}row {row}, is "
            f"{float(scale[row, part]):.8g}, wanted {float(exact_scale[row, part]):.8g}"
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
        made, made_scale = quantize_blocks(x, values.dtype, 1) if problem.group else quantize(x, values.dtype)
        values.copy_(made)
        scale.copy_(made_scale)

    return run
