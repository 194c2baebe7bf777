"""``aks.fp8_linear``, ``aks.int8_linear`` and ``aks.quantize_rows``, and the ``torch.library`` ops of their names.

A plain call goes straight to the dispatcher of its op; where that has no tree or declines, and on a CPU, it is the op's
``reference.vendor``: ``torch._scaled_mm``, ``torch._int_mm`` and multiplications, PyTorch's kernels. Code that is
compiled or exported has one opaque op. All are for inference: a gradient is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from aks.core.problem import Problem
from aks.integrations import torch_ops
from aks.ops.fp8_gemm import call as fp8_call
from aks.ops.fp8_gemm import reference as fp8_reference
from aks.ops.fp8_gemm.spec import FP8_GEMM
from aks.ops.int4_gemm.spec import INT4_GEMM
from aks.ops.int8_gemm import call as int8_call
from aks.ops.int8_gemm import reference as int8_reference
from aks.ops.int8_gemm.spec import INT8_GEMM
from aks.ops.op import Op
from aks.ops.quantize_rows import call as quantize_call
from aks.ops.quantize_rows import reference as quantize_reference
from aks.ops.quantize_rows.spec import GROUPS, QUANTIZE_ROWS
from aks.ops.scaled.call import Operands
from aks.ops.scaled.spec import BLOCK
from aks.runtime import layers


def fp8_linear(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    fast_accum: bool = True,
    static_weights: bool = False,
) -> Tensor:
    """``(x * x_scale) @ (w * w_scale).T + bias`` with x and w of 8-bit floats (e4m3).

    Parameters
    ----------
    x : Tensor
        [..., K], bf16 or fp16: it is quantised first (``aks.quantize_rows``; with a w_scale of [1], all of it with one
        scale; with a w_scale of blocks, by groups). Or e4m3, with its scale.
    w : Tensor
        [N, K], e4m3.
    w_scale : Tensor
        float32: [N], a scale for each row of w; [1], one for all; or of blocks, [ceil(N / 128), ceil(K / 128)], one for
        every 128 x 128 of w, as DeepSeek's checkpoints have them.
    bias : Tensor, optional
        [N], bf16.
    x_scale : Tensor, optional
        float32, of an x that is e4m3: one for each row of K where w_scale is [N], one element where it is [1], and
        where it is of blocks [..., ceil(K / 128)], of any strides.
    fast_accum : bool
        Whether tensor cores may add up all of K by themselves, which keeps some 14 bits of a sum on Hopper. Else a
        float32 is added to every 128 of K, as it always is with scales of blocks.
    static_weights : bool
        As of ``aks.linear``.

    Returns
    -------
    Tensor
        [..., N] bf16. What no kernel takes, or the tree declines, is ``torch._scaled_mm`` (with scales of blocks,
        ``aks.ops.fp8_gemm.blocks``); on a CPU, arithmetic in float64.

    Raises
    ------
    ValueError
        If dtypes, shapes or devices do not fit.
    RuntimeError
        If a gradient is wanted.
    """
    return call(FP8, x, w, w_scale, bias, x_scale, fast_accum, static_weights)


def int8_linear(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    static_weights: bool = False,
) -> Tensor:
    """``fp8_linear`` with x and w int8, sums int32, and scales of rows: w_scale [N], x_scale one for each row of x.

    What no kernel takes, or the tree declines, is ``torch._int_mm`` and PyTorch's multiplications.
    """
    return call(INT8, x, w, w_scale, bias, x_scale, static_weights)


def quantize_rows(x: Tensor, dtype: torch.dtype, group: int = 0) -> tuple[Tensor, Tensor]:
    """Values of 8 bits and a scale for each row: ``x = values * scale[..., None]`` but for rounding.

    ``scale = max(|row|) / top`` with top 448 (e4m3) or 127 (int8), the rest as
    ``aks.ops.quantize_rows.reference.quantize`` has it. With a group every so many elements of a row have a scale of
    their own: what a product with scales of blocks takes. The kernel lets the next one start early.

    Parameters
    ----------
    x : Tensor
        [..., K], bf16 or fp16. Other floats are quantised by PyTorch's kernels.
    dtype : torch.dtype
        ``torch.float8_e4m3fn`` or ``torch.int8``.
    group : int
        0, the whole row; or 128, with ``torch.float8_e4m3fn``.

    Returns
    -------
    tuple of Tensor
        values [..., K] of dtype, scale [...] float32. Of groups, scale is [..., ceil(K / group)], of which those of one
        group lie side by side, as cuBLASLt wants them.

    Raises
    ------
    ValueError
        If x is not of floats, dtype no such type, or group none for it.
    RuntimeError
        If a gradient is wanted.
    """
    if torch.compiler.is_compiling() or not torch_ops.is_plain(x, x):
        return torch.ops.aks.quantize_rows(x, dtype, group)
    _refuse_gradients("quantize_rows", x)
    return _quantize_rows(x, dtype, group)


@contextmanager
def vendor_only(
    ops: Collection[str] = (FP8_GEMM.name, INT8_GEMM.name, INT4_GEMM.name, QUANTIZE_ROWS.name),
) -> Iterator[None]:
    """Ops of these functions by the vendor's way alone, in this process: what one compares with."""
    global _left_to_vendor
    before, _left_to_vendor = _left_to_vendor, frozenset(ops)
    try:
        yield
    finally:
        _left_to_vendor = before


