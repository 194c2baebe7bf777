"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

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
    """What there is beside x: where the scales go, [M] float32. None: behind the rows of out (``scales_behind``)."""

    scale: Tensor | None = None


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype and out_dtype are indices into ``QuantizeRowsProblem.CHOICES``;
    row strides are in elements.
    """

    m: int
    k: int
    dtype: int
    out_dtype: int
    x_ptr: int
    scale_ptr: int
    out_ptr: int
    x_row: int
    out_row: int

    def problem(self) -> QuantizeRowsProblem:
        """The problem, its alignment worked out."""
        dtype = QuantizeRowsProblem.CHOICES["dtype"][self.dtype]
        return QuantizeRowsProblem(
            self.m, self.k, dtype, OUT_DTYPES[self.out_dtype], _ALIGNMENT(self._asdict())
        )  # fmt: skip


def call_of(x: Tensor, scale: Tensor, out: Tensor) -> Call | None:
    """The call that tensors pose; None if the kernels do not take them.

    x and out [M, K] with rows of contiguous elements, or contiguous with more dimensions before the last; scale has M
    elements. They are on one device.
    """
    dtype, out_dtype = _DTYPE_CODES.get(x.dtype), _OUT_CODES.get(out.dtype)
    (m, x_row), (_, out_row), k = rows_of(x), rows_of(out), x.shape[-1]
    if dtype is None or out_dtype is None or not m * k or out.shape != x.shape or x_row < k or out_row < k:
        return None
    if scale.dtype != torch.float32 or scale.numel() != m or not scale.is_contiguous():
        return None
    return Call(m, k, dtype, out_dtype, x.data_ptr(), scale.data_ptr(), out.data_ptr(), x_row, out_row)


def call_for(problem: QuantizeRowsProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    values, scale = parts_of(problem, w, out)
    return call_of(x, scale, values)


def parts_of(problem: QuantizeRowsProblem, w: Operands, out: Tensor) -> tuple[Tensor, Tensor]:
    """Where the values [M, K] and the scales [M] go."""
    return out[: problem.m], scales_behind(out, problem.m) if w.scale is None else w.scale


def rows_behind(m: int, k: int) -> int:
    """How many rows of k bytes the scales of m rows take, wherever the first begins."""
    return -(-(4 * m + 3) // k)


def scales_behind(out: Tensor, m: int) -> Tensor:
    """The memory behind the first m rows of an 8-bit out, from the next multiple of 4 bytes on, as [m] float32."""
    start = out.storage_offset() + m * out.stride(0)
    return out.as_strided((4 * m,), (1,), start + -start % 4).view(torch.float32)
