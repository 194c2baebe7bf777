"""4-bit weights as the kernels read them, and from the layouts of others. Imports torch, not triton.

A weight is ``(q - zero) * scale``: q and zero from 0 to 15 (zero is 8 where weights are symmetric), scale bf16, one
scale and zero for each row n and group of k; a last group may be short.

words: int32 [KB, NP, 4 (t), 4 (j)] and slack, KB = ceil(K / 128), NP = N rounded up to 64. Nibble 4 h + 2 i0 + i1 of a
word is the q of row n and ``k = 128 kb + 32 j + 16 i0 + 8 i1 + 2 t + h``: 16 bytes are what a lane needs of 128 k, any
rows of one kb are contiguous, and word j covers 32 k, so groups of 32, 64 and 128 are 1, 2 and 4 words.

meta: int32 [KG, NP / 16, 8 (g)] or, with zeros, [KG, NP / 16, 8, 2], and slack, KG = 128 KB / group. The first holds
the scales of rows g (low half) and g + 8 (high half) of 16, the second the bf16 numbers 128 + zero of the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aks.core.errors import InvalidProblemError
from aks.ops.int4_gemm.spec import GROUPS

_SLACK_ROWS = 512
"""Rows after the last that a tile may reach into: more than any block_n."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column, of 8, that each nibble of an AutoAWQ word holds."""


class Int4Weight(NamedTuple):
    """A weight [N, K], packed: words and meta are flat, as the module says; zeros: whether it has zero points."""

    words: Tensor
    meta: Tensor
    n: int
    k: int
    group: int
    zeros: bool


