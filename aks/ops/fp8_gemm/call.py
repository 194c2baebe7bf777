"""From tensors to what they pose: a problem and its operands as plain integers. Imports torch, not triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aks.core import formula
from aks.ops.fp8_gemm.launch_spec import LAUNCH_SPEC
from aks.ops.fp8_gemm.spec import BLOCK_SCALING, SCALINGS, Fp8GemmProblem
from aks.ops.scaled.call import Operands, pose

_ALIGNMENT = formula.compile_python(LAUNCH_SPEC.derived["alignment"])


class Call(NamedTuple):
    """What tensors pose, as ``LAUNCH_SPEC`` names it: the problem without its alignment, then the operands.

    The native dispatcher takes it as it stands. dtype and scaling are indices into ``Fp8GemmProblem.CHOICES``; row
    strides are in elements, those of scales as ``aks.ops.scaled.call.scale_strides`` says; a bias that there is none
    of is 0.
    """

    m: int
    n: int
    k: int
    dtype: int
    scaling: int
    fast_accum: bool
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
    x_scale_step: int
    x_scale_block: int
    w_scale_step: int
    w_scale_block: int

    def problem(self) -> Fp8GemmProblem:
        """The problem, its alignment worked out."""
        scaling, alignment = SCALINGS[self.scaling], _ALIGNMENT(self._asdict())
        return Fp8GemmProblem(
            self.m, self.n, self.k, "fp8", scaling, self.fast_accum, alignment, self.static_weights
        )  # fmt: skip


def call_of(x: Tensor, operands: Operands, out: Tensor, fast_accum: bool, static_weights: bool) -> Call | None:
    """The call that tensors pose, as ``aks.ops.scaled.call.pose`` says; None if these kernels do not take them.

    Of a product of one row of x and one of w, scales of rows and of tensors are the same: it counts as of rows. With
    scales of blocks nothing is accumulated fast, whether it may or not.
    """
    posed = pose(x, operands, out, torch.float8_e4m3fn)
    if posed is None:
        return None
    scaling = SCALINGS.index(posed.scaling)
    fast_accum = fast_accum and scaling != BLOCK_SCALING
    return Call(*posed[:3], 0, scaling, fast_accum, static_weights, *posed.addresses, *posed.strides)


def call_for(problem: Fp8GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Call | None:
    """The call that operands of a problem, as ``reference.make_inputs`` gives them, pose; None as of ``call_of``."""
    return call_of(x, w, out, problem.fast_accum, problem.static_weights)
