"""The Triton kernel of ``rms_norm``: what it computes, and nothing of when to use it."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, K, x_row, residual_row, out_row, total_row, eps, one_plus,
    BLOCK_K: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row a program, BLOCK_K covering it.

    PDL as for the kernels of ``gemm``: the next kernel may start, and ask for its weights, while this one runs.
    """
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK_K)
    inside = offsets < K
    if PDL > 0:
        gdc_launch_dependents()
        gdc_wait()
    weight = tl.load(weight_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * x_row + offsets, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + row * residual_row + offsets, mask=inside, other=0.0).to(tl.float32)
        total = x.to(out_ptr.dtype.element_ty)
        tl.store(total_ptr + row * total_row + offsets, total, mask=inside)
        x = total.to(tl.float32)  # what is normalised is what was written
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / K + eps.to(tl.float32, bitcast=True))
    out = x * scale * (weight + one_plus.to(tl.float32))
    tl.store(out_ptr + row * out_row + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)
