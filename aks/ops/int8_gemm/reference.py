"""Inputs, the high-precision reference, the check against it, and the vendor's calls, for ``int8_gemm``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aks.ops.int8_gemm.spec import Int8GemmProblem
from aks.ops.scaled import reference as scaled
from aks.ops.scaled.call import Operands
from aks.ops.scaled.reference import Inputs, check, poison, reference

__all__ = ["Inputs", "check", "make_inputs", "poison", "reference", "vendor"]

_LEAST_ROWS = 32
"""``torch._int_mm`` refuses 16 rows and fewer; the next size that its kernels are made for."""


def make_inputs(
    problem: Int8GemmProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0
) -> Inputs:
    """Random operands aligned to exactly ``problem.alignment``: x and w N(0, 32^2), outputs about N(0, 1), and a bias.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    return scaled.make_scaled(problem, torch.int8, 32.0, copies=copies, device=device, seed=seed, scaling="row")


def vendor(problem: Int8GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that writes the product into ``out`` by PyTorch, on the current stream. It allocates now.

    ``torch._int_mm``, then the scales, a kernel each, the bias with the second. What ``_int_mm`` does not take (fewer
    than 17 rows, n or k no multiple of 8, rows that are not aligned) is copied into padded matrices at each call.
    """
    m, n, k = problem.m, problem.n, problem.k
    rows, wide_n, wide_k = max(m, _LEAST_ROWS) if m <= 16 else m, -(-n // 8) * 8, -(-k // 8) * 8
    pads_x = rows != m or wide_k != k or problem.alignment < 16
    pads_w = wide_n != n or wide_k != k or problem.alignment < 16
    x_wide = x.new_zeros(rows, wide_k) if pads_x else x
    w_wide = x.new_zeros(wide_n, wide_k) if pads_w else w.w
    sums = torch.empty(rows, wide_n, dtype=torch.int32, device=x.device)
    scaled_sums = torch.empty(m, n, dtype=torch.float32, device=x.device)
    x_scale = w.x_scale[:, None]

    def run() -> None:
        if pads_x:
            x_wide[:m, :k].copy_(x)
        if pads_w:
            w_wide[:n, :k].copy_(w.w)
        torch.ops.aten._int_mm.out(x_wide, w_wide.T, out=sums)
        torch.mul(sums[:m, :n], x_scale, out=scaled_sums)
        if w.bias is None:
            torch.mul(scaled_sums, w.w_scale, out=out)
        else:
            torch.addcmul(w.bias, scaled_sums, w.w_scale, out=out)

    return run
