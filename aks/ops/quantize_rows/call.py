"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aks.core import formula
from aks.ops.gemm.call import rows_of
from aks.ops.gemm.reference import DTYPES
from aks.ops.quantize_rows.launch_spec import LAUNCH_SPEC
from aks.ops.quantize_rows.spec import OUT_DTYPES, QuantizeRowsProblem

EIGHT_BIT = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""The 8-bit types by their names."""
_DTYPE_CODES = {dtype: QuantizeRowsProblem.CHOICES["dtype"].index(name) for name, dtype in DTYPES.items()}
_OUT_CODES = {dtype: OUT_DTYPES.index(name) for name, dtype in EIGHT_BIT.items()}
_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Operands(NamedTuple):
    """What there is beside x: where the scales go. None: behind the rows of out (``scales_behind``).

    float32 [M]; of groups [M, ceil(K / group)], of any strides.
    """

    scale: Tensor | None = None


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype and out_dtype are indices into ``QuantizeRowsProblem.CHOICES``;
    strides are in elements, those of scales as ``scale_strides`` says.
    """

    m: int
    k: int
    dtype: int
    out_dtype: int
    group: int
    x_ptr: int
    scale_ptr: int
    out_ptr: int
    x_row: int
    out_row: int
    scale_step: int
    scale_block: int

    def problem(self) -> QuantizeRowsProblem:
        """The problem, its alignment worked out."""
        dtype = QuantizeRowsProblem.CHOICES["dtype"][self.dtype]
        return QuantizeRowsProblem(
            self.m, self.k, dtype, OUT_DTYPES[self.out_dtype], self.group, _ALIGNMENT(self._asdict())
        )  # fmt: skip


def call_of(x: Tensor, scale: Tensor, out: Tensor, group: int = 0) -> Call | None:
    """The call that tensors pose; None if the kernels do not take them.

    x and out [M, K] with rows of contiguous elements, or contiguous with more dimensions before the last; scale has M
    elements, or with a group is [M, ceil(K / group)]. They are on one device.
    """
    dtype, out_dtype = _DTYPE_CODES.get(x.dtype), _OUT_CODES.get(out.dtype)
    (m, x_row), (_, out_row), k = rows_of(x), rows_of(out), x.shape[-1]
    if dtype is None or out_dtype is None or not m * k or out.shape != x.shape or x_row < k or out_row < k:
        return None
    fits = scale.shape == (m, -(-k // group)) if group else scale.numel() == m and scale.is_contiguous()
    if scale.dtype != torch.float32 or not fits:
        return None
    addresses = x.data_ptr(), scale.data_ptr(), out.data_ptr()
    return Call(m, k, dtype, out_dtype, group, *addresses, x_row, out_row, *scale_strides(scale, group))


def call_for(problem: QuantizeRowsProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    values, scale = parts_of(problem, w, out)
    return call_of(x, scale, values, problem.group)


def parts_of(problem: QuantizeRowsProblem, w: Operands, out: Tensor) -> tuple[Tensor, Tensor]:
    """Where the values [M, K] and the scales go."""
    return out[: problem.m], scales_behind(out, problem.m, problem.group) if w.scale is None else w.scale


def scale_strides(scale: Tensor, group: int) -> tuple[int, int]:
    """From a row's scale to the next row's, and to that of the row's next group (0: there is none), in elements."""
    return (scale.stride(0), scale.stride(1)) if group else (1, 0)


def count_scales(m: int, k: int, group: int) -> int:
    """Elements that the scales of m rows take, in the layout of ``as_scales``."""
    return -(-k // group) * _column(m) if group else m


def as_scales(memory: Tensor, rows: Sequence[int], k: int, group: int) -> Tensor:
    """Memory of ``count_scales`` elements as the scales of x [*rows, k]: [*rows], of groups [*rows, ceil(k / group)].

    The scales of one group of all rows lie side by side, and those of the next behind them from a multiple of 4 on:
    as cuBLASLt wants them.
    """
    steps = [math.prod(rows[place + 1 :]) for place in range(len(rows))]
    if not group:
        return memory.as_strided(tuple(rows), tuple(steps))
    return memory.as_strided((*rows, -(-k // group)), (*steps, _column(math.prod(rows))))


def rows_behind(m: int, k: int, group: int) -> int:
    """How many rows of k bytes the scales of m rows take, wherever the first begins."""
    return -(-(4 * count_scales(m, k, group) + 3) // k)


def scales_behind(out: Tensor, m: int, group: int) -> Tensor:
    """The memory behind the first m rows of an 8-bit out, from the next multiple of 4 bytes on, as their scales."""
    k, start = out.shape[1], out.storage_offset() + m * out.stride(0)
    count = 4 * count_scales(m, k, group)
    memory = out.as_strided((count,), (1,), start + -start % 4).view(torch.float32)
    return as_scales(memory, (m,), k, group)


def _column(m: int) -> int:
    """Elements from the scales of a group to those of the next."""
    return -(-m // 4) * 4
