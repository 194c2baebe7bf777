"""The Triton kernel of ``int4_gemm``: packed 4-bit weights go straight into the registers of the tensor cores.

``y.T = w @ x.T``: n lies along the tensor cores' long side. A lane's 16 bytes of ``packing``'s words are what it needs
of 128 k as the left operand of m16n8k16 (mma.sync, and wgmma with that operand in registers), so weights pass through
no shared memory. Lanes turn them into bf16 with one operation for two weights: with 0x4300 above it, a weight q is the
bf16 number 128 + q, and (128 + q) - (128 + zero) is exact.

What looks roundabout keeps Triton from moving data between lanes, or from waiting:

- Weights are loaded by inline assembly, which leaves tensors in the default layout: that of the operand. ``tl.load``
  would choose one of its own, and convert.
- The order of k within an operand is the packing's; x is permuted to match where Triton's layout asks for it
  (``_permute_x``), since a product does not care in which order it adds.
- ``_held`` keeps Triton from moving the way of x to the tensor cores up to each load, which then wait in turn.
- Words that are asked for ahead live in tuples of tensors: Triton pipelines no load whose value it does not see go
  through shared memory.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Triton's interpreter runs no inline assembly.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)

# A word -> 8 bf16: ((128 + q) - (128 + zero)) * scale. $8 word, $9 128 + zero of two rows, $10 scale of two rows, $11
# which of the two.
_DEQUANT = """
{
.reg .b32 a, b, c, d, z, s;
prmt.b32 z, $9, $9, $11;
prmt.b32 s, $10, $10, $11;
shr.u32 b, $8, 4;
shr.u32 c, $8, 8;
shr.u32 d, $8, 12;
lop3.b32 a, $8, 0x000f000f, 0x43004300, 0xea;
lop3.b32 b, b, 0x000f000f, 0x43004300, 0xea;
lop3.b32 c, c, 0x000f000f, 0x43004300, 0xea;
lop3.b32 d, d, 0x000f000f, 0x43004300, 0xea;
sub.bf16x2 a, a, z;
sub.bf16x2 b, b, z;
sub.bf16x2 c, c, z;
sub.bf16x2 d, d, z;
mul.bf16x2 a, a, s;
mul.bf16x2 b, b, s;
mul.bf16x2 c, c, s;
mul.bf16x2 d, d, s;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}
"""


def _without(text: str, *words: str) -> str:
    return "\n".join(line for line in text.splitlines() if not any(word in line for word in words))


_UNSCALED = _without(_DEQUANT, "mul.", "prmt.b32 s")
DEQUANT: Any = tl.constexpr(_DEQUANT)
# $8 word, $9 zeros, $10 which row.
DEQUANT_ZEROS: Any = tl.constexpr(_UNSCALED.replace("$11", "$10"))
# With a zero of 8. $8 word.
DEQUANT_EIGHT: Any = tl.constexpr(_UNSCALED.replace("prmt.b32 z, $9, $9, $11", "mov.b32 z, 0x43084308"))
EIGHT_BF16: Any = tl.constexpr((tl.bfloat16,) * 8)
EIGHTS: Any = tl.constexpr(0x43084308)
LOAD4: Any = tl.constexpr("ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];")
# What is not wanted is left undefined.
LOAD4_IF: Any = tl.constexpr(
    """
{
.reg .pred p;
setp.ne.s32 p, $5, 0;
@p ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];
}
"""
)
LOAD1: Any = tl.constexpr("ld.global.b32 $0, [$1];")
LOAD2: Any = tl.constexpr("ld.global.v2.b32 {$0, $1}, [$2];")


@triton.jit
def _load_words(pointers, wanted):
    """Four int32 tensors: words j = 0..3 of each lane; undefined unless the scalar ``wanted`` (None: always)."""
    if INTERPRETED:
        a = tl.load(pointers)
        b = tl.load(pointers + 1)
        c = tl.load(pointers + 2)
        d = tl.load(pointers + 3)
    elif wanted is None:
        a, b, c, d = tl.inline_asm_elementwise(
            LOAD4, "=r,=r,=r,=r,l", [pointers], dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False, pack=1,
        )  # fmt: skip
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            LOAD4_IF, "=r,=r,=r,=r,l,r", [pointers, wanted], dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False, pack=1,
        )  # fmt: skip
    return a, b, c, d


@triton.jit
def _load_meta(pointers, ZEROS: tl.constexpr):
    """Scales and 128 + zeros of two rows a lane."""
    z = tl.full(pointers.shape, EIGHTS, tl.int32)
    if INTERPRETED:
        s = tl.load(pointers)
        if ZEROS:
            z = tl.load(pointers + 1)
    elif ZEROS:
        s, z = tl.inline_asm_elementwise(
            LOAD2, "=r,=r,l", [pointers], dtype=(tl.int32, tl.int32), is_pure=False, pack=1
        )  # fmt: skip
    else:
        s = tl.inline_asm_elementwise(LOAD1, "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1)
    return s, z


@triton.jit
def _nibble(v, z, s, SHIFT: tl.constexpr):
    """What ``DEQUANT`` makes of 4 bits, for the interpreter, which would cut a float32 off to bf16: rounded by hand."""
    q = ((v >> SHIFT) & 15).to(tl.float32)
    bits = ((q - (z - 128.0)) * s).to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _as_row(pair, q):
    """Of two bf16 in an int32, that of rows g (q = 0) or g + 8 (q = 1), in float32."""
    bits = tl.where(q == 0, pair & 0xFFFF, (pair >> 16) & 0xFFFF) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _dequant_word(v, z, s, q, select, ZEROS: tl.constexpr, SCALE_SUMS: tl.constexpr):
    """[..., h, i1, i0] of one word each."""
    if INTERPRETED:
        zf = _as_row(z, q)
        if SCALE_SUMS:
            sf = 1.0
        else:
            sf = _as_row(s, q)
        a0 = _nibble(v, zf, sf, 0)
        a1 = _nibble(v, zf, sf, 16)
        b0 = _nibble(v, zf, sf, 4)
        b1 = _nibble(v, zf, sf, 20)
        c0 = _nibble(v, zf, sf, 8)
        c1 = _nibble(v, zf, sf, 24)
        d0 = _nibble(v, zf, sf, 12)
        d1 = _nibble(v, zf, sf, 28)
    elif SCALE_SUMS and ZEROS:
        a0, a1, b0, b1, c0, c1, d0, d1 = tl.inline_asm_elementwise(
            DEQUANT_ZEROS, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r", [v, z, select],
            dtype=EIGHT_BF16, is_pure=True, pack=1,
        )  # fmt: skip
    elif SCALE_SUMS:
        a0, a1, b0, b1, c0, c1, d0, d1 = tl.inline_asm_elementwise(
            DEQUANT_EIGHT, "=h,=h,=h,=h,=h,=h,=h,=h,r", [v],
            dtype=EIGHT_BF16, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        a0, a1, b0, b1, c0, c1, d0, d1 = tl.inline_asm_elementwise(
            DEQUANT, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r", [v, z, s, select],
            dtype=EIGHT_BF16, is_pure=True, pack=1,
        )  # fmt: skip
    return tl.join(tl.join(tl.join(a0, a1), tl.join(b0, b1)), tl.join(tl.join(c0, c1), tl.join(d0, d1)))


@triton.jit
def _operand(p, WORDS: tl.constexpr, WGMMA: tl.constexpr):
    """[R, q, W, g, t, h, i1, i0, j0, j1] (as many j as WORDS need) as [R*W*16, 32*WORDS]."""
    R: tl.constexpr = p.shape[0]
    W: tl.constexpr = p.shape[2]
    p = tl.reshape(p, (R, 2, W, 8, 4, 2, 2, 2, 2 if WORDS > 1 else 1, 2 if WORDS > 2 else 1))
    if WGMMA:
        p = tl.permute(p, (0, 2, 1, 3, 9, 8, 7, 6, 4, 5))
    else:  # Triton gives operands of mma.sync 4 neighbours of k to a lane
        p = tl.permute(p, (0, 2, 1, 3, 9, 8, 7, 4, 6, 5))
    return tl.reshape(p, (R * W * 16, 32 * WORDS))


@triton.jit
def _permute_x(x, WGMMA: tl.constexpr):
    """x [BLOCK_M, columns] with its columns in the order of ``_operand``'s."""
    if not WGMMA:
        BLOCK_M: tl.constexpr = x.shape[0]
        COLUMNS: tl.constexpr = x.shape[1]
        x = tl.permute(tl.reshape(x, (BLOCK_M, COLUMNS // 16, 2, 4, 2)), (0, 1, 3, 2, 4))
        x = tl.reshape(x, (BLOCK_M, COLUMNS))
    return x


@triton.jit
def _held(xs, PIECES: tl.constexpr):
    """The same, in place (above)."""
    held = ()
    for piece in tl.static_range(PIECES):  # pyright: ignore[reportGeneralTypeIssues]
        if INTERPRETED:
            held = held + (xs[piece],)
        else:
            held = held + (
                tl.inline_asm_elementwise(
                    "mov.b32 $0, $1;", "=r,r", [xs[piece]], dtype=tl.bfloat16, is_pure=False, pack=2
                ),
            )
    return held


@triton.jit
def _dot(a, x, acc):
    if INTERPRETED:  # which multiplies bf16 by their bits
        a = a.to(tl.float32)
        x = x.to(tl.float32)
    if acc is None:
        return tl.dot(a, tl.trans(x))
    else:
        return tl.dot(a, tl.trans(x), acc)


@triton.jit
def _add_scaled(acc, part, pair, q):
    """acc [R, q, W, g, t, BLOCK_M/4] plus part [BLOCK_N, BLOCK_M] times its rows' scales."""
    R: tl.constexpr = acc.shape[0]
    W: tl.constexpr = acc.shape[2]
    BLOCK_M: tl.constexpr = part.shape[1]
    part = tl.reshape(part, (R, W, 2, 8, BLOCK_M // 8, 4, 2))
    part = tl.reshape(tl.permute(part, (0, 2, 1, 3, 5, 4, 6)), (R, 2, W, 8, 4, BLOCK_M // 4))
    return acc + part * _as_row(pair, q)[:, :, :, :, :, None]


@triton.jit
def _unscramble(acc):
    """The inverse of ``_add_scaled``'s view: [BLOCK_N, BLOCK_M]."""
    R: tl.constexpr = acc.shape[0]
    W: tl.constexpr = acc.shape[2]
    BLOCK_M: tl.constexpr = acc.shape[5] * 4
    acc = tl.permute(tl.reshape(acc, (R, 2, W, 8, 4, BLOCK_M // 8, 2)), (0, 2, 1, 3, 5, 4, 6))
    return tl.reshape(acc, (R * W * 16, BLOCK_M))


@triton.jit
def _accumulate(
    acc, words, metas, xs, q, select,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, WGMMA: tl.constexpr, SCALE_SUMS: tl.constexpr,
):  # fmt: skip
    """acc plus 128 k."""
    P: tl.constexpr = GROUP // 32
    p0 = _dequant_word(words[0], metas[0][1], metas[0][0], q, select, ZEROS, SCALE_SUMS)
    p1 = _dequant_word(words[1], metas[1 // P][1], metas[1 // P][0], q, select, ZEROS, SCALE_SUMS)
    p2 = _dequant_word(words[2], metas[2 // P][1], metas[2 // P][0], q, select, ZEROS, SCALE_SUMS)
    p3 = _dequant_word(words[3], metas[3 // P][1], metas[3 // P][0], q, select, ZEROS, SCALE_SUMS)
    if not SCALE_SUMS:
        a = _operand(tl.join(tl.join(p0, p1), tl.join(p2, p3)), 4, WGMMA)
        acc = _dot(a, _permute_x(xs[0], WGMMA), acc)
    elif GROUP == 128:
        a = _operand(tl.join(tl.join(p0, p1), tl.join(p2, p3)), 4, WGMMA)
        acc = _add_scaled(acc, _dot(a, _permute_x(xs[0], WGMMA), None), metas[0][0], q)
    elif GROUP == 64:
        part = _dot(_operand(tl.join(p0, p1), 2, WGMMA), _permute_x(xs[0], WGMMA), None)
        acc = _add_scaled(acc, part, metas[0][0], q)
        part = _dot(_operand(tl.join(p2, p3), 2, WGMMA), _permute_x(xs[1], WGMMA), None)
        acc = _add_scaled(acc, part, metas[1][0], q)
    else:
        acc = _add_scaled(acc, _dot(_operand(p0, 1, WGMMA), _permute_x(xs[0], WGMMA), None), metas[0][0], q)
        acc = _add_scaled(acc, _dot(_operand(p1, 1, WGMMA), _permute_x(xs[1], WGMMA), None), metas[1][0], q)
        acc = _add_scaled(acc, _dot(_operand(p2, 1, WGMMA), _permute_x(xs[2], WGMMA), None), metas[2][0], q)
        acc = _add_scaled(acc, _dot(_operand(p3, 1, WGMMA), _permute_x(xs[3], WGMMA), None), metas[3][0], q)
    return acc


@triton.jit
def _load_x(x_ptrs, kb, kb_end, offs_k, row_inside, K, EVEN: tl.constexpr, COLUMNS: tl.constexpr):
    """x of the 128 k of block kb, in pieces of COLUMNS."""
    xs = ()
    for piece in tl.static_range(128 // COLUMNS):  # pyright: ignore[reportGeneralTypeIssues]
        pointers = x_ptrs + (kb * 128 + piece * COLUMNS)
        if EVEN:
            xs = xs + (tl.load(pointers, mask=row_inside, other=0.0),)
        else:
            inside = row_inside & (kb * 128 + piece * COLUMNS + offs_k < tl.minimum(K, kb_end * 128))
            xs = xs + (tl.load(pointers, mask=inside, other=0.0),)
    return xs


@triton.jit
def _load_weights(
    w_ptrs, meta_ptrs, kb, kb_end, w_step, meta_step, wanted,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Words and metas of block kb; beyond kb_end those of the last block, which x (zero there) cancels."""
    PER: tl.constexpr = 128 // GROUP
    block = kb
    if not EVEN or INTERPRETED:  # where EVEN, what lies beyond is not wanted
        block = tl.minimum(block, kb_end - 1)
    words = _load_words(w_ptrs + block.to(tl.int64) * w_step, wanted)
    metas = ()
    for p in tl.static_range(PER):
        pointers = meta_ptrs + (block * PER + p) * meta_step
        if wanted is not None and not INTERPRETED:
            pointers = tl.where(wanted != 0, pointers, meta_ptrs)
        metas = metas + (_load_meta(pointers, ZEROS),)
    return words, metas


@triton.jit
def _add_bias(acc, bias_ptr, has_bias, offs_n, N):
    if has_bias != 0:  # a branch: what brings it to acc's layout takes as long as the load
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[:, None]
    return acc


@triton.jit
def _finish(
    acc, out_ptr, out_row, bias_ptr, has_bias, workspace_ptr, counter_ptr, tile, split, splits, offs_m, offs_n, M, N,
    SPLIT_K: tl.constexpr,
):  # fmt: skip
    """Write acc [BLOCK_N, BLOCK_M]; of several splits (at most SPLIT_K) the last to arrive adds up all, in order."""
    BLOCK_N: tl.constexpr = acc.shape[0]
    BLOCK_M: tl.constexpr = acc.shape[1]
    inside = (offs_m[None, :] < M) & (offs_n[:, None] < N)
    places = out_ptr + offs_m.to(tl.int64)[None, :] * out_row + offs_n[:, None]
    if SPLIT_K > 1:
        SIZE: tl.constexpr = BLOCK_N * BLOCK_M
        within = tl.arange(0, BLOCK_N)[:, None] + tl.arange(0, BLOCK_M)[None, :] * BLOCK_N
        partial = workspace_ptr + tile.to(tl.int64) * splits * SIZE + within
        rows = offs_m[None, :] < M  # the workspace has room for rows past N
        tl.store(partial + split * SIZE, acc, mask=rows)
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        if arrived == splits - 1:
            total = tl.load(partial, mask=rows, other=0.0, cache_modifier=".cg")
            for other in tl.static_range(1, SPLIT_K):  # pyright: ignore[reportGeneralTypeIssues]
                there = rows & (other < splits)
                total += tl.load(partial + other * SIZE, mask=there, other=0.0, cache_modifier=".cg")
            total = _add_bias(total, bias_ptr, has_bias, offs_n, N)
            tl.store(places, total.to(out_ptr.dtype.element_ty), mask=inside)
            tl.store(counter_ptr + tile, 0)
    else:
        acc = _add_bias(acc, bias_ptr, has_bias, offs_n, N)
        tl.store(places, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def int4_kernel(
    x_ptr, w_ptr, meta_ptr, bias_ptr, out_ptr, workspace_ptr, counter_ptr, M, N, K, x_row, out_row, has_bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS_K: tl.constexpr, SPLIT_K: tl.constexpr, WARPS: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, EVEN: tl.constexpr, WGMMA: tl.constexpr, MODE: tl.constexpr,
    STAGES: tl.constexpr, SCALE_SUMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Warps lie side by side along n, 16 rows each (as often as BLOCK_N asks for).

    MODE 0 (``burst``): a program's k is BLOCKS_K blocks of 128: all its weights are asked for at once; splits of k are
    as many as that takes, at most SPLIT_K. MODE 1 (``ring``): each of BLOCKS_K blocks is replaced, once used, by the
    one BLOCKS_K further on. MODE 2 (``double``): all the next BLOCKS_K are asked for before the first of these is used.
    In both x comes ahead, through asynchronous copies, where STAGES > 1.
    SCALE_SUMS: False scales weights (rounded to bf16); True scales sums of groups, in float32.
    EVEN: every split has a whole number of steps, and K is a multiple of 128. WGMMA: which of its instructions for
    tensor cores Triton takes; only the speed depends on it.
    PDL: 0 no dependent launch; 1 early start; 2 the first weights are asked for before the preceding kernel ends.
    """
    if PDL:
        gdc_launch_dependents()
        if PDL == 1:
            gdc_wait()
    R: tl.constexpr = BLOCK_N // (WARPS * 16)
    pid = tl.program_id(0)
    blocks = tl.cdiv(K, 128)
    if MODE == 0:
        splits = tl.cdiv(blocks, BLOCKS_K)
        per_split = BLOCKS_K
    else:
        splits = SPLIT_K
        per_split = tl.cdiv(tl.cdiv(blocks, SPLIT_K), BLOCKS_K) * BLOCKS_K
    split = pid % splits
    tile = pid // splits
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile_m = tile % tiles_m
    tile_n = tile // tiles_m
    kb_start = split * per_split
    kb_end = tl.minimum(blocks, kb_start + per_split)
    n0 = tile_n * BLOCK_N
    r = tl.arange(0, R)[:, None, None, None, None]
    q = tl.arange(0, 2)[None, :, None, None, None]
    w = tl.arange(0, WARPS)[None, None, :, None, None]
    g = tl.arange(0, 8)[None, None, None, :, None]
    t = tl.arange(0, 4)[None, None, None, None, :]
    row = (r * WARPS + w) * 16 + q * 8 + g
    rows_64 = tl.cdiv(N, 64)  # packed rows are whole 64s
    w_step = rows_64 * 1024
    w_ptrs = w_ptr + n0.to(tl.int64) * 16 + (row * 16 + t * 4)
    pair = ((r * WARPS + w) * 8 + g) + t * 0
    if ZEROS:
        meta_step = rows_64 * 64
        meta_ptrs = meta_ptr + n0 + pair * 2
    else:
        meta_step = rows_64 * 32
        meta_ptrs = meta_ptr + n0 // 2 + pair
    select = tl.where(q == 0, 0x1010, 0x3232)

    COLUMNS: tl.constexpr = GROUP if SCALE_SUMS else 128
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = n0 + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, COLUMNS)[None, :]
    x_ptrs = x_ptr + offs_m.to(tl.int64)[:, None] * x_row + offs_k
    row_inside = (offs_m < M)[:, None]
    if SCALE_SUMS:
        acc = tl.zeros((R, 2, WARPS, 8, 4, BLOCK_M // 4), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)

    weights = ()
    for u in tl.static_range(BLOCKS_K):
        weights = weights + (
            _load_weights(w_ptrs, meta_ptrs, kb_start + u, kb_end, w_step, meta_step, None, GROUP, ZEROS, EVEN),
        )
    if PDL == 2:
        gdc_wait()
    if MODE == 0:
        xs = ()
        for u in tl.static_range(BLOCKS_K):
            xs = xs + (_load_x(x_ptrs, kb_start + u, kb_end, offs_k, row_inside, K, EVEN, COLUMNS),)
        for u in tl.static_range(BLOCKS_K):
            x = _held(xs[u], 128 // COLUMNS)
            acc = _accumulate(acc, weights[u][0], weights[u][1], x, q, select, GROUP, ZEROS, WGMMA, SCALE_SUMS)
    else:
        for kb in tl.range(kb_start, kb_end, BLOCKS_K, num_stages=STAGES):
            more = (kb + BLOCKS_K < kb_end).to(tl.int32)
            xs = ()
            for u in tl.static_range(BLOCKS_K):
                xs = xs + (_load_x(x_ptrs, kb + u, kb_end, offs_k, row_inside, K, EVEN, COLUMNS),)
            ahead = ()
            if MODE == 2:
                for u in tl.static_range(BLOCKS_K):
                    ahead = ahead + (
                        _load_weights(
                            w_ptrs, meta_ptrs, kb + BLOCKS_K + u, kb_end, w_step, meta_step, more, GROUP, ZEROS, EVEN
                        ),
                    )
            for u in tl.static_range(BLOCKS_K):
                if STAGES > 1:
                    x = xs[u]
                else:
                    x = _held(xs[u], 128 // COLUMNS)
                acc = _accumulate(acc, weights[u][0], weights[u][1], x, q, select, GROUP, ZEROS, WGMMA, SCALE_SUMS)
                if MODE == 1:  # its registers are free again: what comes BLOCKS_K later goes there
                    ahead = ahead + (
                        _load_weights(
                            w_ptrs, meta_ptrs, kb + BLOCKS_K + u, kb_end, w_step, meta_step, more, GROUP, ZEROS, EVEN
                        ),
                    )
            weights = ahead
    if SCALE_SUMS:
        acc = _unscramble(acc)
    _finish(
        acc, out_ptr, out_row, bias_ptr, has_bias, workspace_ptr, counter_ptr, tile, split, splits, offs_m, offs_n, M,
        N, SPLIT_K,
    )  # fmt: skip
