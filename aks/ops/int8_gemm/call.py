"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aks.core import formula
from aks.ops.int8_gemm.launch_spec import LAUNCH_SPEC
from aks.ops.int8_gemm.spec import Int8GemmProblem
from aks.ops.scaled.call import Operands, pose

_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype is an index into ``Int8GemmProblem.CHOICES``; row strides are in
    elements; a bias that there is none of is 0.
    """

    m: int
    n: int
    k: int
    dtype: int
    static_weights: bool
    x_ptr: int
    w_ptr: int
    x_scale_ptr: int
    w_scale_ptr: int
    bias_ptr: int
    out_ptr: int
    x_row: int
    w_row: int
    out_row: int

    def problem(self) -> Int8GemmProblem:
        """The problem, its alignment worked out."""
        alignment = _ALIGNMENT(self._asdict())
        return Int8GemmProblem(self.m, self.n, self.k, "int8", alignment, self.static_weights)


def call_of(x: Tensor, operands: Operands, out: Tensor, static_weights: bool) -> Call | None:
    """The call that tensors pose, as ``aks.ops.scaled.call.pose`` says; None if these kernels do not take them."""
    posed = pose(x, operands, out, torch.int8)
    if posed is None or posed.scaling != "row":
        return None
    return Call(*posed[:3], 0, static_weights, *posed.addresses)


def call_for(problem: Int8GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    return call_of(x, w, out, problem.static_weights)