_left_to_vendor: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Kind:
    """A product of quantised matrices: name of the function, its op, what is of the op, the 8-bit type."""

    name: str
    op: Op
    call: ModuleType
    vendor: Callable[..., Callable[[], object]]
    dtype: torch.dtype


FP8 = Kind("fp8_linear", FP8_GEMM, fp8_call, fp8_reference.vendor, torch.float8_e4m3fn)
INT8 = Kind("int8_linear", INT8_GEMM, int8_call, int8_reference.vendor, torch.int8)


class Scaling(NamedTuple):
    """How the scales of a product lie; op: what quantises x, if any does, with a scale for each group (0: row)."""

    w_shape: Callable[[int, int], tuple[int, ...]]
    """Of w_scale, by N and K."""
    x_count: Callable[[int, int], int]
    """Scales of x, by its rows and K."""
    quantise: Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]
    """x to values and scales."""
    quantise_w: Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]
    """w to values and scales."""
    op: Op | None = None
    group: int = 0


def _blocks(k: int) -> int:
    return -(-k // BLOCK)


_by_tensor = partial(quantize_reference.quantize, by_row=False)
SCALINGS = {
    "row": Scaling(
        lambda n, k: (n,), lambda m, k: m, lambda x, dtype: _quantize_rows(x, dtype), quantize_reference.quantize,
        QUANTIZE_ROWS,
    ),
    "tensor": Scaling(lambda n, k: (1,), lambda m, k: 1, _by_tensor, _by_tensor),
    "block": Scaling(
        lambda n, k: (_blocks(n), _blocks(k)), lambda m, k: m * _blocks(k),
        lambda x, dtype: _quantize_rows(x, dtype, BLOCK), quantize_reference.quantize_blocks, QUANTIZE_ROWS, BLOCK,
    ),
}  # fmt: skip


def scalings_of(op: Op) -> tuple[str, ...]:
    """Those of ``SCALINGS`` that an op has."""
    return tuple(name for name in op.problem_type.CHOICES.get("scaling", ("row",)) if name in SCALINGS)


def call(kind: Kind, x: Tensor, w: Tensor, w_scale: Tensor, bias: Any, x_scale: Any, *mode: bool) -> Tensor:
    """The function of a kind; mode: what its op's ``call_of`` takes beside tensors."""
    if torch.compiler.is_compiling() or not torch_ops.is_plain(x, w):
        return getattr(torch.ops.aks, kind.name)(x, w, w_scale, bias, x_scale, *mode)
    _refuse_gradients(kind.name, x, w, w_scale, bias, x_scale)
    return _linear(kind, x, w, w_scale, bias, x_scale, *mode)


def _linear(kind: Kind, x: Tensor, w: Tensor, w_scale: Tensor, bias: Any, x_scale: Any, *mode: bool) -> Tensor:
    scaling = _check(kind, x, w, w_scale, bias, x_scale)
    rows = x if x.dim() == 2 or x.is_contiguous() else x.reshape(-1, x.shape[-1])
    out = x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.bfloat16)
    if not x.numel() or not out.numel():
        return out.zero_() if bias is None else out.copy_(bias)
    if x_scale is None:
        rows, x_scale = SCALINGS[scaling].quantise(rows, kind.dtype)
    each = (SCALINGS[scaling].x_count(1, x.shape[-1]),) if SCALINGS[scaling].group else ()
    operands = Operands(w, x_scale.reshape(-1, *each), w_scale, bias)
    posed = kind.call.call_of(rows, operands, out, *mode)
    if posed is None:  # strides that no kernel takes
        rows = rows.contiguous()
        given = {name: tensor for name, tensor in operands._asdict().items() if tensor is not None}
        operands = Operands(**{name: tensor.contiguous() for name, tensor in given.items()})
        posed = kind.call.call_of(rows, operands, out, *mode)
    dispatcher = _dispatcher(kind.op, x)
    if not (dispatcher and dispatcher.launch(posed, rows, operands, out)):
        kind.vendor(posed.problem(), rows.view(posed.m, posed.k), operands, out.view(posed.m, posed.n))()
    return out


