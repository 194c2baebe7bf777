"""``aks.linear`` and ``aks.matmul`` under all that PyTorch does with a function, and as ``torch.library`` ops.

A plain call goes straight to the dispatcher: the way through an op costs ten times the check that a
call is plain. Code that is compiled or exported has the op ``aks::linear``; calls that a mode watches or
autocast changes go through it too. What the kernels do not take is left to PyTorch: gradients in eager mode,
tensor subclasses, sparse and nested tensors, ``torch.func`` transforms, ``torch.jit``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _is_any_autocast_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch.autograd import forward_ad
from torch.nn import Parameter, functional
from torch.overrides import has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from aks.ops.gemm import reference
from aks.runtime import dispatcher

DEVICE_TYPE = "cuda"
"""Where there are kernels; compiled code for other devices has PyTorch's own ops."""
DTYPES = tuple(reference.DTYPES.values())
PLAIN = frozenset((Tensor, Parameter))
_STRIDED = torch.strided


def linear(x: Tensor, w: Tensor, *, out: Tensor | None = None, static_weights: bool = False) -> Tensor:
    """``x @ w.T`` with the kernel that the tree predicts to be the fastest.

    Parameters
    ----------
    x : Tensor
        [..., K], bf16 or fp16.
    w : Tensor
        [N, K], of x's dtype; its transpose may be contiguous instead (weights stored as [K, N]).
    out : Tensor, optional
        [..., N], overwritten. Contiguous, or, of two dimensions, of contiguous rows. Made if not given.
    static_weights : bool
        Declare that no kernel still running writes w, as holds for a model's parameters when serving.
        It allows kernels that read weights before the preceding kernel has ended; with weights that
        are being written, those would be a race.

    Returns
    -------
    Tensor
        [..., N]. Differs from ``torch.nn.functional.linear`` by rounding alone (float32 accumulation).

    What aks does not take (other dtypes, a CPU, gradients, no tree for the GPU, odd strides) goes to
    ``torch.nn.functional.linear``, whose errors are then raised. Under ``torch.compile`` and
    ``torch.export`` it is the op ``aks::linear``, with gradients too.
    """
    if torch.compiler.is_compiling():
        return _into(out, traced(x, w, static_weights))
    if is_plain(x, w):
        return dispatcher.linear(x, w, out=out, static_weights=static_weights)
    if _is_dense(x) and _is_dense(w) and not _is_transformed():
        return _into(out, torch.ops.aks.linear(x, w, static_weights))
    return _into(out, functional.linear(x, w))


def matmul(x: Tensor, y: Tensor, *, out: Tensor | None = None, static_weights: bool = False) -> Tensor:
    """``x @ y`` as ``linear`` does it: x [..., K], y [K, N] or a transposed view of [N, K], out [..., N].

    ``static_weights`` is about y. Batches of matrices in y, and tensor subclasses, go to ``torch.matmul``.
    """
    if x.__class__ in PLAIN and _is_dense(y) and y.dim() == 2 and x.dim():
        return linear(x, y.T, out=out, static_weights=static_weights)
    return _into(out, torch.matmul(x, y))


