"""The Triton kernel of ``int4_gemm`` for one row of x with zeros in it: weights of a k whose x is 0 are not read.

It reads the weights k by k (``packing.by_k``), so that what is left out is contiguous: 128 bytes or more of a program.
Each program lists the k of its share whose x is not 0 in memory of its own, then goes over the list: neither
loads nor arithmetic are spent on the others. NaN is not 0.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _float_code(words, SHIFT: tl.constexpr):
    """2^23 + q of a nibble, as float32: q becomes the last bits of the number."""
    return (((words >> SHIFT) & 15) | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def _half(pair, upper):
    """Of two bf16 in an int32 that of which upper says so, in float32."""
    return tl.where(upper, pair & -65536, pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def sparse_kernel(
    x_ptr, by_k_ptr, meta_ptr, bias_ptr, out_ptr, workspace_ptr, counter_ptr, N, K, has_bias,
    BLOCK_N: tl.constexpr, BLOCKS_K: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, PDL: tl.constexpr,
    ROWS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_N columns of y and BLOCKS_K * 128 k; the last of a column's programs adds up all, in order.

    ROWS: of weights, that a step of a program reads, UNROLL times.
    """
    WORDS: tl.constexpr = BLOCK_N // 8
    SHARE: tl.constexpr = BLOCKS_K * 128
    GROUPS: tl.constexpr = SHARE // GROUP
    if PDL:
        gdc_launch_dependents()
    pid = tl.program_id(0)
    splits = tl.cdiv(K, SHARE)
    tile, split = pid // splits, pid % splits
    rows_16 = tl.cdiv(N, 64) * 4  # packed rows, by 16
    words_n = rows_16 * 2
    offs_w = tile * WORDS + tl.arange(0, WORDS)
    inside = offs_w < words_n
    offs_k = tl.arange(0, SHARE)
    k0 = split * SHARE
    if PDL:
        gdc_wait()
    x = tl.load(x_ptr + k0 + offs_k, mask=k0 + offs_k < K, other=0.0).to(tl.float32)
    wanted = (x != 0.0).to(tl.int32)
    list_ptr = (workspace_ptr + tl.num_programs(0) * BLOCK_N + pid * SHARE).to(tl.pointer_type(tl.int32))
    tl.store(list_ptr + tl.cumsum(wanted, 0) - 1, k0 + offs_k, mask=wanted != 0)
    tl.debug_barrier()

    total = ()
    for _ in tl.static_range(8):  # pyright: ignore[reportGeneralTypeIssues]
        total = total + (tl.zeros((ROWS, WORDS), dtype=tl.float32),)
    for p in range(0, GROUPS):
        scales, zeros = (), ()
        for i in tl.static_range(8):
            kg = split * GROUPS + p
            place = ((kg * rows_16 + offs_w // 2) * 8 + i) * (2 if ZEROS else 1)
            here = inside & (kg * GROUP < K)
            scales = scales + (_half(tl.load(meta_ptr + place, mask=here, other=0), offs_w % 2 == 1),)
            if ZEROS:
                # The second of a pair is 128 + zero.
                zero = _half(tl.load(meta_ptr + place + 1, mask=here, other=0), offs_w % 2 == 1) + (8388608.0 - 128.0)
                zeros = zeros + (zero[None, :],)
            else:
                zeros = zeros + (8388616.0,)
        start = tl.sum(tl.where(offs_k < p * GROUP, wanted, 0), 0)
        end = start + tl.sum(tl.where((offs_k >= p * GROUP) & (offs_k < (p + 1) * GROUP), wanted, 0), 0)
        part = ()
        for _ in tl.static_range(8):
            part = part + (tl.zeros((ROWS, WORDS), dtype=tl.float32),)
        for j in range(start, end, ROWS * UNROLL):
            words, xs = (), ()
            for u in tl.static_range(UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
                at = j + u * ROWS + tl.arange(0, ROWS)
                k = tl.load(list_ptr + at, mask=at < end, other=0)
                xs = xs + (tl.load(x_ptr + k, mask=at < end, other=0.0).to(tl.float32)[:, None],)
                places = by_k_ptr + k.to(tl.int64)[:, None] * words_n + offs_w[None, :]
                words = words + (tl.load(places, mask=(at < end)[:, None] & inside[None, :], other=0),)
            for u in tl.static_range(UNROLL):
                more = ()
                for i in tl.static_range(8):
                    more = more + (part[i] + xs[u] * (_float_code(words[u], 4 * i) - zeros[i]),)
                part = more
        more = ()
        for i in tl.static_range(8):
            more = more + (total[i] + part[i] * scales[i][None, :],)
        total = more

    # Sums lie nibble by nibble in the workspace: place i * WORDS + w has column 8 * w + i.
    tile_ptr = workspace_ptr + tile.to(tl.int64) * splits * BLOCK_N
    for i in tl.static_range(8):
        tl.store(tile_ptr + split * BLOCK_N + i * WORDS + tl.arange(0, WORDS), tl.sum(total[i], axis=0))
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
    if arrived == splits - 1:
        offs = tl.arange(0, BLOCK_N)
        y = tl.zeros((BLOCK_N,), dtype=tl.float32)
        for first in range(0, splits, 16):
            each = first + tl.arange(0, 16)
            places = tile_ptr + each[:, None] * BLOCK_N + offs[None, :]
            y += tl.sum(tl.load(places, mask=(each < splits)[:, None], other=0.0, cache_modifier=".cg"), axis=0)
        offs_n = tile * BLOCK_N + offs % WORDS * 8 + offs // WORDS
        if has_bias != 0:
            y += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)
        tl.store(out_ptr + offs_n, y.to(out_ptr.dtype.element_ty), mask=offs_n < N)
        tl.store(counter_ptr + tile, 0)
