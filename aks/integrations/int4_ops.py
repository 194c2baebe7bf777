"""``aks.int4_linear``, and the ``torch.library`` op of that name: bf16 x and weights of 4 bits.

As ``aks.integrations.quantized_ops`` has it, with tinygemm (``torch._weight_int4pack_mm``) for the vendor's way where a
copy of the weight as that takes it is at hand; else the weight is dequantised at each call, and multiplied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from aks.core.problem import Problem
from aks.integrations import torch_ops
from aks.integrations.quantized_ops import _define, _dispatcher, _refuse_gradients, _said
from aks.ops.int4_gemm import reference
from aks.ops.int4_gemm.call import Operands, call_of
from aks.ops.int4_gemm.packing import Int4Weight, num_meta, num_words
from aks.ops.int4_gemm.spec import DENSITIES, GROUPS, INT4_GEMM


def int4_linear(
    x: Tensor,
    weight: Int4Weight,
    bias: Tensor | None = None,
    *,
    tiny: tuple[Tensor, Tensor] | None = None,
    dense: Tensor | None = None,
    by_k: Tensor | None = None,
    density: int = 100,
    static_weights: bool = False,
) -> Tensor:
    """``x @ w.T + bias`` with a w [N, K] of 4 bits, packed.

    Parameters
    ----------
    x : Tensor
        [..., K], bf16. Other floats are rounded to bf16 first, which takes 3 of their bits from fp16.
    weight : Int4Weight
        As ``aks.ops.int4_gemm.packing`` makes it: ``quantize``, ``pack``, ``from_gptq``, ``from_awq``.
    bias : Tensor, optional
        [N], bf16.
    tiny, dense, by_k : optional
        Copies of the weight, which allow for more kernels: for PyTorch's own, tinygemm
        (``aks.ops.int4_gemm.reference.to_tinygemm``; on a GPU alone); in bf16, [N, K] (``packing.dequantize``); k by k,
        for one row of x with zeros in it (``packing.by_k``).
    density : int
        About how many percent of x are not 0, as the layer before makes it: 5, 10, 25, 50 or 100. Less than 100 needs
        by_k.
    static_weights : bool
        As of ``aks.linear``; of all copies.

    Returns
    -------
    Tensor
        [..., N] bf16. Where there is no tree, or it declines, by tinygemm if there is ``tiny``, which adds the bias to
        sums that are rounded; else the weight is dequantised at each call, by some 40 kernels, and multiplied. On a
        CPU, in float32 or better with weights that are not rounded.

    Raises
    ------
    ValueError
        If dtypes, shapes or devices do not fit.
    RuntimeError
        If a gradient is wanted.
    """
    return call(x, Operands(weight, bias, tiny, dense, by_k), density, static_weights)


def call(x: Tensor, operands: Operands, density: int, static_weights: bool) -> Tensor:
    """``int4_linear`` of what there is beside x."""
    weight, bias, tiny, dense, by_k = operands
    if torch.compiler.is_compiling() or not torch_ops.is_plain(x, weight.words):
        packed, scales = (None, None) if tiny is None else tiny
        return torch.ops.aks.int4_linear(x, *weight, bias, packed, scales, dense, by_k, density, static_weights)
    _refuse_gradients("int4_linear", x, bias, dense)
    return _linear(x, operands, density, static_weights)


def problems_of(operands: Operands, density: int, static_weights: bool) -> tuple[Problem, ...]:
    """What a bf16 x of one row poses."""
    weight = operands.weight
    x, out = (weight.words.new_empty((1, size), dtype=torch.bfloat16) for size in (weight.k, weight.n))
    posed = call_of(x, operands, out, static_weights, density)
    return (posed.problem(),) if posed else ()


def _linear(x: Tensor, operands: Operands, density: int, static_weights: bool) -> Tensor:
    _check(x, operands, density)
    x = x.to(torch.bfloat16)
    rows = x if x.dim() == 2 or x.is_contiguous() else x.reshape(-1, x.shape[-1])
    out = x.new_empty((*x.shape[:-1], operands.weight.n))
    if not x.numel():
        return out
    posed = call_of(rows, operands, out, static_weights, density)
    if posed is None:  # strides or addresses that no kernel takes
        rows, operands = _fresh(rows), _cloned(operands)
        posed = call_of(rows, operands, out, static_weights, density)
        assert posed is not None  # _check has seen to the rest
    dispatcher = _dispatcher(INT4_GEMM, x)
    if dispatcher and dispatcher.launch(posed, rows, operands, out):
        return out
    problem, rows = posed.problem(), rows.view(posed.m, posed.k)
    if operands.tiny is not None and x.is_cuda:
        return reference.tinygemm(problem, rows, operands.tiny, operands.bias).view(out.shape)
    reference.vendor(problem, rows, operands._replace(tiny=None), out.view(posed.m, posed.n))()
    return out


def _cloned(operands: Operands) -> Operands:
    """With what kernels read at new addresses."""
    weight, bias, _, _, by_k = operands
    weight = weight._replace(words=_fresh(weight.words), meta=_fresh(weight.meta))
    return operands._replace(
        weight=weight,
        bias=None if bias is None else _fresh(bias),
        by_k=None if by_k is None else _fresh(by_k),
    )


def _fresh(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _check(x: Tensor, operands: Operands, density: int) -> None:
    """Raise ``ValueError`` if operands do not fit."""
    (words, meta, n, k, group, zeros), bias, tiny, dense, by_k = operands
    if group not in GROUPS:
        raise ValueError(f"aks.int4_linear: group is {group}; wanted one of {', '.join(map(str, GROUPS))}")
    if not x.dim() or x.shape[-1] != k:
        raise ValueError(f"aks.int4_linear: x is {_said(x)}, the weight [{n}, {k}]; rows of both must be of one length")
    if not x.is_floating_point() or x.dtype.itemsize == 1:
        raise ValueError(f"aks.int4_linear: x is {x.dtype}; wanted bfloat16, or another float of 16 bits or more")
    packed, scales = (None, None) if tiny is None else tiny
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...] | None, torch.dtype]] = {
        "weight.words": (words, (num_words(n, k),), torch.int32),
        "weight.meta": (meta, (num_meta(n, k, group, zeros),), torch.int32),
        "bias": (bias, (n,), torch.bfloat16),
        "dense": (dense, (n, k), torch.bfloat16),
        "by_k": (by_k, (k, -(-n // 64) * 8), torch.int32),
        "tiny[0]": (packed, None, torch.int32),  # as the GPU has it
        "tiny[1]": (scales, (k // group, n, 2), torch.bfloat16),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"aks.int4_linear: x is on {x.device}, {name} on {tensor.device}; move both to one device")
        if tensor.dtype != dtype or (shape is not None and tuple(tensor.shape) != shape):
            said = "" if shape is None else f"{list(shape)} of "
            raise ValueError(f"aks.int4_linear: {name} is {_said(tensor)}; wanted {said}{dtype}")
    if density not in DENSITIES or (density < 100 and by_k is None):
        raise ValueError(
            f"aks.int4_linear: density is {density}, by_k is {'not ' * (by_k is None)}given; wanted one of "
            f"{', '.join(map(str, DENSITIES))}, and by_k with less than 100"
        )


def _operands(
    x: Tensor, words: Tensor, meta: Tensor, n: int, k: int, group: int, zeros: bool, bias: Tensor | None = None,
    tiny_words: Tensor | None = None, tiny_scales: Tensor | None = None, dense: Tensor | None = None,
    by_k: Tensor | None = None, density: int = 100, static_weights: bool = False,
) -> tuple[Tensor, Operands, int, bool]:  # fmt: skip
    """What the op is given, as ``_linear`` takes it."""
    tiny = None if tiny_words is None or tiny_scales is None else (tiny_words, tiny_scales)
    return x, Operands(Int4Weight(words, meta, n, k, group, zeros), bias, tiny, dense, by_k), density, static_weights


def _run(*arguments: Any) -> Tensor:
    return _linear(*_operands(*arguments))


def _fake(*arguments: Any) -> Tensor:
    x, operands, density, _ = _operands(*arguments)
    _check(x, operands, density)
    return x.new_empty((*x.shape[:-1], operands.weight.n), dtype=torch.bfloat16)


_define(
    "int4_linear",
    "(Tensor x, Tensor words, Tensor meta, SymInt n, SymInt k, int group, bool zeros, Tensor? bias=None, "
    "Tensor? tiny_words=None, Tensor? tiny_scales=None, Tensor? dense=None, Tensor? by_k=None, int density=100, "
    "bool static_weights=False) -> Tensor",
    _run,
    _fake,
)
register_flop_formula(torch.ops.aks.int4_linear)(lambda x, *rest, out_shape, **named: 2 * x[-1] * math.prod(out_shape))
