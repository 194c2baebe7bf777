"""From tensors to what they pose, for products of 8-bit matrices. Imports torch, not triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aks.ops.gemm.call import rows_of
from aks.ops.scaled.spec import BLOCK


class Operands(NamedTuple):
    """What there is beside x: w [N, K] of its dtype, float32 scales of x and of w, bias [N] bf16 or None.

    A scale for each row, [M] and [N]; or one for all, [1]; or one for each block, [M, ceil(K / 128)] of x and
    [ceil(N / 128), ceil(K / 128)] of w, of any strides.
    """

    w: Tensor
    x_scale: Tensor
    w_scale: Tensor
    bias: Tensor | None = None


class Posed(NamedTuple):
    """A product's axes, what its scales are of (``scaling_of``), and its operands as plain integers."""

    m: int
    n: int
    k: int
    scaling: str
    addresses: tuple[int, ...]
    """Of x, w, the scales, the bias (0 if there is none) and out; then the row strides of x, w and out, in elements."""
    strides: tuple[int, ...]
    """Of the scales: ``scale_strides``."""


def scaling_of(m: int, n: int, k: int, x_scale: Tensor, w_scale: Tensor) -> str:
    """``row``, ``tensor`` or ``block``: what the scales of such a product are of; empty if they are none.

    Where they could be of several, these mean the same: the first counts.
    """
    sizes = x_scale.numel(), w_scale.numel()
    if sizes in ((m, n), (1, 1)) and x_scale.is_contiguous() and w_scale.is_contiguous():
        return "row" if sizes == (m, n) else "tensor"
    blocks = -(-k // BLOCK)
    return "block" if (x_scale.shape, w_scale.shape) == ((m, blocks), (-(-n // BLOCK), blocks)) else ""


def scale_strides(scaling: str, x_scale: Tensor, w_scale: Tensor) -> tuple[int, int, int, int]:
    """From the scale of a row of x to the next row's, from a block of K to the next; then those of w (rows or blocks).

    In elements; 0 where there is one for all.
    """
    if scaling == "block":
        (x_step, x_block), (w_step, w_block) = x_scale.stride(), w_scale.stride()
        return x_step, x_block, w_step, w_block
    step = int(scaling == "row")
    return step, 0, step, 0


def pose(x: Tensor, operands: Operands, out: Tensor, dtype: torch.dtype) -> Posed | None:
    """What tensors pose, with x and w of ``dtype``; None if these kernels do not take them.

    x [M, K] and out [M, N] with rows of contiguous elements, or contiguous with more dimensions before the last; all
    are on one device.
    """
    w, x_scale, w_scale, bias = operands
    if x.dtype != dtype or w.dtype != dtype or out.dtype != torch.bfloat16 or w.dim() != 2 or not x.dim():
        return None
    (m, x_row), (rows, out_row), (n, k), (w_row, step) = rows_of(x), rows_of(out), w.shape, w.stride()
    if not m * n * k or rows != m or x.shape[-1] != k or out.shape[-1] != n:
        return None
    if x_row < k or out_row < n or step != 1 or w_row < k:
        return None
    if x_scale.dtype != torch.float32 or w_scale.dtype != torch.float32:
        return None
    scaling = scaling_of(m, n, k, x_scale, w_scale)
    if not scaling:
        return None
    if bias is not None and (bias.dtype != torch.bfloat16 or bias.shape != (n,) or not bias.is_contiguous()):
        return None
    tensors = (x, w, x_scale, w_scale, bias, out)
    pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    strides = scale_strides(scaling, x_scale, w_scale)
    return Posed(m, n, k, scaling, (*pointers, x_row, w_row, out_row), strides)