def problems_of(kind: Kind, w: Tensor, w_scale: Tensor, bias: Tensor | None, *mode: bool) -> tuple[Problem, ...]:
    """What a bf16 x of one row poses, in the order of the launches: to quantise it, and the product."""
    x = w.new_empty((1, w.shape[1]), dtype=torch.bfloat16)
    scaling = SCALINGS[_check(kind, x, w, w_scale, bias, None)]
    values, x_scale = torch.empty_like(x, dtype=kind.dtype), w_scale.new_empty((1, scaling.x_count(*x.shape)))
    calls = [kind.call.call_of(values, Operands(w, x_scale, w_scale, bias), x.new_empty((1, w.shape[0])), *mode)]
    if scaling.op is QUANTIZE_ROWS:
        calls.insert(0, quantize_call.call_of(x, x_scale, values, scaling.group))
    return tuple(call.problem() for call in calls if call)


def _quantize_rows(x: Tensor, dtype: torch.dtype, group: int = 0) -> tuple[Tensor, Tensor]:
    _check_quantised(x, dtype, group)
    scale = _empty_scales(x, group)
    if not x.numel():
        return torch.empty_like(x, dtype=dtype), scale.zero_()
    dispatcher = _dispatcher(QUANTIZE_ROWS, x)
    if dispatcher:
        rows = x if x.dim() == 2 or x.is_contiguous() else x.reshape(-1, x.shape[-1])
        values = torch.empty_like(rows, dtype=dtype, memory_format=torch.contiguous_format)
        flat = scale.view(-1, scale.shape[-1]) if group else scale.view(-1)
        call = quantize_call.call_of(rows, flat, values, group)
        if call and dispatcher.launch(call, rows, quantize_call.Operands(flat), values):
            return values.view(x.shape), scale
    if not group:
        return quantize_reference.quantize(x, dtype)
    values, made = quantize_reference.quantize_blocks(x.reshape(-1, x.shape[-1]), dtype, 1)
    return values.view(x.shape), scale.copy_(made.view(scale.shape))


def _empty_scales(x: Tensor, group: int) -> Tensor:
    """Memory for the scales of x [..., K]."""
    rows, k = x.shape[:-1], x.shape[-1]
    if not group:
        return x.new_empty(rows, dtype=torch.float32)
    count = quantize_call.count_scales(math.prod(rows), k, group)
    return quantize_call.as_scales(x.new_empty(count, dtype=torch.float32), rows, k, group)


def _dispatcher(op: Op, x: Tensor) -> layers.LayerDispatcher | None:
    if op.name in _left_to_vendor or x.device.type != torch_ops.DEVICE_TYPE:
        return None
    return layers.layer_dispatcher(op, x.get_device())


def _check(kind: Kind, x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, x_scale: Tensor | None) -> str:
    """The scaling that w_scale says; raises ``ValueError`` if operands do not fit."""
    if w.dtype != kind.dtype or w.dim() != 2:
        raise ValueError(f"aks.{kind.name}: w is {_said(w)}; wanted [N, K] of {kind.dtype}")
    if not x.dim() or x.shape[-1] != w.shape[1]:
        raise ValueError(f"aks.{kind.name}: x is {_said(x)}, w {_said(w)}; rows of both must be of one length")
    for name, tensor in (("w", w), ("w_scale", w_scale), ("bias", bias), ("x_scale", x_scale)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"aks.{kind.name}: x is on {x.device}, {name} on {tensor.device}; move both to one device")
    scaling = scaling_of(kind, w, w_scale)
    n, k = w.shape
    if bias is not None and (bias.dtype != torch.bfloat16 or bias.shape != (n,)):
        raise ValueError(f"aks.{kind.name}: bias is {_said(bias)}; wanted [{n}] of torch.bfloat16")
    if x.dtype == kind.dtype:
        wanted, each = SCALINGS[scaling].x_count(math.prod(x.shape[:-1]), k), SCALINGS[scaling].x_count(1, k)
        lies = x_scale is not None and (each == 1 or x_scale.shape[-1:] == (each,))
        if x_scale is None or not lies or x_scale.dtype != torch.float32 or x_scale.numel() != wanted:
            said = "not given" if x_scale is None else _said(x_scale)
            in_rows = f" in rows of {each}" if each > 1 else ""
            raise ValueError(
                f"aks.{kind.name}: x is quantised, and x_scale is {said}; wanted {wanted} float32{in_rows}, as w_scale "
                f"is by {scaling}"
            )
    elif x_scale is not None or not x.is_floating_point() or x.dtype.itemsize == 1:
        raise ValueError(
            f"aks.{kind.name}: x is {x.dtype}{'' if x_scale is None else ', and x_scale is given'}; wanted bfloat16 or "
            f"float16 without a scale, or {kind.dtype} with one"
        )
    return scaling


