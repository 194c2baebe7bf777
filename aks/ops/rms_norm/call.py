"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from aks.core import formula
from aks.ops.gemm.call import rows_of
from aks.ops.gemm.reference import DTYPES
from aks.ops.rms_norm.launch_spec import LAUNCH_SPEC
from aks.ops.rms_norm.spec import RmsNormProblem

_DTYPE_CODES = {dtype: RmsNormProblem.CHOICES["dtype"].index(name) for name, dtype in DTYPES.items()}
_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Operands(NamedTuple):
    """What a norm has beside x: weight [K], residual and total [M, K] or None, eps, and whether to add 1 to weight."""

    weight: Tensor
    residual: Tensor | None = None
    total: Tensor | None = None
    eps: float = 1e-6
    one_plus: bool = False


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype is an index into ``RmsNormProblem.CHOICES``; row strides are
    in elements; what there is none of is 0; eps is the bits of a float32.
    """

    m: int
    k: int
    dtype: int
    residual: bool
    x_ptr: int
    residual_ptr: int
    weight_ptr: int
    out_ptr: int
    total_ptr: int
    x_row: int
    residual_row: int
    out_row: int
    total_row: int
    eps: int
    one_plus: int

    def problem(self) -> RmsNormProblem:
        """The problem, its alignment worked out."""
        dtype = RmsNormProblem.CHOICES["dtype"][self.dtype]
        return RmsNormProblem(self.m, self.k, dtype, self.residual, _ALIGNMENT(self._asdict()))


def call_of(x: Tensor, norm: Operands, out: Tensor) -> Call | None:
    """The call that tensors pose; None if the kernels do not take them.

    x and out [M, K] with rows of contiguous elements, or contiguous with more dimensions before the last; they are
    on one device with the rest.
    """
    weight, residual, total, eps, one_plus = norm
    dtype, (m, x_row), (_, out_row) = _DTYPE_CODES.get(x.dtype), rows_of(x), rows_of(out)
    k = x.shape[-1]
    if dtype is None or not m * k or weight.dtype != x.dtype or weight.shape != (k,) or not weight.is_contiguous():
        return None
    if out.dtype != x.dtype or out.shape != x.shape or x_row < k or out_row < k:
        return None
    if residual is None or total is None:
        pointers = x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), 0
        return Call(m, k, dtype, False, *pointers, x_row, 0, out_row, 0, float32_bits(eps), int(one_plus))
    (_, residual_row), (_, total_row) = rows_of(residual), rows_of(total)
    for tensor, row in ((residual, residual_row), (total, total_row)):
        if tensor.dtype != x.dtype or tensor.shape != x.shape or row < k:
            return None
    pointers = x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr()
    rows = x_row, residual_row, out_row, total_row
    return Call(m, k, dtype, True, *pointers, *rows, float32_bits(eps), int(one_plus))


def call_for(problem: RmsNormProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    return call_of(x, w, out[: problem.m])


@lru_cache(maxsize=64)
def float32_bits(value: float) -> int:
    """The bits of ``value`` as a float32."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
