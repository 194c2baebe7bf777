"""The vendor's call for scales of blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from aks.ops.fp8_gemm.spec import Fp8GemmProblem
from aks.ops.gemm.reference import multiply
from aks.ops.scaled.call import Operands
from aks.ops.scaled.reference import dequantize
from aks.ops.scaled.spec import BLOCK

_ROW_OF_BLOCK, _WHOLE_BLOCK = [ScalingType.BlockWise1x128.value], [ScalingType.BlockWise128x128.value]
_PLAIN = [SwizzleType.NO_SWIZZLE.value]
_WAYS = ((16, True), (16, False), (BLOCK, True), (BLOCK, False))
"""What n and k are padded to a multiple of, and whether the bias is added by cuBLASLt, as it may refuse others."""
_found: dict[tuple[Fp8GemmProblem, torch.device, bool], tuple[int, bool] | None] = {}


def vendor(problem: Fp8GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that writes the product into ``out`` by PyTorch, on the current stream. It allocates now.

    On Hopper it is cuBLASLt's product with such scales (``torch.nn.functional.scaled_mm``), whose operands are copied
    into padded ones at each call where they are not as it wants them (``_scaled_mm``). It is launched to find out
    whether it takes this product, once for each problem and GPU, but not while a CUDA graph is being captured. Where
    it does not, and on other GPUs, x and w are multiplied by their scales, rounded to bf16, and ``torch.mm`` does the
    rest.
    """
    if not _has_scaled_mm(x.device):
        return lambda: _dequantized_mm(x, w, out)
    key = problem, x.device, w.bias is None
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return _scaled_mm(problem, x, w, out, *_WAYS[0])
        _found[key] = next((way for way in _WAYS if _runs(_scaled_mm(problem, x, w, out, *way))), None)
    way = _found[key]
    return _scaled_mm(problem, x, w, out, *way) if way else lambda: _dequantized_mm(x, w, out)


def _has_scaled_mm(device: torch.device) -> bool:
    """Whether PyTorch has the product on this GPU: of capability 9.0, with a cuBLAS of CUDA 12.9 or newer."""
    version = tuple(map(int, (torch.version.cuda or "0").split(".")[:2]))
    return torch.cuda.get_device_capability(device) == (9, 0) and version >= (12, 9)


def _runs(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError as error:
        if "CUBLAS_STATUS" in str(error) or isinstance(error, NotImplementedError):
            return False
        raise
    return True


def _dequantized_mm(x: Tensor, w: Operands, out: Tensor) -> None:
    x_whole, w_whole = dequantize(x, w.x_scale, 1), dequantize(w.w, w.w_scale, BLOCK)
    multiply(x_whole.to(out.dtype), w_whole.to(out.dtype), w.bias, out)


def _scaled_mm(
    problem: Fp8GemmProblem, x: Tensor, w: Operands, out: Tensor, multiple: int, adds_bias: bool
) -> Callable[[], None]:
    """cuBLASLt's product, with n and k padded to a multiple, and whether it adds the bias by itself.

    It wants m to be a multiple of 4, and matrices aligned to 16 bytes. Scales of x lie with those of one block of K
    side by side; of w, rows of scales have a multiple of 4 elements: with others its results are wrong, which
    PyTorch's newer call, and not ``torch._scaled_mm``, refuses (https://github.com/pytorch/pytorch/pull/166752).
    """
    m, n, k = problem.m, problem.n, problem.k
    wide_m, wide_n, wide_k = _up(m, 4), _up(n, multiple), _up(k, multiple)
    blocks, n_blocks = -(-wide_k // BLOCK), -(-wide_n // BLOCK)
    aligned = problem.alignment == 16
    copies: list[tuple[Tensor, Tensor]] = []

    def fitted(tensor: Tensor, fits: bool, empty: Tensor) -> Tensor:
        """The tensor, or an empty one that it is copied into at each call."""
        if fits:
            return tensor
        copies.append((empty[tuple(map(slice, tensor.shape))], tensor))
        return empty

    def laid_out(scales: Tensor, rows: int, row: int) -> Tensor:
        """So many rows of so many scales without a gap, of which these are the first."""
        if _lies(scales, rows, row):
            return scales.as_strided((rows, row), (row, 1))
        return fitted(scales, False, scales.new_zeros(rows, row))

    x_in = fitted(x, aligned and (m, k) == (wide_m, wide_k), x.new_zeros(wide_m, wide_k))
    w_in = fitted(w.w, aligned and (n, k) == (wide_n, wide_k), x.new_zeros(wide_n, wide_k))
    x_scale, w_scale = laid_out(w.x_scale.T, blocks, wide_m).T, laid_out(w.w_scale, n_blocks, _up(blocks, 4)).T
    bias = None
    if w.bias is not None and adds_bias:
        bias = fitted(w.bias, n == wide_n, w.bias.new_zeros(wide_n))
    whole = out if aligned and (m, n) == (wide_m, wide_n) else out.new_empty(wide_m, wide_n)

    def run() -> None:
        for target, source in copies:
            target.copy_(source)
        _multiply(x_in, w_in, x_scale, w_scale, bias, whole)
        if w.bias is not None and not adds_bias:
            torch.add(whole[:m, :n], w.bias, out=out)
        elif whole is not out:
            out.copy_(whole[:m, :n])

    return run


def _multiply(x: Tensor, w: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    torch.ops.aten._scaled_mm_v2.out(
        x, w.T, [x_scale], _ROW_OF_BLOCK, _PLAIN, [w_scale], _WHOLE_BLOCK, _PLAIN, bias, out.dtype, out=out
    )


def _lies(scales: Tensor, rows: int, row: int) -> bool:
    """Whether memory holds so many rows of so many elements without a gap, of which scales are the first columns."""
    end = (scales.storage_offset() + rows * row) * scales.element_size()
    steps = zip(scales.shape, scales.stride(), (row, 1), strict=True)
    return (
        scales.shape[0] == rows
        and scales.shape[1] <= row
        and all(size == 1 or stride == wanted for size, stride, wanted in steps)
        and scales.data_ptr() % 16 == 0
        and end <= scales.untyped_storage().nbytes()
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
