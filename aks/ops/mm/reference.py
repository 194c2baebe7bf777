"""Inputs, the high-precision reference, the check against it, and the vendor's call, for ``mm``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from aks.ops.gemm.reference import Inputs, compare, float32_precision, make_matrices, poison, product, tolerances_at
from aks.ops.mm.spec import MmProblem

__all__ = ["Inputs", "check", "make_inputs", "poison", "reference", "vendor"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make_inputs(problem: MmProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0) -> Inputs:
    """Random operands, as ``gemm`` has them: x N(0, 1), w N(0, 1/k), padding between rows and out NaN.

    x [M, K], a transposed view where x_layout is ``km``; w as stored: [N, K] or [K, N]; out [M, N] with
    contiguous rows. x and w are aligned to exactly ``problem.alignment``, out to 16 bytes or what n allows.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1, or alignment less than the bytes of an element.
    """
    m, n, k = problem.m, problem.n, problem.k
    x_shape = (m, k) if problem.x_layout == "mk" else (k, m)
    w_shape = (n, k) if problem.w_layout == "nk" else (k, n)
    dtype = DTYPES[problem.dtype]
    wanted = (x_shape, 1, 1.0), (w_shape, copies, k**-0.5)
    (x,), w = make_matrices(wanted, dtype=dtype, alignment=problem.alignment, device=device, seed=seed)
    out = torch.full((m, n), math.nan, dtype=dtype, device=device)
    return Inputs(x if problem.x_layout == "mk" else x.T, w, out)


def reference(problem: MmProblem, x: Tensor, w: Tensor) -> Tensor:
    """``x @ w.T`` in higher precision: [M, N] float32 on x's device. x [M, K]; w as ``problem.w_layout`` says."""
    return product(x, _transposed(problem, w))


def tolerances(problem: MmProblem) -> tuple[float, float, float]:
    """Allowed errors, as ``aks.ops.gemm.reference.tolerances``, which says where they come from.

    TF32 (fp32) keeps 10 bits of a factor's mantissa. Triton lets the tensor cores cut the rest off, so a
    factor is too small by up to 2^-10, and by 2^-11.5 in the mean; a product of two by 2^-10.5 in the mean,
    always towards zero, and sums by as much. u = 2^-10 allows 1.4 times that of the whole.
    """
    unit = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-10}[problem.dtype]
    return tolerances_at(unit, problem.m, problem.n, problem.k)


def check(problem: MmProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is."""
    return compare(out, expected, DTYPES[problem.dtype], tolerances(problem))


def vendor(problem: MmProblem, x: Tensor, w: Tensor, out: Tensor) -> Callable[[], object]:
    """A call that writes ``x @ w.T`` into ``out`` by ``torch.mm``, on the current stream; fp32 in TF32.

    By default PyTorch multiplies fp32 without tensor cores. That would be another product at an eighth of
    the rate; who is measured here, like whoever recorded such data, has allowed TF32.
    """
    multiply = partial(torch.mm, x, _transposed(problem, w), out=out)
    return partial(_in_tf32, multiply) if problem.dtype == "fp32" else multiply


def _transposed(problem: MmProblem, w: Tensor) -> Tensor:
    return w.T if problem.w_layout == "nk" else w


def _in_tf32(multiply: Callable[[], object]) -> None:
    with float32_precision("high"):
        multiply()
