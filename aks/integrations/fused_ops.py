"""``aks.rms_norm`` and ``aks.fused_linear``: one kernel of ours for what PyTorch has several for.

Calls that are not plain (``torch_ops.is_plain``: traced, watched, cast or mapped) and those that want gradients are
computed by PyTorch's own functions; a compiler can fuse these itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aks.integrations import torch_ops
from aks.ops.fused_linear import call as fused_linear_call
from aks.ops.fused_linear.reference import ACTIVATIONS
from aks.ops.fused_linear.spec import EPILOGUES, FUSED_LINEAR
from aks.ops.rms_norm import call as rms_norm_call
from aks.ops.rms_norm.spec import RMS_NORM
from aks.runtime import layers


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, one_plus: bool = False) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension, in float32 until it is rounded.

    Parameters
    ----------
    x : Tensor
        [..., K], bf16 or fp16.
    weight : Tensor
        [K], of x's dtype.
    eps : float
        Added to the mean square.
    one_plus : bool
        Multiply by 1 + weight instead, as Gemma does.

    Returns
    -------
    Tensor
        [..., K]. Differs from ``torch.nn.functional.rms_norm``, which computes what aks does not take, by rounding.
    """
    y = launch_norm(x, weight, eps, one_plus)
    return norm(x, weight, eps, one_plus) if y is None else y


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, *, one_plus: bool = False
) -> tuple[Tensor, Tensor]:
    """``rms_norm`` of ``total = x + residual``, and total: what a block of a model computes between its layers.

    residual and both results are as x.
    """
    results = launch_add_norm(x, residual, weight, eps, one_plus)
    if results is None:
        total = residual + x
        return norm(total, weight, eps, one_plus), total
    return results


def fused_linear(
    x: Tensor,
    w: Tensor,
    *,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    static_weights: bool = False,
) -> Tensor:
    """``activation(x @ w.T + bias) * (x @ up.T) + residual``, each part as far as it is given.

    Parameters
    ----------
    x : Tensor
        [..., K], bf16 or fp16.
    w, up : Tensor
        [N, K], of x's dtype. up is the second weight of a gated layer, with strides as w has them.
    bias : Tensor, optional
        [N].
    residual : Tensor, optional
        [..., N].
    activation : str, optional
        ``silu``, ``gelu`` or ``gelu_tanh``.
    static_weights : bool
        As of ``aks.linear``, for both weights.

    Returns
    -------
    Tensor
        [..., N]. What no kernel takes, or the tree declines, is ``aks.linear`` and PyTorch's kernels.

    Raises
    ------
    ValueError
        If the activation is unknown.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; wanted one of {', '.join(ACTIVATIONS)}, or None")
    y = launch_linear(x, w, up, bias, residual, activation, static_weights)
    if y is not None:
        return y
    y = torch_ops.linear(x, w, static_weights=static_weights) if bias is None else functional.linear(x, w, bias)
    if activation:
        y = ACTIVATIONS[activation](y)
    if up is not None:
        y = y * torch_ops.linear(x, up, static_weights=static_weights)
    return y if residual is None else residual + y


def norm(x: Tensor, weight: Tensor, eps: float, one_plus: bool) -> Tensor:
    """``rms_norm`` by PyTorch."""
    return functional.rms_norm(x, (x.shape[-1],), weight + 1 if one_plus else weight, eps)


def launch_norm(x: Tensor, weight: Tensor, eps: float, one_plus: bool) -> Tensor | None:
    """``rms_norm`` by a kernel of ours; None if none takes it or the tree declines."""
    if not _is_plain(x, weight):
        return None
    out = torch.empty_like(x)
    return out if _launch_norm(x, rms_norm_call.Operands(weight, eps=eps, one_plus=one_plus), out) else None


def launch_add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, one_plus: bool
) -> tuple[Tensor, Tensor] | None:
    """``add_rms_norm`` by a kernel of ours; None if none takes it or the tree declines."""
    if residual.shape != x.shape or not _is_plain(x, weight, residual):
        return None
    out, total = torch.empty_like(x), torch.empty_like(x)
    operands = rms_norm_call.Operands(weight, residual, total, eps, one_plus)
    return (out, total) if _launch_norm(x, operands, out) else None


def _launch_norm(x: Tensor, operands: rms_norm_call.Operands, out: Tensor) -> bool:
    call = rms_norm_call.call_of(x, operands, out)
    dispatcher = layers.layer_dispatcher(RMS_NORM, x.get_device()) if call else None
    return bool(call and dispatcher and dispatcher.launch(call, x, operands, out))


def launch_linear(
    x: Tensor,
    w: Tensor,
    up: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    static_weights: bool,
) -> Tensor | None:
    """``fused_linear`` by a kernel of ours; None if none takes it or the tree declines."""
    epilogue = _epilogue(up, bias, residual, activation)
    others = [tensor for tensor in (up, bias, residual) if tensor is not None]
    if not epilogue or w.dim() != 2 or not _is_plain(x, w, *others):
        return None
    rows = x if x.dim() == 2 or x.is_contiguous() else x.reshape(-1, x.shape[-1])
    out = x.new_empty((*x.shape[:-1], w.shape[0]))
    operands = fused_linear_call.Operands(w, up, bias, residual)
    call = fused_linear_call.call_of(rows, operands, out, epilogue, static_weights)
    dispatcher = layers.layer_dispatcher(FUSED_LINEAR, x.get_device()) if call else None
    return out if call and dispatcher and dispatcher.launch(call, rows, operands, out) else None


def _epilogue(up: Tensor | None, bias: Tensor | None, residual: Tensor | None, activation: str | None) -> str:
    """The name of what there is; empty if no kernel has it."""
    if up is not None:
        name = f"{activation}_mul"
        return name if name in EPILOGUES and bias is None and residual is None else ""
    if residual is not None:
        return "" if activation else "residual"
    return activation or ("bias" if bias is not None else "")


def _is_plain(x: Tensor, w: Tensor, *others: Tensor) -> bool:
    """Whether our kernels may compute on these tensors: plain, on one GPU, no gradients wanted."""
    if torch.compiler.is_compiling() or x.device.type != torch_ops.DEVICE_TYPE or x.dim() < 1:
        return False
    index = x.get_device()
    wants = x.requires_grad or w.requires_grad
    for tensor in others:
        if tensor.__class__ not in torch_ops.PLAIN or tensor.get_device() != index:
            return False
        wants = wants or tensor.requires_grad
    return torch_ops.is_plain(x, w) and w.get_device() == index and not (wants and torch.is_grad_enabled())
