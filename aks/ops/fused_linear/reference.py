"""Inputs, the high-precision reference, the check against it, and the vendor's calls, for ``fused_linear``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aks.ops.fused_linear.call import Operands
from aks.ops.fused_linear.spec import FusedLinearProblem
from aks.ops.gemm.reference import DTYPES, compare, make_matrices, multiply, poison, product, tolerances_at

__all__ = ["Inputs", "check", "make_inputs", "poison", "reference", "vendor"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
_IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "silu": lambda x: functional.silu(x, inplace=True),
    "gelu": lambda x: torch.ops.aten.gelu_(x),
    "gelu_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
}


@dataclass(eq=False)
class Inputs:
    """x [M, K]; w: copies of what the layer has beside x, at different addresses; out [M, N], poisoned."""

    x: Tensor
    w: list[Operands]
    out: Tensor


def make_inputs(
    problem: FusedLinearProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0
) -> Inputs:
    """Random operands aligned to exactly ``problem.alignment``, as those of ``gemm``; bias and residual are N(0, 1).

    The epilogues ``residual`` and ``*_mul`` have no bias, all others do.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    m, n, k = problem.m, problem.n, problem.k
    has_residual = problem.epilogue == "residual"
    wanted = [((m, k), 1, 1.0), ((n, k), copies, k**-0.5), ((m, n), 1, 0.0)]
    wanted += [((n, k), copies, k**-0.5)] * problem.gated + [((m, n), 1, 1.0)] * has_residual
    (x,), w, (out,), *rest = make_matrices(
        wanted, dtype=DTYPES[problem.dtype], alignment=problem.alignment, device=device, seed=seed
    )
    if problem.gated:
        layers = [Operands(*pair) for pair in zip(w, rest[0], strict=True)]
    elif has_residual:
        layers = [Operands(one, residual=rest[0][0]) for one in w]
    else:
        generator = torch.Generator(device=device).manual_seed(seed + 1)
        bias = torch.randn(n, dtype=x.dtype, device=device, generator=generator)
        layers = [Operands(one, bias=bias) for one in w]
    return Inputs(x, layers, out)


def reference(problem: FusedLinearProblem, x: Tensor, w: Operands) -> Tensor:
    """The layer in higher precision (``aks.ops.gemm.reference.product``): [M, N] float32 on x's device."""
    result = product(x, w.w.T)
    if w.bias is not None:
        result += w.bias
    if activation := ACTIVATIONS.get(problem.epilogue.removesuffix("_mul")):
        result = activation(result)
    if w.up is not None:
        result *= product(x, w.up.T)
    if w.residual is not None:
        result += w.residual
    return result


def tolerances(problem: FusedLinearProblem) -> tuple[float, float, float]:
    """Allowed errors, as ``aks.ops.gemm.reference.tolerances``, which says where they come from.

    PyTorch rounds after each of its kernels, up to three more times, each by at most u of an element. An
    activation's slope is at most 1.13. The error of one factor of a gated layer comes times the other, which is
    rarely beyond 5 standard deviations.
    """
    unit = {"bf16": 2.0**-8, "fp16": 2.0**-11}[problem.dtype]
    whole, element, absolute = tolerances_at(unit, problem.m, problem.n, problem.k)
    return 3 * whole, 3 * element, (5 if problem.gated else 2) * absolute


def check(problem: FusedLinearProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is."""
    return compare(out, expected, DTYPES[problem.dtype], tolerances(problem))


def vendor(problem: FusedLinearProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that writes the layer into ``out`` by PyTorch's kernels, on the current stream. It allocates now."""
    activate = _IN_PLACE.get(problem.epilogue.removesuffix("_mul"))
    other = out if w.up is None else torch.empty_like(out)

    def run() -> None:
        multiply(x, w.w, w.bias, out)
        if activate:
            activate(out)
        if w.up is not None:
            torch.mm(x, w.up.T, out=other)
            out.mul_(other)
        if w.residual is not None:
            out.add_(w.residual)

    return run