def scaling_of(kind: Kind, w: Tensor, w_scale: Tensor) -> str:
    """What the scales of a w [N, K] are of, of ``SCALINGS``; raises ``ValueError`` if they do not fit."""
    shapes = {name: SCALINGS[name].w_shape(*w.shape) for name in scalings_of(kind.op)}
    scaling = next((name for name, shape in shapes.items() if tuple(w_scale.shape) == shape), "")
    if w_scale.dtype != torch.float32 or not scaling:
        wanted = " or ".join(f"{list(shape)} ({name})" for name, shape in shapes.items())
        raise ValueError(f"aks.{kind.name}: w_scale is {_said(w_scale)}; wanted float32 {wanted}")
    return scaling


def _check_quantised(x: Tensor, dtype: torch.dtype, group: int) -> None:
    if not x.dim() or not x.is_floating_point() or x.dtype.itemsize == 1:
        raise ValueError(f"aks.quantize_rows: x is {_said(x)}; wanted [..., K] of bfloat16 or float16")
    if dtype not in quantize_reference.TOPS:
        known = ", ".join(map(str, quantize_reference.TOPS))
        raise ValueError(f"aks.quantize_rows: dtype is {dtype}; wanted one of {known}")
    if group not in GROUPS or (group and dtype == torch.int8):
        known = "0, as it is of whole rows" if dtype == torch.int8 else f"one of {', '.join(map(str, GROUPS))}"
        raise ValueError(f"aks.quantize_rows: group is {group}, dtype {dtype}; wanted {known}")


def _said(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


def _refuse_gradients(name: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            f"aks.{name} has no gradient, and one is wanted: call it under torch.no_grad() or torch.inference_mode(); "
            "train the model before it is quantised"
        )


# The ops. Fakes check as the functions do.

_LIBRARY = torch.library.Library("aks", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    def below_autograd(*arguments: Any) -> Any:
        _refuse_gradients(name, *(argument for argument in arguments if isinstance(argument, Tensor)))
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.aks, name)(*arguments)

    _LIBRARY.define(f"{name}{schema}", tags=_TAGS)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, below_autograd, "Autograd")
    torch.library.register_fake(f"aks::{name}", fake, lib=_LIBRARY)


def _define_linear(kind: Kind, modes: str, defaults: tuple[bool, ...]) -> None:
    # PyTorch leaves trailing arguments out that have their defaults.
    def run(x, w, w_scale, bias=None, x_scale=None, *mode: bool) -> Tensor:
        return _linear(kind, x, w, w_scale, bias, x_scale, *mode, *defaults[len(mode) :])

    def fake(x, w, w_scale, bias=None, x_scale=None, *mode: bool) -> Tensor:
        _check(kind, x, w, w_scale, bias, x_scale)
        return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.bfloat16)

    schema = f"(Tensor x, Tensor w, Tensor w_scale, Tensor? bias=None, Tensor? x_scale=None, {modes}) -> Tensor"
    _define(kind.name, schema, run, fake)
    register_flop_formula(getattr(torch.ops.aks, kind.name))(
        lambda x, *rest, out_shape, **named: 2 * x[-1] * math.prod(out_shape)
    )


def _fake_quantize_rows(x: Tensor, dtype: torch.dtype, group: int = 0) -> tuple[Tensor, Tensor]:
    _check_quantised(x, dtype, group)
    return x.new_empty(x.shape, dtype=dtype), _empty_scales(x, group)


_define_linear(FP8, "bool fast_accum=True, bool static_weights=False", (True, False))
_define_linear(INT8, "bool static_weights=False", (False,))
_define(
    "quantize_rows",
    "(Tensor x, ScalarType dtype, int group=0) -> (Tensor, Tensor)",
    _quantize_rows,
    _fake_quantize_rows,
)