def traced(x: Tensor, w: Tensor, static_weights: bool, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias`` for code that is being traced: x [..., K], w [N, K], bias [N]."""
    if not _is_taken(x, w):
        return functional.linear(x, w, bias)
    y = torch.ops.aks.linear(x, w, static_weights)
    return y if bias is None else y + bias.to(y.dtype)


def is_plain(x: Tensor, w: Tensor) -> bool:
    """Whether an eager call on these tensors means no more than its arithmetic: nothing casts, watches or maps it."""
    return (
        x.__class__ in PLAIN
        and w.__class__ in PLAIN
        and not has_torch_function_variadic(x, w)  # here, a mode: the classes have none
        and not _len_torch_dispatch_stack()
        and not _is_any_autocast_enabled()
        and not _are_functorch_transforms_active()
        and not _is_tracing()
        and forward_ad._current_level < 0
        and x.layout is _STRIDED
        and w.layout is _STRIDED
        and not x.is_nested
    )


def _is_transformed() -> bool:
    return _are_functorch_transforms_active() or _is_tracing() or forward_ad._current_level >= 0


def _is_dense(tensor: Tensor) -> bool:
    return tensor.__class__ in PLAIN and tensor.layout is _STRIDED and not tensor.is_nested


def _is_taken(x: Tensor, w: Tensor) -> bool:
    """Whether compiled code shall have our op; what it has not to leave alone it can fuse."""
    if x.device.type != DEVICE_TYPE or w.device != x.device or not x.dim() or w.dim() != 2:
        return False
    return torch.is_autocast_enabled(DEVICE_TYPE) or (x.dtype == w.dtype and x.dtype in DTYPES)


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


# The op. Compiled code takes its output for contiguous, whoever computes it.


def _run(x: Tensor, w: Tensor, static_weights: bool = False) -> Tensor:
    return dispatcher.linear(x, w, static_weights=static_weights).contiguous()


def _fake(x: Tensor, w: Tensor, static_weights: bool = False) -> Tensor:
    torch._check(
        x.dim() > 0 and w.dim() == 2, lambda: f"aks: x has {x.dim()} and w {w.dim()} dimensions; w must have 2"
    )
    torch._check(x.dtype == w.dtype, lambda: f"aks: x is {x.dtype} and w {w.dtype}; they must have the same dtype")
    torch._check(
        x.shape[-1] == w.shape[1], lambda: f"aks: x has rows of {x.shape[-1]}, w of {w.shape[1]}; these must agree"
    )
    return x.new_empty((*x.shape[:-1], w.shape[0]))


class _Linear(torch.autograd.Function):
    """The op with gradients, which PyTorch computes."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, static_weights: bool) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.aks.linear(x, w, static_weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        x, w, _ = inputs
        needs_x, needs_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,), (x, w) = gradients, ctx.saved_tensors
        of_x = None if w is None else gradient @ w
        of_w = None if x is None else _rows(gradient).T @ _rows(x)
        return of_x, of_w, None


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _with_gradients(x: Tensor, w: Tensor, static_weights: bool = False) -> Tensor:
    if _is_transformed():
        return functional.linear(x, w)  # which has forward derivatives too
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        return _Linear.apply(x, w, static_weights)  # type: ignore[return-value]
    if is_plain(x, w):
        return _run(x, w, static_weights)  # compiled code runs here: spare it another way through PyTorch's dispatcher
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.aks.linear(x, w, static_weights)


def _under_autocast(device_type: str) -> Callable[..., Tensor]:
    """The op where autocast is on: PyTorch casts, and remembers, weights that need it; x alone is cast here."""

    def run(x: Tensor, w: Tensor, static_weights: bool = False) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        if w.dtype != dtype or x.dtype not in (*DTYPES, torch.float32):
            return functional.linear(x, w)
        with torch.autocast(device_type, enabled=False):
            return torch.ops.aks.linear(x.to(dtype), w, static_weights)

    return run


def _mapped(info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor, static_weights: bool = False):
    """The op under ``torch.vmap``, by PyTorch."""
    x_dim, w_dim = in_dims[:2]
    x = x if x_dim is None else x.movedim(x_dim, 0)
    if w_dim is None:
        return functional.linear(x, w), 0
    equation = f"{'' if x_dim is None else 'b'}...k,bnk->b...n"
    return torch.einsum(equation, x, w.movedim(w_dim, 0)), 0


def _matmul(x: Tensor, y: Tensor, static_weights: bool = False) -> Tensor:
    return torch.ops.aks.linear(x, y.T, static_weights)


def _flops(x: Any, w: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return 2 * x[-1] * math.prod(out_shape)


_LIBRARY = torch.library.Library("aks", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY.define("linear(Tensor x, Tensor w, bool static_weights=False) -> Tensor", tags=_TAGS)
_LIBRARY.impl("linear", _run, "CompositeExplicitAutograd")
_LIBRARY.impl("linear", _with_gradients, "Autograd")
_LIBRARY.impl("linear", _under_autocast("cuda"), "AutocastCUDA")
_LIBRARY.impl("linear", _under_autocast("cpu"), "AutocastCPU")
torch.library.register_fake("aks::linear", _fake, lib=_LIBRARY)
torch.library.register_vmap("aks::linear", _mapped, lib=_LIBRARY)
register_flop_formula(torch.ops.aks.linear)(_flops)
# Made of the other, so that it needs none of this.
_LIBRARY.define("matmul(Tensor x, Tensor y, bool static_weights=False) -> Tensor", tags=_TAGS[:1])
_LIBRARY.impl("matmul", _matmul, "CompositeImplicitAutograd")
