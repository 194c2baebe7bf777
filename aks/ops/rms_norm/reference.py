"""Inputs, the high-precision reference, the check against it, and PyTorch's kernels, for ``rms_norm``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aks.ops.gemm.reference import DTYPES, compare, make_matrices, poison
from aks.ops.rms_norm.call import Operands
from aks.ops.rms_norm.spec import RmsNormProblem

__all__ = ["Inputs", "check", "make_inputs", "poison", "reference", "vendor"]


@dataclass(eq=False)
class Inputs:
    """x [M, K]; w: what the norm has beside it; out, poisoned: [M, K], then as many rows for the residual's sum."""

    x: Tensor
    w: list[Operands]
    out: Tensor


def make_inputs(
    problem: RmsNormProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0
) -> Inputs:
    """Random operands aligned to exactly ``problem.alignment``: N(0, 1), the weight around 1, eps 1e-6.

    The copies have weights at different addresses.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    m, k = problem.m, problem.k
    wanted = [((m, k), 1, 1.0), ((m + m * problem.residual, k), 1, 0.0), ((1, k), copies, 0.1)]
    (x,), (out,), weights, *rest = make_matrices(
        wanted + [((m, k), 1, 1.0)] * problem.residual,
        dtype=DTYPES[problem.dtype],
        alignment=problem.alignment,
        device=device,
        seed=seed,
    )
    residual = rest[0][0] if rest else None
    total = out[m:] if residual is not None else None
    return Inputs(x, [Operands(weight[0].add_(1), residual, total) for weight in weights], out)


def reference(problem: RmsNormProblem, x: Tensor, w: Operands) -> Tensor:
    """What ``Inputs.out`` must be, in float64, as float32 on x's device."""
    dtype = DTYPES[problem.dtype]
    total = x if w.residual is None else (x.float() + w.residual.float()).to(dtype)
    exact = total.double()
    scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + w.eps)
    out = (exact * scale * (w.weight.double() + w.one_plus)).float()
    return out if w.residual is None else torch.cat([out, total.float()])


def tolerances(problem: RmsNormProblem) -> tuple[float, float, float]:
    """Allowed errors, as ``aks.ops.gemm.reference.tolerances``: the output's rounding, and as much for a weight."""
    unit = {"bf16": 2.0**-8, "fp16": 2.0**-11}[problem.dtype]
    return 2 * unit, 2 * unit, unit


def check(problem: RmsNormProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out``, given ``expected`` float32 of its shape; empty if nothing is."""
    return compare(out, expected, DTYPES[problem.dtype], tolerances(problem))


def vendor(problem: RmsNormProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that writes the norm into ``out`` by PyTorch's kernels, on the current stream.

    PyTorch's norm takes no output. What it returns is copied, except into a CUDA graph: there it is timed, and
    its caller's next kernel would read the tensor that it returned.
    """
    weight = w.weight + 1 if w.one_plus else w.weight

    def run() -> None:
        rows = x if w.residual is None else torch.add(x, w.residual, out=w.total)
        normed = functional.rms_norm(rows, (problem.k,), weight, w.eps)
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            out[: problem.m].copy_(normed)

    return run
