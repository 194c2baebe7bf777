"""Inputs, the high-precision reference, the check against it, and the vendor's call, for ``fp8_gemm``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from aks.ops.fp8_gemm.blocks import vendor as block_vendor
from aks.ops.fp8_gemm.spec import Fp8GemmProblem
from aks.ops.scaled import reference as scaled
from aks.ops.scaled.call import Operands
from aks.ops.scaled.reference import Inputs, poison, reference

__all__ = ["Inputs", "check", "make_inputs", "poison", "reference", "vendor"]

DTYPE = torch.float8_e4m3fn
_STEP = 32
"""Of K, in one instruction of Hopper's tensor cores (wgmma)."""


def make_inputs(
    problem: Fp8GemmProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0
) -> Inputs:
    """Random operands aligned to exactly ``problem.alignment``: x and w N(0, 1), outputs about N(0, 1), and a bias.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    return scaled.make_scaled(problem, DTYPE, 1.0, copies=copies, device=device, seed=seed, scaling=problem.scaling)


def accumulation_error(problem: Fp8GemmProblem) -> float:
    """How wrong sums may be, of a standard deviation of the output.

    Hopper's tensor cores keep some 14 bits of a sum of 8-bit floats (DeepSeek-V3 Technical Report, 2024, 3.3.2): each
    instruction may cut off 2^-13 of what has come together. Where every 128 of K go to a float32, what has come
    together is that many products'.
    """
    steps = -(-problem.k // _STEP)
    cut = steps * 2.0**-13
    return cut if problem.fast_accum else cut * min(1.0, (128 / problem.k) ** 0.5)


def check(problem: Fp8GemmProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is."""
    return scaled.check(problem, out, expected, accumulation_error(problem))


def vendor(problem: Fp8GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that writes the product into ``out`` by ``torch._scaled_mm``, on the current stream. It allocates now.

    What that does not take (n or k no multiple of 16, operands that are not aligned to 16 bytes) is copied into padded
    matrices first, at each call. On a CPU it is the reference. Scales of blocks: ``aks.ops.fp8_gemm.blocks``.
    """
    if x.device.type == "cpu":
        return lambda: out.copy_(reference(problem, x, w))
    if problem.scaling == "block":
        return block_vendor(problem, x, w, out)
    m, n, k = problem.m, problem.n, problem.k
    if problem.alignment == 16 and n % 16 == 0 and k % 16 == 0:
        return partial(_multiply, _fast_accum(problem, x, w, out), x, w, out)
    wide_n, wide_k = -(-n // 16) * 16, -(-k // 16) * 16
    x_wide, w_wide, y_wide = x.new_zeros(m, wide_k), x.new_zeros(wide_n, wide_k), out.new_zeros(m, wide_n)
    w_scale, bias = w.w_scale, None if w.bias is None else w.bias.new_zeros(wide_n)
    if problem.scaling == "row":
        w_scale = w.w_scale.new_ones(wide_n)
    wide = Operands(w_wide, w.x_scale, w_scale, bias)
    fast_accum = _fast_accum(problem, x_wide, wide, y_wide)

    def run() -> None:
        x_wide[:, :k].copy_(x)
        w_wide[:n, :k].copy_(w.w)
        if problem.scaling == "row":
            w_scale[:n].copy_(w.w_scale.view(-1))
        if bias is not None and w.bias is not None:
            bias[:n].copy_(w.bias)
        _multiply(fast_accum, x_wide, wide, y_wide)
        out.copy_(y_wide[:, :n])

    return run


def _fast_accum(problem: Fp8GemmProblem, x: Tensor, w: Operands, out: Tensor) -> bool:
    """Whether the vendor accumulates fast here. Launches the product to find out, once for each problem and GPU.

    For some shapes cuBLASLt has no such algorithm; without, PyTorch takes another library.
    """
    known = _accumulates_fast.get((problem, x.device))
    if known is not None or not problem.fast_accum or torch.cuda.is_current_stream_capturing():
        return problem.fast_accum if known is None else known
    try:
        _multiply(True, x, w, out)
    except RuntimeError as error:
        if "NOT_SUPPORTED" not in str(error):
            raise
        supported = False
    else:
        supported = True
    _accumulates_fast[problem, x.device] = supported
    return supported


_accumulates_fast: dict[tuple[Fp8GemmProblem, torch.device], bool] = {}


def _multiply(fast_accum: bool, x: Tensor, w: Operands, out: Tensor) -> None:
    by_row = w.w_scale.numel() > 1
    torch.ops.aten._scaled_mm.out(
        x,
        w.w.T,
        w.x_scale.view(-1, 1) if by_row else w.x_scale,
        w.w_scale.view(1, -1) if by_row else w.w_scale,
        bias=w.bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=fast_accum,
        out=out,
    )
