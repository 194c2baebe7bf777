"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aks.core import formula
from aks.ops.gemm.call import rows_of
from aks.ops.int4_gemm.launch_spec import LAUNCH_SPEC
from aks.ops.int4_gemm.packing import Int4Weight
from aks.ops.int4_gemm.spec import Int4GemmProblem

_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Operands(NamedTuple):
    """What there is beside x.

    weight: as our kernels read it. bias: [N] bf16, or None. tiny: the same weight as ``torch._weight_int4pack_mm``
    takes it, and its scales and zeros, or None. dense: the same in bf16 [N, K], or None. by_k: the same as
    ``packing.by_k`` has it, or None.
    """

    weight: Int4Weight
    bias: Tensor | None = None
    tiny: tuple[Tensor, Tensor] | None = None
    dense: Tensor | None = None
    by_k: Tensor | None = None


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype is an index into ``Int4GemmProblem.CHOICES``; row strides are in
    elements; a bias, or weights k by k, that there are none of are 0.
    """

    m: int
    n: int
    k: int
    dtype: int
    group: int
    zeros: bool
    has_bf16: bool
    density: int
    static_weights: bool
    x_ptr: int
    w_ptr: int
    meta_ptr: int
    by_k_ptr: int
    bias_ptr: int
    out_ptr: int
    x_row: int
    out_row: int

    def problem(self) -> Int4GemmProblem:
        """The problem, its alignment worked out."""
        alignment = _ALIGNMENT(self._asdict())
        return Int4GemmProblem(
            self.m, self.n, self.k, "bf16", self.group, self.zeros, self.has_bf16, self.density, alignment,
            self.static_weights,
        )  # fmt: skip


def call_of(x: Tensor, operands: Operands, out: Tensor, static_weights: bool, density: int = 100) -> Call | None:
    """The call that tensors pose; None if the kernels do not take them.

    density is ``Int4GemmProblem.density``; it is 100 where there are no weights k by k.

    x [M, K] and out [M, N] bf16 with rows of contiguous elements, or contiguous with more dimensions before the last;
    all are on one device.
    """
    weight, bias = operands.weight, operands.bias
    n, k = weight.n, weight.k
    if x.dtype != torch.bfloat16 or out.dtype != torch.bfloat16 or not x.dim():
        return None
    (m, x_row), (rows, out_row) = rows_of(x), rows_of(out)
    if not m or rows != m or x.shape[-1] != k or out.shape[-1] != n or x_row < k or out_row < n:
        return None
    if bias is not None and (bias.dtype != torch.bfloat16 or bias.shape != (n,) or not bias.is_contiguous()):
        return None
    if weight.words.data_ptr() % 16 or weight.meta.data_ptr() % 16:
        return None
    by_k_ptr = 0 if operands.by_k is None else operands.by_k.data_ptr()
    if by_k_ptr % 16:
        return None
    return Call(
        m, n, k, 0, weight.group, weight.zeros, operands.dense is not None, density if by_k_ptr else 100,
        static_weights, x.data_ptr(), weight.words.data_ptr(), weight.meta.data_ptr(), by_k_ptr,
        0 if bias is None else bias.data_ptr(), out.data_ptr(), x_row, out_row,
    )  # fmt: skip


def call_for(problem: Int4GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    return call_of(x, w, out, problem.static_weights, problem.density)
