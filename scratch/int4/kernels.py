"""int4-weight linear: packing, kernels, launches.  y[M, N] = x[M, K] @ dequant(w).T, bf16.

Packed words: int32 [KB, NP, 4 (t), 4 (j)], KB = ceil(K / 128), NP = N rounded up to 64 (plus slack rows at the end).
Nibble 4*h + i (i = 2*i0 + i1; h = 0/1) of word (kb, n, t, j), i.e. bits 16*h + 4*i, holds the weight of row n and

    k = 128*kb + 32*j + 16*i0 + 8*i1 + 2*t + h

so a 16-byte load per lane is what the lane needs of 128 k as the A operand of mma/wgmma m16n8k16, and any BN rows of
one kb are contiguous (64 bytes a row). Word j covers k in [32 j, 32 j + 32): groups of 32 / 64 / 128 are 1 / 2 / 4 words.

Meta: int32 [KG, NP / 16, 8 (g)] or, with zero points, [KG, NP / 16, 8 (g), 2]; KG = KB * 128 / group. The first holds
the bf16 scales of rows g (low half) and g + 8 (high half) of 16, the second the bf16 values 128 + zero of the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, asdict

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SLACK_ROWS = 512
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

# ---------------------------------------------------------------------------------------------- packing


def pack(q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, group: int):
    """q [N, K] of 0..15; scales [N, K/group] bf16; zeros [N, K/group] of 0..15 or None (8). Returns words, meta, NP."""
    n, k = q.shape
    kb, np_ = -(-k // 128), -(-n // 64) * 64
    full = torch.zeros((np_, kb * 128), dtype=torch.int32, device=q.device)
    full[:n, :k] = q
    # [n, kb, j, i0, i1, t, h] -> [kb, n, t, j, h, i0, i1]
    v = full.view(np_, kb, 4, 2, 2, 4, 2).permute(1, 0, 5, 2, 6, 3, 4).reshape(kb, np_, 4, 4, 8)
    words = torch.zeros(kb * np_ * 16 + SLACK_ROWS * 16, dtype=torch.int32, device=q.device)
    w = words[: kb * np_ * 16].view(kb, np_, 4, 4)
    for nibble in range(8):
        w |= v[..., nibble] << (4 * nibble)
    kg = kb * 128 // group
    def halves(t):  # [N, groups] bf16 -> [KG, NP/16, 8] int32
        padded = torch.zeros((np_, kg), dtype=torch.bfloat16, device=q.device)
        padded[:n, : t.shape[1]] = t
        bits = padded.view(torch.int16).to(torch.int32).bitwise_and(0xFFFF).t().reshape(kg, np_ // 16, 2, 8)
        return bits[:, :, 0] | (bits[:, :, 1] << 16)
    s = halves(scales)
    if zeros is not None:
        s = torch.stack([s, halves((zeros.float() + 128).to(torch.bfloat16))], dim=-1)
    meta = torch.zeros(s.numel() + SLACK_ROWS, dtype=torch.int32, device=q.device)
    meta[: s.numel()] = s.reshape(-1)
    return words, meta, np_


# ---------------------------------------------------------------------------------------------- inline assembly
# One word -> 8 bf16: ((128 + q) - (128 + z)) * s. $8 word, $9 (128+z) of two rows, $10 s of two rows, $11 which row.
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
DEQUANT = tl.constexpr(_DEQUANT)


def _without(text: str, *words: str) -> str:
    return "\n".join(line for line in text.splitlines() if not any(word in line for word in words))


# The same without the scale: q - z, exactly. $8 word, $9 zeros, $10 which row.
DEQUANT_ZEROS = tl.constexpr(_without(_DEQUANT, "mul.", "prmt.b32 s").replace("$11", "$10"))
# And with z = 8. $8 word.
DEQUANT_EIGHT = tl.constexpr(
    _without(_DEQUANT, "mul.", "prmt.b32 s").replace("prmt.b32 z, $9, $9, $11", "mov.b32 z, 0x43084308")
)
LOAD4 = tl.constexpr("ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];")
# What is not wanted is left undefined.
LOAD4_IF = tl.constexpr(
    """
{
.reg .pred p;
setp.ne.s32 p, $5, 0;
@p ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];
}
"""
)
LOAD1 = tl.constexpr("ld.global.b32 $0, [$1];")
LOAD2 = tl.constexpr("ld.global.v2.b32 {$0, $1}, [$2];")
INTERP = tl.constexpr(INTERPRET)


@triton.jit
def _load_words(pointers, wanted):
    """Four int32 tensors: words j = 0..3 of each lane; undefined unless the scalar ``wanted`` (None: always)."""
    if INTERP:
        a = tl.load(pointers)
        b = tl.load(pointers + 1)
        c = tl.load(pointers + 2)
        d = tl.load(pointers + 3)
    elif wanted is None:
        # Inline assembly keeps the default layout, which is that of the tensor-core operand; tl.load would choose one.
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
    if INTERP:
        s = tl.load(pointers)
        if ZEROS:
            z = tl.load(pointers + 1)
        else:
            z = tl.full(pointers.shape, 0x43084308, tl.int32)
    else:
        if ZEROS:
            s, z = tl.inline_asm_elementwise(
                LOAD2, "=r,=r,l", [pointers], dtype=(tl.int32, tl.int32), is_pure=False, pack=1
            )
        else:
            s = tl.inline_asm_elementwise(LOAD1, "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1)
            z = tl.full(pointers.shape, 0x43084308, tl.int32)
    return s, z


@triton.jit
def _nibble(v, z, s, SHIFT: tl.constexpr):
    q = ((v >> SHIFT) & 15).to(tl.float32)
    return ((q - (z - 128.0)) * s).to(tl.bfloat16)


@triton.jit
def _as_row(pair, q):
    bits = tl.where(q == 0, pair & 0xFFFF, (pair >> 16) & 0xFFFF) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _dequant_word(v, z, s, q, select, ZEROS: tl.constexpr, SCALE: tl.constexpr):
    """[..., h, i1, i0] of one word each."""
    if INTERP:
        zf = _as_row(z, q)
        if SCALE:
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
    elif SCALE and ZEROS:
        a0, a1, b0, b1, c0, c1, d0, d1 = tl.inline_asm_elementwise(
            DEQUANT_ZEROS, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r", [v, z, select],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=1,
        )  # fmt: skip
    elif SCALE:
        a0, a1, b0, b1, c0, c1, d0, d1 = tl.inline_asm_elementwise(
            DEQUANT_EIGHT, "=h,=h,=h,=h,=h,=h,=h,=h,r", [v],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=1,
        )  # fmt: skip
    else:
        a0, a1, b0, b1, c0, c1, d0, d1 = tl.inline_asm_elementwise(
            DEQUANT, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r", [v, z, s, select],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=1,
        )  # fmt: skip
    return tl.join(tl.join(tl.join(a0, a1), tl.join(b0, b1)), tl.join(tl.join(c0, c1), tl.join(d0, d1)))


@triton.jit
def _operand(p, WORDS: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr, V2: tl.constexpr):
    """[R, q, S, W, g, t, h, i1, i0, j0, j1] (as many j as WORDS need) as [R*W*16, 32*WORDS], or [S, ...] where S > 1."""
    p = tl.reshape(p, (R, 2, S, W, 8, 4, 2, 2, 2, 2 if WORDS > 1 else 1, 2 if WORDS > 2 else 1))
    if V2:  # Triton gives mma.sync operands 4 neighbours of k to a lane
        p = tl.permute(p, (2, 0, 3, 1, 4, 10, 9, 8, 5, 7, 6))
    else:
        p = tl.permute(p, (2, 0, 3, 1, 4, 10, 9, 8, 7, 5, 6))
    if S > 1:
        return tl.reshape(p, (S, R * W * 16, 32 * WORDS))
    else:
        return tl.reshape(p, (R * W * 16, 32 * WORDS))


@triton.jit
def _permute_x(x, S: tl.constexpr, BM: tl.constexpr, V2: tl.constexpr, COLUMNS: tl.constexpr):
    """x [BM, COLUMNS] or [S, BM, COLUMNS] with its columns in the order of ``_operand``'s."""
    if V2:
        if S > 1:
            x = tl.reshape(x, (S, BM, COLUMNS // 16, 2, 4, 2))
            x = tl.reshape(tl.permute(x, (0, 1, 2, 4, 3, 5)), (S, BM, COLUMNS))
        else:
            x = tl.reshape(tl.permute(tl.reshape(x, (BM, COLUMNS // 16, 2, 4, 2)), (0, 1, 3, 2, 4)), (BM, COLUMNS))
    return x


@triton.jit
def _held(xs, COUNT: tl.constexpr):
    """The same, in place: Triton would move the way to the tensor cores up to each load, which then wait in turn."""
    held = ()
    for piece in tl.static_range(COUNT):
        if INTERP:
            held = held + (xs[piece],)
        else:
            held = held + (
                tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [xs[piece]], dtype=tl.bfloat16, is_pure=False, pack=2),
            )
    return held


@triton.jit
def _dot(a, x, acc, S: tl.constexpr):
    if INTERP:  # the interpreter multiplies bf16 by their bits
        a = a.to(tl.float32)
        x = x.to(tl.float32)
    if S > 1:
        x = tl.permute(x, (0, 2, 1))
    else:
        x = tl.trans(x)
    if acc is None:
        return tl.dot(a, x)
    else:
        return tl.dot(a, x, acc)


@triton.jit
def _add_scaled(acc, part, pair, q, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr, BM: tl.constexpr):
    """acc [R, q, S, W, g, t, BM/4] plus part [BN, BM] (or [S, BN, BM]) times its rows' scales."""
    part = tl.reshape(part, (S, R, W, 2, 8, BM // 8, 4, 2))
    part = tl.reshape(tl.permute(part, (1, 3, 0, 2, 4, 6, 5, 7)), (R, 2, S, W, 8, 4, BM // 4))
    return acc + part * _as_row(pair, q)[:, :, :, :, :, :, None]


@triton.jit
def _unscramble(acc, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr, BM: tl.constexpr):
    """The inverse of ``_add_scaled``'s view, summed over S: [BN, BM]."""
    acc = tl.permute(tl.reshape(acc, (R, 2, S, W, 8, 4, BM // 8, 2)), (2, 0, 3, 1, 4, 6, 5, 7))
    if S > 1:
        return tl.sum(tl.reshape(acc, (S, R * W * 16, BM)), axis=0)
    else:
        return tl.reshape(acc, (R * W * 16, BM))


@triton.jit
def _accumulate(
    acc, words, metas, xs, q, select,
    R: tl.constexpr, S: tl.constexpr, W: tl.constexpr, BM: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    V2: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """acc plus 128 k (each of S)."""
    P: tl.constexpr = GROUP // 32
    p0 = _dequant_word(words[0], metas[0][1], metas[0][0], q, select, ZEROS, SCALE)
    p1 = _dequant_word(words[1], metas[1 // P][1], metas[1 // P][0], q, select, ZEROS, SCALE)
    p2 = _dequant_word(words[2], metas[2 // P][1], metas[2 // P][0], q, select, ZEROS, SCALE)
    p3 = _dequant_word(words[3], metas[3 // P][1], metas[3 // P][0], q, select, ZEROS, SCALE)
    if SCALE == 0:
        a = _operand(tl.join(tl.join(p0, p1), tl.join(p2, p3)), 4, R, S, W, V2)
        acc = _dot(a, _permute_x(xs[0], S, BM, V2, 128), acc, S)
    elif GROUP == 128:
        a = _operand(tl.join(tl.join(p0, p1), tl.join(p2, p3)), 4, R, S, W, V2)
        part = _dot(a, _permute_x(xs[0], S, BM, V2, 128), None, S)
        acc = _add_scaled(acc, part, metas[0][0], q, R, S, W, BM)
    elif GROUP == 64:
        part = _dot(_operand(tl.join(p0, p1), 2, R, S, W, V2), _permute_x(xs[0], S, BM, V2, 64), None, S)
        acc = _add_scaled(acc, part, metas[0][0], q, R, S, W, BM)
        part = _dot(_operand(tl.join(p2, p3), 2, R, S, W, V2), _permute_x(xs[1], S, BM, V2, 64), None, S)
        acc = _add_scaled(acc, part, metas[1][0], q, R, S, W, BM)
    else:
        part = _dot(_operand(p0, 1, R, S, W, V2), _permute_x(xs[0], S, BM, V2, 32), None, S)
        acc = _add_scaled(acc, part, metas[0][0], q, R, S, W, BM)
        part = _dot(_operand(p1, 1, R, S, W, V2), _permute_x(xs[1], S, BM, V2, 32), None, S)
        acc = _add_scaled(acc, part, metas[1][0], q, R, S, W, BM)
        part = _dot(_operand(p2, 1, R, S, W, V2), _permute_x(xs[2], S, BM, V2, 32), None, S)
        acc = _add_scaled(acc, part, metas[2][0], q, R, S, W, BM)
        part = _dot(_operand(p3, 1, R, S, W, V2), _permute_x(xs[3], S, BM, V2, 32), None, S)
        acc = _add_scaled(acc, part, metas[3][0], q, R, S, W, BM)
    return acc


@triton.jit
def _load_x(x_ptrs, kb, kb_end, offs_k, row_inside, K, EVEN: tl.constexpr, COLUMNS: tl.constexpr):
    """x of the 128 k of block kb (of each of S), in pieces of COLUMNS."""
    xs = ()
    for piece in tl.static_range(128 // COLUMNS):
        pointers = x_ptrs + (kb * 128 + piece * COLUMNS)
        if EVEN:
            xs = xs + (tl.load(pointers, mask=row_inside, other=0.0),)
        else:
            inside = row_inside & (kb * 128 + piece * COLUMNS + offs_k < tl.minimum(K, kb_end * 128))
            xs = xs + (tl.load(pointers, mask=inside, other=0.0),)
    return xs


@triton.jit
def _load_weights(
    w_ptrs, meta_ptrs, kb, kb_end, w_step, meta_step, s, wanted,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Words and metas of the k-blocks kb + s. Beyond kb_end those of its last block, which x (zero there) cancels."""
    PER: tl.constexpr = 128 // GROUP
    if EVEN:
        block = kb
    else:
        block = tl.minimum(kb + s, kb_end - 1)
    if EVEN and wanted is not None and INTERP:
        block = tl.minimum(block, kb_end - 1)
    words = _load_words(w_ptrs + block.to(tl.int64) * w_step, wanted)
    metas = ()
    for p in tl.static_range(PER):
        pointers = meta_ptrs + (block * PER + p) * meta_step
        if wanted is not None and not INTERP:
            pointers = tl.where(wanted != 0, pointers, meta_ptrs)
        metas = metas + (_load_meta(pointers, ZEROS),)
    return words, metas


@triton.jit
def _finish(acc, out_ptr, out_row, workspace_ptr, counter_ptr, tile, split, offs_m, offs_n, M, N, SPLIT_K: tl.constexpr):
    """acc [BN, BM]."""
    BN: tl.constexpr = acc.shape[0]
    BM: tl.constexpr = acc.shape[1]
    inside = (offs_m[None, :] < M) & (offs_n[:, None] < N)
    places = out_ptr + offs_m.to(tl.int64)[None, :] * out_row + offs_n[:, None]
    if SPLIT_K > 1:
        SIZE: tl.constexpr = BN * BM
        within = tl.arange(0, BN)[:, None] + tl.arange(0, BM)[None, :] * BN
        partial = workspace_ptr + tile.to(tl.int64) * (SPLIT_K * SIZE) + within
        rows = offs_m[None, :] < M  # the workspace has room for rows past N
        tl.store(partial + split * SIZE, acc, mask=rows)
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        if arrived == SPLIT_K - 1:
            total = tl.load(partial, mask=rows, other=0.0, cache_modifier=".cg")
            for other in tl.static_range(1, SPLIT_K):
                total += tl.load(partial + other * SIZE, mask=rows, other=0.0, cache_modifier=".cg")
            tl.store(places, total.to(out_ptr.dtype.element_ty), mask=inside)
            tl.store(counter_ptr + tile, 0)
    else:
        tl.store(places, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def int4_kernel(
    x_ptr, w_ptr, meta_ptr, out_ptr, workspace_ptr, counter_ptr, M, N, K, NP, x_row, out_row,
    BM: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr, U: tl.constexpr, SPLIT_K: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, EVEN: tl.constexpr, V2: tl.constexpr, MODE: tl.constexpr,
    STAGES: tl.constexpr, SCALE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """S*W warps: W warps side by side along n (16 rows each, R times), S along k.

    MODE 0 ("burst"): a program's k fits S * U blocks: all its weights are asked for at once, before the wait.
    MODE 1 ("ring"): each of U blocks is replaced, once used, by the one U further on. MODE 2 ("double"): all the next U
    are asked for before the first of these U is used. In both x comes ahead through asynchronous copies where STAGES > 1. (Registers cannot rotate by one block: Triton pipelines no loop with such a distance.)
    SCALE 0: weights are scaled (rounded to bf16); 1: sums of groups are, in float32.
    EVEN: every split has a whole number of steps, and K is a multiple of 128.
    """
    BN: tl.constexpr = R * W * 16
    if PDL:
        gdc_launch_dependents()
    pid = tl.program_id(0)
    split = pid % SPLIT_K
    tiles_m = tl.cdiv(M, BM)
    tile = pid // SPLIT_K
    tile_m = tile % tiles_m
    tile_n = tile // tiles_m
    blocks = tl.cdiv(K, 128)
    STEP: tl.constexpr = S * U
    per_split = tl.cdiv(tl.cdiv(blocks, SPLIT_K), STEP) * STEP
    kb_start = split * per_split
    kb_end = tl.minimum(blocks, kb_start + per_split)
    n0 = tile_n * BN
    r = tl.arange(0, R)[:, None, None, None, None, None]
    q = tl.arange(0, 2)[None, :, None, None, None, None]
    s = tl.arange(0, S)[None, None, :, None, None, None]
    w = tl.arange(0, W)[None, None, None, :, None, None]
    g = tl.arange(0, 8)[None, None, None, None, :, None]
    t = tl.arange(0, 4)[None, None, None, None, None, :]
    row = (r * W + w) * 16 + q * 8 + g
    w_step = NP * 16
    if ZEROS:
        meta_ptrs = meta_ptr + n0 + (((r * W + w) * 8 + g) + t * 0 + s * 0) * 2
        meta_step = NP
    else:
        meta_ptrs = meta_ptr + n0 // 2 + (((r * W + w) * 8 + g) + t * 0 + s * 0)
        meta_step = NP // 2
    w_ptrs = w_ptr + n0.to(tl.int64) * 16 + (row * 16 + t * 4 + s * 0)
    if EVEN and S > 1:
        w_ptrs += s.to(tl.int64) * w_step
        meta_ptrs += s * (meta_step * (128 // GROUP))
    select = tl.where(q == 0, 0x1010, 0x3232)

    COLUMNS: tl.constexpr = GROUP if SCALE else 128
    offs_m = tile_m * BM + tl.arange(0, BM)
    offs_n = n0 + tl.arange(0, BN)
    if S > 1:
        offs_k = tl.arange(0, S)[:, None, None] * 128 + tl.arange(0, COLUMNS)[None, None, :]
        x_ptrs = x_ptr + offs_m.to(tl.int64)[None, :, None] * x_row + offs_k
        row_inside = (offs_m < M)[None, :, None]
    else:
        offs_k = tl.arange(0, COLUMNS)[None, :]
        x_ptrs = x_ptr + offs_m.to(tl.int64)[:, None] * x_row + offs_k
        row_inside = (offs_m < M)[:, None]
    if SCALE:
        acc = tl.zeros((R, 2, S, W, 8, 4, BM // 4), dtype=tl.float32)
    elif S > 1:
        acc = tl.zeros((S, BN, BM), dtype=tl.float32)
    else:
        acc = tl.zeros((BN, BM), dtype=tl.float32)

    weights = ()
    for u in tl.static_range(U):
        weights = weights + (
            _load_weights(w_ptrs, meta_ptrs, kb_start + u * S, kb_end, w_step, meta_step, s, None, GROUP, ZEROS, EVEN),
        )
    if PDL:
        gdc_wait()
    if MODE == 0:
        xs = ()
        for u in tl.static_range(U):
            xs = xs + (_load_x(x_ptrs, kb_start + u * S, kb_end, offs_k, row_inside, K, EVEN, COLUMNS),)
        for u in tl.static_range(U):
            acc = _accumulate(
                acc, weights[u][0], weights[u][1], _held(xs[u], 128 // COLUMNS), q, select, R, S, W, BM, GROUP, ZEROS, V2, SCALE
            )  # fmt: skip
    else:
        for kb in tl.range(kb_start, kb_end, S * U, num_stages=STAGES):
            more = (kb + S * U < kb_end).to(tl.int32)
            xs = ()
            for u in tl.static_range(U):
                xs = xs + (_load_x(x_ptrs, kb + u * S, kb_end, offs_k, row_inside, K, EVEN, COLUMNS),)
            ahead = ()
            if MODE == 2:
                for u in tl.static_range(U):
                    ahead = ahead + (
                        _load_weights(
                            w_ptrs, meta_ptrs, kb + (U + u) * S, kb_end, w_step, meta_step, s, more, GROUP, ZEROS, EVEN
                        ),
                    )  # fmt: skip
            for u in tl.static_range(U):
                if STAGES > 1:
                    x = xs[u]
                else:
                    x = _held(xs[u], 128 // COLUMNS)
                acc = _accumulate(
                    acc, weights[u][0], weights[u][1], x, q, select, R, S, W, BM, GROUP, ZEROS, V2, SCALE
                )  # fmt: skip
                if MODE == 1:  # its registers are free again: what comes U blocks later goes there
                    ahead = ahead + (
                        _load_weights(
                            w_ptrs, meta_ptrs, kb + (U + u) * S, kb_end, w_step, meta_step, s, more, GROUP, ZEROS, EVEN
                        ),
                    )  # fmt: skip
            weights = ahead
    if SCALE:
        acc = _unscramble(acc, R, S, W, BM)
    elif S > 1:
        acc = tl.sum(acc, axis=0)
    _finish(acc, out_ptr, out_row, workspace_ptr, counter_ptr, tile, split, offs_m, offs_n, M, N, SPLIT_K)


# ---------------------------------------------------------------------------------------------- launching


@dataclass(frozen=True)
class Config:
    bm: int
    r: int = 1
    s: int = 1  # warps along k
    w: int = 4  # warps along n
    u: int = 4
    split_k: int = 1
    mode: int = 0  # burst, ring, double
    stages: int = 1
    scale: int = 1
    pdl: int = 1

    @property
    def bn(self) -> int:
        return self.r * self.w * 16

    @property
    def warps(self) -> int:
        return self.s * self.w

    @property
    def v2(self) -> bool:
        """Whether Triton takes mma.sync and not wgmma (what ``check_v2`` asserts of the compiled kernel)."""
        return self.s > 1 or self.warps % 4 != 0 or self.bm < 16

    def legal(self, m: int, n: int, k: int) -> bool:
        blocks = -(-k // 128)
        step = self.s * self.u
        per = -(-(-(-blocks // self.split_k)) // step) * step
        if self.mode == 0 and per > step:
            return False
        if (self.split_k - 1) * per >= blocks:  # a split without work
            return False
        if self.mode and per // step < 2:
            return False
        return True

    def even(self, k: int) -> bool:
        step = self.s * self.u
        return k % (128 * self.split_k * step) == 0

    def grid(self, m: int, n: int) -> int:
        return -(-m // self.bm) * -(-n // self.bn) * self.split_k

    def key(self) -> str:
        kind = ("burst", "ring", "double")[self.mode]
        return f"{kind}_bm{self.bm}_bn{self.bn}_r{self.r}w{self.w}s{self.s}_u{self.u}_k{self.split_k}_st{self.stages}_a{self.scale}_p{self.pdl}"


def constants(c: Config, group: int, zeros: bool, even: bool) -> dict:
    return dict(
        BM=c.bm, R=c.r, S=c.s, W=c.w, U=c.u, SPLIT_K=c.split_k, GROUP=group, ZEROS=zeros, EVEN=even, V2=c.v2,
        MODE=c.mode, STAGES=c.stages, SCALE=c.scale, PDL=0 if INTERPRET else c.pdl,
    )  # fmt: skip


def options(c: Config) -> dict:
    return dict(num_warps=c.warps, num_stages=max(1, c.stages), **({"launch_pdl": True} if c.pdl else {}))


def source(c: Config, group: int, zeros: bool, even: bool, wide: bool = True):
    """wide: N and rows of out are multiples of 8."""
    from triton.compiler import ASTSource

    known = constants(c, group, zeros, even)
    types = dict(
        x_ptr="*bf16", w_ptr="*i32", meta_ptr="*i32", out_ptr="*bf16", workspace_ptr="*fp32", counter_ptr="*i32",
        M="i32", N="i32", K="i32", NP="i32", x_row="i64", out_row="i64",
    )  # fmt: skip
    signature, attributes = {}, {}
    divisors = dict(NP=16, K=8, x_row=8, **(dict(N=8, out_row=8) if wide else {}))
    for index, name in enumerate(int4_kernel.arg_names):
        signature[name] = "constexpr" if name in known else types[name]
        divisor = 16 if name.endswith("_ptr") else divisors.get(name, 1)
        if name not in known and divisor > 1:
            attributes[(index,)] = [["tt.divisibility", divisor]]
    return ASTSource(int4_kernel, signature, known, attributes)


def compile_config(c: Config, group: int, zeros: bool, even: bool, wide: bool = True, target=None):
    from triton.backends.compiler import GPUTarget

    return triton.compile(source(c, group, zeros, even, wide), target=target or GPUTarget("cuda", 90, 32), options=options(c))


def arguments(c: Config, group, zeros, even, x, words, meta, np_, out, workspace, counters, m, n, k) -> list:
    known = constants(c, group, zeros, even) | dict(
        x_ptr=x, w_ptr=words, meta_ptr=meta, out_ptr=out, workspace_ptr=workspace, counter_ptr=counters,
        M=m, N=n, K=k, NP=np_, x_row=x.stride(0), out_row=out.stride(0),
    )  # fmt: skip
    return [known[name] for name in int4_kernel.arg_names]


def run_interpreted(c: Config, group, zeros, x, words, meta, np_, out, workspace, counters):
    m, k = x.shape
    n = out.shape[1]
    args = arguments(c, group, zeros, c.even(k), x, words, meta, np_, out, workspace, counters, m, n, k)
    int4_kernel[(c.grid(m, n),)](*args)
