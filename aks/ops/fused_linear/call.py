"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from aks.core import formula
from aks.ops.fused_linear.launch_spec import LAUNCH_SPEC
from aks.ops.fused_linear.spec import EPILOGUES, FusedLinearProblem
from aks.ops.gemm.call import rows_of
from aks.ops.gemm.reference import DTYPES

_DTYPE_CODES = {dtype: FusedLinearProblem.CHOICES["dtype"].index(name) for name, dtype in DTYPES.items()}
_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Operands(NamedTuple):
    """What a layer has beside x: w and up [N, K], bias [N], residual [M, N]; None where there is none."""

    w: Tensor
    up: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype and epilogue are indices into
    ``FusedLinearProblem.CHOICES``; row strides are in elements; what there is none of is 0.
    """

    m: int
    n: int
    k: int
    dtype: int
    epilogue: int
    static_weights: bool
    x_ptr: int
    w_ptr: int
    up_ptr: int
    bias_ptr: int
    residual_ptr: int
    out_ptr: int
    x_row: int
    w_row: int
    residual_row: int
    out_row: int

    def problem(self) -> FusedLinearProblem:
        """The problem, its alignment worked out."""
        choices = FusedLinearProblem.CHOICES
        alignment = _ALIGNMENT(self._asdict())
        dtype, epilogue = choices["dtype"][self.dtype], choices["epilogue"][self.epilogue]
        return FusedLinearProblem(self.m, self.n, self.k, dtype, epilogue, alignment, self.static_weights)


def call_of(x: Tensor, layer: Operands, out: Tensor, epilogue: str, static_weights: bool) -> Call | None:
    """The call that tensors pose; None if these kernels do not take them.

    x [M, K], out and the residual [M, N] with rows of contiguous elements, or contiguous with more dimensions
    before the last; they are on one device with the rest.
    """
    w, up, bias, residual = layer
    dtype, (m, x_row), (rows, out_row) = _DTYPE_CODES.get(x.dtype), rows_of(x), rows_of(out)
    (n, k), (w_row, step) = w.shape, w.stride()
    if dtype is None or w.dtype != x.dtype or out.dtype != x.dtype or not m * n * k or rows != m:
        return None
    if x.shape[-1] != k or out.shape[-1] != n or x_row < k or out_row < n or step != 1 or w_row < k:
        return None
    if epilogue.endswith("_mul") != (up is not None) or (epilogue == "residual") != (residual is not None):
        return None
    if up is not None and (up.dtype != x.dtype or bias is not None or up.shape != w.shape or up.stride() != w.stride()):
        return None
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (n,) or not bias.is_contiguous()):
        return None
    residual_row = 0
    if residual is not None:
        _, residual_row = rows_of(residual)
        if residual.dtype != x.dtype or residual.shape != out.shape or residual_row < n:
            return None
    beside = [0 if tensor is None else tensor.data_ptr() for tensor in (up, bias, residual)]
    pointers = x.data_ptr(), w.data_ptr(), *beside, out.data_ptr()
    return Call._make(
        (m, n, k, dtype, EPILOGUES.index(epilogue), static_weights, *pointers, x_row, w_row, residual_row, out_row)
    )


def call_for(problem: FusedLinearProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    return call_of(x, w, out, problem.epilogue, problem.static_weights)
