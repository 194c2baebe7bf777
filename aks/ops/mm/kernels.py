"""The Triton kernel of ``mm``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mm_kernel(
    x_ptr, w_ptr, out_ptr, M, N, K, x_row, w_row, out_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, X_KM: tl.constexpr, W_KN: tl.constexpr,
):  # fmt: skip
    """out = x @ w.T, a tile a program, float32 accumulation; float32 factors are multiplied as TF32.

    x is [M, K] (or given as [K, M] where X_KM), w [N, K] (or [K, N] where W_KN), out [M, N]: rows of
    contiguous elements, x_row, w_row and out_row elements apart. EVEN_K promises that BLOCK_K divides K.
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    # GROUP_M rows of tiles go together, so that what they read stays in L2.
    in_group = GROUP_M * tiles_n
    group = pid // in_group
    group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + pid % in_group % group_rows
    tile_n = pid % in_group // group_rows
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Along rows, what is past the edge reads the last one again: no mask, and its results are not stored.
    # Contiguous elements cannot be clamped: the compiler must see that they are.
    if X_KM:
        x_ptrs = x_ptr + offs_k.to(tl.int64)[None, :] * x_row + offs_m[:, None]
        x_step = x_row * BLOCK_K
    else:
        x_ptrs = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64)[:, None] * x_row + offs_k[None, :]
        x_step = BLOCK_K
    if W_KN:
        w_ptrs = w_ptr + offs_k.to(tl.int64)[:, None] * w_row + offs_n[None, :]
        w_step = w_row * BLOCK_K
    else:
        w_ptrs = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[None, :] * w_row + offs_k[:, None]
        w_step = BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        x = _load(x_ptrs, (offs_m < M)[:, None], ((k + offs_k) < K)[None, :], X_KM, EVEN_K)
        w = _load(w_ptrs, (offs_n < N)[None, :], ((k + offs_k) < K)[:, None], W_KN, EVEN_K)
        acc = tl.dot(x, w, acc, input_precision="tf32")
        x_ptrs += x_step
        w_ptrs += w_step
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * out_row + offs_n[None, :]
    inside = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _load(pointers, inside, inside_k, MASKED: tl.constexpr, EVEN_K: tl.constexpr):
    """A tile, 0 outside; MASKED: ``inside`` matters too."""
    if MASKED:
        if EVEN_K:
            tile = tl.load(pointers, mask=inside, other=0.0)
        else:
            tile = tl.load(pointers, mask=inside & inside_k, other=0.0)
    elif EVEN_K:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=inside_k, other=0.0)
    return tile