def quantize(w: Tensor, group: int = 128, zeros: bool = False) -> Int4Weight:
    """Round a weight [N, K] of floats to the nearest of 16 values in each row and group of k.

    Without zeros these are -8 to 7 times a scale, the largest absolute value over 7.5 (so that the largest is off by at
    most half a step, whatever its sign); with zeros they are spread from the least to the largest value, 0 among them.

    Raises
    ------
    InvalidProblemError
        If the weight is no matrix or not finite, or the group is not 32, 64 or 128.
    """
    if w.dim() != 2 or not w.is_floating_point() or not bool(w.isfinite().all()):
        raise InvalidProblemError(
            f"a weight of shape {tuple(w.shape)}, {w.dtype}; wanted [N, K] of floats, all of them finite"
        )
    _check_group(group)
    n, k = w.shape
    count = -(-k // group)
    padded = torch.nn.functional.pad(w.float(), (0, count * group - k)).view(n, count, group)
    if zeros:
        low, high = padded.amin(-1).clamp_(max=0), padded.amax(-1).clamp_(min=0)
        scales = _positive((high - low) / 15)
        zero = (-low / scales.float()).round_().clamp_(0, 15)
    else:
        scales = _positive(padded.abs().amax(-1) / 7.5)
        zero = torch.full_like(scales, 8, dtype=torch.float32)
    q = (padded / scales.float()[..., None]).add_(zero[..., None]).round_().clamp_(0, 15)
    q = q.to(torch.uint8).view(n, -1)[:, :k]
    return pack(q, scales, zero.to(torch.uint8) if zeros else None, group)


def pack(q: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> Int4Weight:
    """Pack q [N, K] of integers 0 to 15, scales [N, ceil(K / group)], zeros the same of integers 0 to 15, or None (8).

    Scales become bf16. All are on one device, where the packed weight will be.

    Raises
    ------
    InvalidProblemError
        If shapes do not fit, values are out of range, or the group is not 32, 64 or 128.
    """
    _check_group(group)
    if q.dim() != 2 or not q.numel() or q.is_floating_point():
        raise InvalidProblemError(f"q is {tuple(q.shape)}, {q.dtype}; wanted integers [N, K]")
    n, k = q.shape
    wanted = (n, -(-k // group))
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        if tensor is not None and tensor.shape != wanted:
            raise InvalidProblemError(
                f"{name} are {tuple(tensor.shape)}; wanted {wanted}: one for each row and group of {group} of {k}"
            )
    for name, tensor in (("q", q), ("zeros", zeros)):
        if tensor is not None and not bool(((tensor >= 0) & (tensor <= 15)).all()):
            raise InvalidProblemError(
                f"{name} have values from {int(tensor.min())} to {int(tensor.max())}; 4 bits: 0 to 15"
            )
    blocks, rows = -(-k // 128), -(-n // 64) * 64
    full = torch.zeros(rows, blocks * 128, dtype=torch.uint8, device=q.device)
    full[:n, :k] = q
    words = torch.zeros(num_words(n, k), dtype=torch.int32, device=q.device)
    body = words[: blocks * rows * 16].view(blocks, rows, 4, 4)
    for shift, codes in _nibbles(full):
        body |= codes.to(torch.int32) << shift
    return Int4Weight(words, pack_meta(scales, zeros, k, group), n, k, group, zeros is not None)


def pack_meta(scales: Tensor, zeros: Tensor | None, k: int, group: int) -> Tensor:
    """The meta of scales and zeros [N, ceil(K / group)]: int32, flat."""
    n, groups = scales.shape
    rows = -(-n // 64) * 64
    padded_groups = -(-k // 128) * 128 // group

    def pairs(values: Tensor) -> Tensor:
        padded = torch.zeros(rows, padded_groups, dtype=torch.bfloat16, device=values.device)
        padded[:n, :groups] = values
        bits = padded.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF).T.reshape(-1, rows // 16, 2, 8)
        return bits[:, :, 0] | bits[:, :, 1] << 16

    made = pairs(scales)
    if zeros is not None:
        made = torch.stack([made, pairs(zeros.float() + 128)], dim=-1)
    return torch.nn.functional.pad(made.reshape(-1), (0, 2 * _SLACK_ROWS))


def num_words(n: int, k: int) -> int:
    """Elements of words, its slack among them."""
    return -(-k // 128) * (-(-n // 64) * 64) * 16 + _SLACK_ROWS * 16


def num_meta(n: int, k: int, group: int, zeros: bool) -> int:
    """Elements of meta, its slack among them."""
    return -(-k // 128) * (128 // group) * (-(-n // 64) * 32) * (1 + zeros) + 2 * _SLACK_ROWS


def unpack(weight: Int4Weight) -> tuple[Tensor, Tensor, Tensor | None]:
    """q [N, K] uint8, scales [N, ceil(K / group)] bf16, and zeros of that shape, uint8, or None: what was packed."""
    words, meta, n, k, group, has_zeros = weight
    blocks, rows = -(-k // 128), -(-n // 64) * 64
    body = words[: blocks * rows * 16].view(blocks, rows, 4, 4)
    full = torch.empty(rows, blocks * 128, dtype=torch.uint8, device=words.device)
    for shift, codes in _nibbles(full):
        codes.copy_((body >> shift).bitwise_and_(15))
    groups, kinds = blocks * 128 // group, 1 + has_zeros
    pairs = meta[: groups * (rows // 2) * kinds].view(groups, rows // 16, 8, kinds)

    def halves(kind: int) -> Tensor:
        bits = torch.stack([pairs[..., kind] << 16, pairs[..., kind] & -65536], dim=2).reshape(groups, rows)
        return bits.view(torch.float32).T[:n, : -(-k // group)]

    zeros = (halves(1) - 128).to(torch.uint8) if has_zeros else None
    return full[:n, :k], halves(0).to(torch.bfloat16), zeros


def dequantize(weight: Int4Weight) -> Tensor:
    """The weight [N, K] in bf16: (q - zero) * scale, rounded once."""
    q, scales, zeros = unpack(weight)
    centred = q.to(torch.bfloat16)
    centred -= 8 if zeros is None else _over_groups(zeros, weight).to(torch.bfloat16)
    return centred.mul_(_over_groups(scales, weight))


def by_k(weight: Int4Weight) -> Tensor:
    """The weight k by k, for one row of x with zeros in it: int32 [K, NP / 8], nibble i of word c has row 8 c + i."""
    q = unpack(weight)[0]
    words = torch.zeros(weight.k, -(-weight.n // 64) * 8, dtype=torch.int32, device=q.device)
    for i in range(8):
        rows = q[i::8].T
        words[:, : rows.shape[1]] |= rows.to(torch.int32) << (4 * i)
    return words


def from_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None = None, *, group: int = 0, v2: bool = False
) -> tuple[Int4Weight, Tensor | None]:
    """A weight in the layout of AutoGPTQ, and the order [K] that columns of x must be brought into: x[:, order].

    The order is None where it is as it was: unless g_idx [K], the group of each k, is not in groups (act-order).
    qweight int32 [K / 8, N], qzeros int32 [G, N / 8], each from the lowest nibble up; scales [G, N], rounded to bf16.
    zeros are stored minus 1 (modulo 16) unless v2 says otherwise. group is K / G unless given; of a multiple of 128,
    scales are repeated. Zeros that are all 8 are left out.

    Raises
    ------
    InvalidProblemError
        If shapes do not fit, or a group has another number of k.
    """
    _check_int32(qweight=qweight, qzeros=qzeros)
    k, n = qweight.shape[0] * 8, qweight.shape[1]
    q = _unpacked(qweight.T.contiguous())
    zeros = _unpacked(qzeros)
    if not v2:
        zeros = (zeros + 1) & 15
    order = None
    group = group or _group_of(k, scales)
    if g_idx is not None:
        wanted = torch.arange(k, device=g_idx.device) // group
        if g_idx.shape != (k,) or not torch.equal(g_idx.long().sort().values, wanted):
            raise InvalidProblemError(
                f"g_idx {tuple(g_idx.shape)} does not give each group {group} of {k} values of k; wanted [K], as "
                "AutoGPTQ writes it"
            )
        if not torch.equal(g_idx.long(), wanted):
            order = g_idx.long().argsort(stable=True)
            q = q[:, order]
    return _pack_foreign(q, scales, zeros, n, group), order


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, *, group: int = 0) -> Int4Weight:
    """A weight in the layout of AutoAWQ (GEMM): qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N].

    Nibble i of a word is of column 0, 2, 4, 6, 1, 3, 5, 7 of its 8; zeros are as they are. group is as for
    ``from_gptq``, scales are rounded to bf16.

    Raises
    ------
    InvalidProblemError
        If shapes do not fit.
    """
    _check_int32(qweight=qweight, qzeros=qzeros)
    k, n = qweight.shape[0], qweight.shape[1] * 8
    place = torch.tensor(_AWQ_ORDER, device=qweight.device).argsort()
    q, zeros = (_unpacked(words).view(len(words), -1, 8)[..., place].flatten(1) for words in (qweight, qzeros))
    return _pack_foreign(q.T, scales, zeros, n, group or _group_of(k, scales))


def exact_rows(weight: Int4Weight, q: Tensor, scales: Tensor, zeros: Tensor | None, rows: slice) -> Tensor:
    """Some rows of the weight whose ``unpack`` is given: (q - zero) * scale, exactly, in float32."""
    zero = 8.0 if zeros is None else _over_groups(zeros[rows], weight).float()
    return (q[rows].float() - zero).mul_(_over_groups(scales[rows], weight))


def _over_groups(values: Tensor, weight: Int4Weight) -> Tensor:
    return values.repeat_interleave(weight.group, 1)[:, : weight.k]


def _nibbles(full: Tensor):
    """(shift, view of the q [KB, NP, t, j] that lie there) for each nibble of a word; full [NP, 128 KB]."""
    rows, columns = full.shape
    parts = full.view(rows, columns // 128, 4, 2, 2, 4, 2)  # n, kb, j, i0, i1, t, h
    for h in range(2):
        for i in range(4):
            yield 16 * h + 4 * i, parts[:, :, :, i // 2, i % 2, :, h].permute(1, 0, 3, 2)


def _pack_foreign(q: Tensor, scales: Tensor, zeros: Tensor, n: int, group: int) -> Int4Weight:
    """q [N, K]; scales and zeros [G, N]."""
    groups = -(-q.shape[1] // group)
    if scales.shape != (groups, n) or zeros.shape != (groups, n):
        raise InvalidProblemError(
            f"scales are {tuple(scales.shape)}, zeros {tuple(zeros.shape)}; of n={n}, k={q.shape[1]} and groups of "
            f"{group} they are {(groups, n)}"
        )
    scales, zeros = scales.T, zeros.T
    if group not in GROUPS and group % 128 == 0:
        count = -(-q.shape[1] // 128)
        scales, zeros = (part.repeat_interleave(group // 128, 1)[:, :count] for part in (scales, zeros))
        group = 128
    return pack(q, scales, None if bool((zeros == 8).all()) else zeros, group)


def _group_of(k: int, scales: Tensor) -> int:
    groups = scales.shape[0]
    if k % groups:
        raise InvalidProblemError(f"{groups} groups of k={k}, which they do not divide; say group=")
    return k // groups


def _unpacked(words: Tensor) -> Tensor:
    """[rows, columns] int32 as [rows, 8 columns] of its nibbles, from the lowest up."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts).bitwise_and_(15).flatten(1)


def _positive(scales: Tensor) -> Tensor:
    """In bf16, and 1 where all weights are 0."""
    rounded = scales.to(torch.bfloat16)
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))


def _check_group(group: int) -> None:
    if group not in GROUPS:
        raise InvalidProblemError(f"group={group!r}; the kernels take groups of {', '.join(map(str, GROUPS))} along k")


def _check_int32(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32 or tensor.dim() != 2:
            raise InvalidProblemError(f"{name} is {tuple(tensor.shape)}, {tensor.dtype}; wanted a matrix of int32")
