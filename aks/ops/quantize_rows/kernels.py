"""The Triton kernels of ``quantize_rows``: what they compute, and nothing of when to use them."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def quantize_rows_kernel(
    x_ptr, scale_ptr, out_ptr, M, K, x_row, out_row,
    FLOOR_BITS: tl.constexpr, TOP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows a program: WHOLE, if BLOCK_K covers them; else they are read twice.

    TOP is the largest value of out's type, FLOOR_BITS the bits of the least absolute maximum, a float32. PDL as for the
    kernels of ``gemm``: the next kernel may start, and ask for its weights, while this one runs.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_K)
    inside = (rows < M)[:, None]
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * x_row + columns[None, :]
    out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * out_row + columns[None, :]
    if PDL > 0:
        gdc_launch_dependents()
        gdc_wait()
    if WHOLE:
        mask = inside & (columns < K)[None, :]
        x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        inverse = _write_scales(scale_ptr + rows, tl.max(_magnitude(x), axis=1), rows < M, FLOOR_BITS, TOP)
        tl.store(out_ptrs, _to_eight_bits(x * inverse[:, None], out_ptr.dtype.element_ty, TOP), mask=mask)
    else:
        magnitude = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.int32)
        for k in range(0, K, BLOCK_K):
            x = tl.load(x_ptrs + k, mask=inside & (k + columns < K)[None, :], other=0.0).to(tl.float32)
            magnitude = tl.maximum(magnitude, _magnitude(x))
        inverse = _write_scales(scale_ptr + rows, tl.max(magnitude, axis=1), rows < M, FLOOR_BITS, TOP)
        for k in range(0, K, BLOCK_K):
            mask = inside & (k + columns < K)[None, :]
            x = tl.load(x_ptrs + k, mask=mask, other=0.0).to(tl.float32)
            tl.store(out_ptrs + k, _to_eight_bits(x * inverse[:, None], out_ptr.dtype.element_ty, TOP), mask=mask)


@triton.jit
def quantize_groups_kernel(
    x_ptr, scale_ptr, out_ptr, M, K, x_row, out_row, scale_step, scale_block,
    FLOOR_BITS: tl.constexpr, TOP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of BLOCK_K elements a program, with a scale for every GROUP of a row.

    scale_step is from a row's scale to the next row's, scale_block to that of the row's next group. The rest as for
    ``quantize_rows_kernel``.
    """
    steps = tl.cdiv(K, BLOCK_K)
    rows = tl.program_id(0) // steps * BLOCK_M + tl.arange(0, BLOCK_M)
    groups = tl.program_id(0) % steps * (BLOCK_K // GROUP) + tl.arange(0, BLOCK_K // GROUP)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    wide_rows = rows.to(tl.int64)[:, None]
    mask = (rows < M)[:, None, None] & (columns < K)[None, :, :]
    x_ptrs = x_ptr + wide_rows[:, :, None] * x_row + columns[None, :, :]
    if PDL > 0:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    scale_ptrs = scale_ptr + wide_rows * scale_step + groups[None, :] * scale_block
    inside = (rows < M)[:, None] & (groups * GROUP < K)[None, :]
    inverse = _write_scales(scale_ptrs, tl.max(_magnitude(x), axis=2), inside, FLOOR_BITS, TOP)
    out_ptrs = out_ptr + wide_rows[:, :, None] * out_row + columns[None, :, :]
    tl.store(out_ptrs, _to_eight_bits(x * inverse[:, :, None], out_ptr.dtype.element_ty, TOP), mask=mask)


@triton.jit
def _magnitude(x):
    """The bits of the absolute value. They are in its order, with NaN last, where a maximum of floats drops NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _write_scales(scale_ptrs, magnitude, mask, FLOOR_BITS: tl.constexpr, TOP: tl.constexpr):
    """Write the scales for absolute maxima, of which these are the bits; return what to multiply by."""
    absmax = tl.maximum(magnitude, FLOOR_BITS).to(tl.float32, bitcast=True)
    top = tl.full(absmax.shape, TOP, tl.float32)
    tl.store(scale_ptrs, tl.div_rn(absmax, top), mask=mask)
    return tl.div_rn(top, absmax)


@triton.jit
def _to_eight_bits(x, dtype: tl.constexpr, TOP: tl.constexpr):
    x = tl.clamp(x, -TOP, TOP, propagate_nan=tl.PropagateNan.ALL)
    if dtype == tl.int8:
        # Adding 1.5 * 2^23 leaves no bits behind the point: the sum is rounded to the nearest integer, ties to even.
        x = tl.where(x == x, x, 0.0) + 12582912.0 - 12582912.0
    return x.to(dtype)
