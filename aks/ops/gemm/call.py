"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

from typing import NamedTuple

from aks.core import formula
from aks.ops.gemm import reference
from aks.ops.gemm.launch_spec import LAUNCH_SPEC
from aks.ops.gemm.spec import GemmProblem

_DTYPE_CODES = {dtype: GemmProblem.CHOICES["dtype"].index(name) for name, dtype in reference.DTYPES.items()}
_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype and w_layout are indices into ``GemmProblem.CHOICES``;
    row strides are in elements.
    """

    m: int
    n: int
    k: int
    dtype: int
    w_layout: int
    static_weights: bool
    x_ptr: int
    w_ptr: int
    out_ptr: int
    x_row: int
    w_row: int
    out_row: int

    def problem(self) -> GemmProblem:
        """The problem, its alignment worked out."""
        alignment = _ALIGNMENT(self._asdict())
        choices = GemmProblem.CHOICES
        dtype, w_layout = choices["dtype"][self.dtype], choices["w_layout"][self.w_layout]
        return GemmProblem(self.m, self.n, self.k, dtype, w_layout, alignment, self.static_weights)


def call_of(x, w, out, static_weights: bool) -> Call | None:
    """The call that tensors pose; None if these kernels do not take them, or they are not on one device.

    x [M, K], w [N, K] (as it is, or a transposed view of [K, N] rows) and out [M, N]. x may have another number of
    dimensions before the last if it is contiguous, [..., K], and then out has the same. Of an out that has yet to be
    made (None) the address is 0.
    """
    dtype = _DTYPE_CODES.get(x.dtype)
    if dtype is None or w.dtype != x.dtype or w.dim() != 2 or not x.dim() or w.device != x.device:
        return None
    (n, k), (x_rows, x_row) = w.shape, rows_of(x)
    if not x_rows * n * k or x.shape[-1] != k or x_row < k:
        return None
    out_ptr, out_row = (0, n) if out is None else _place(out, x, n)
    if out_row < n:
        return None
    outer, inner = w.stride()
    if inner == 1 and outer >= k:
        w_layout, w_row = 0, outer
    elif outer == 1 and inner >= n:
        w_layout, w_row = 1, inner
    else:
        return None
    return Call(
        x_rows, n, k, dtype, w_layout, static_weights, x.data_ptr(), w.data_ptr(), out_ptr, x_row, w_row, out_row
    )


def call_for(problem: GemmProblem, x, w, out) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    return call_of(x, w if problem.w_layout == "nk" else w.T, out, problem.static_weights)


def _place(out, x, n: int) -> tuple[int, int]:
    """Address and row stride of an out; a stride of -1 if it is not a place for this product."""
    if out.dtype != x.dtype or out.device != x.device or out.shape != (*x.shape[:-1], n):
        return 0, -1
    return out.data_ptr(), rows_of(out)[1]


def rows_of(tensor) -> tuple[int, int]:
    """How many rows of contiguous elements there are, and from one to the next how many elements; -1 if neither."""
    if tensor.dim() == 2:
        (rows, _), (row, step) = tensor.shape, tensor.stride()
        return rows, row if step == 1 else -1
    if not tensor.is_contiguous():
        return 0, -1
    columns = tensor.shape[-1]
    return (tensor.numel() // columns if columns else 0), columns


def problem_of(x, w, out, static_weights: bool) -> GemmProblem | None:
    """The problem of ``call_of``."""
    call = call_of(x, w, out, static_weights)
    return call and call.problem()
