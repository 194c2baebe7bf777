"""``aks.patch``: a model's linear layers through the dispatcher, in place; ``aks.unpatch``: back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from aks.integrations import fusing, torch_ops
from aks.integrations.fusing import FUSIONS
from aks.integrations.modules import Linear
from aks.integrations.summary import describe, linear_layers, why_not_plain
from aks.runtime import dispatcher

_ADDED = ("patched", "static_weights", "_seen")
"""Attributes that a patched layer has beside those of ``torch.nn.Linear``."""


@dataclass(frozen=True, slots=True)
class PatchSummary:
    """What ``aks.patch`` did: names of linear layers, and for those that it skipped the reason.

    A layer that several modules share has one name, that under which it is found first. fused: modules around
    linear layers, and what of each is one kernel now.
    """

    replaced: tuple[str, ...]
    skipped: Mapping[str, str]
    fused: Mapping[str, str]
    note: str = ""

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.skipped)
        title = f"aks.patch: {len(self.replaced)} of {total} linear layers replaced{self.note}"
        groups = {"replaced": dict.fromkeys(self.replaced, ""), "skipped": self.skipped, "fused": self.fused}
        return describe(title, groups)


def patch(
    model: nn.Module, *, static_weights: bool | None = None, fuse: Collection[str] = FUSIONS, verbose: bool = True
) -> PatchSummary:
    """Have a model's linear layers, and what fuses with them, run by the dispatcher, in place, and print which.

    A layer stays the object that it is, and becomes an ``aks.nn.Linear``, which is a ``torch.nn.Linear``:
    parameters (tied ones too), names, hooks, ``state_dict``, moving, casting, copying and pickling are as
    before. What its kernels do not take it leaves to PyTorch, call by call. Norms, gated feed-forward layers
    and blocks that add residuals are recognised by what they compute (``aks.integrations.fusing``); they get a
    subclass of their class.

    Skipped are layers in training mode; subclasses of ``torch.nn.Linear`` (parametrised, quantised) and
    layers whose forward was replaced; weights that are computed, tensor subclasses or of other dtypes
    than bf16 and fp16; GPUs without a tree. So patch when the model is as it will serve.

    Parameters
    ----------
    model : torch.nn.Module
        Any. Itself a linear layer: it alone is replaced.
    static_weights : bool, optional
        As of ``aks.nn.Linear``. With the default, None, weights are static from the first call on: this
        waits until all that runs on the model's GPUs has ended.
    fuse : collection of str
        Which neighbours of linear layers too, of ``norm``, ``gated`` and ``residual``. Results differ from the
        model's by rounding: what stays inside a kernel is float32.
    verbose : bool
        Print the summary.

    Returns
    -------
    PatchSummary
        Also what is printed.

    Raises
    ------
    TypeError
        If ``model`` is no module.
    ValueError
        If a fusion is unknown.
    """
    replaced: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, layer in linear_layers(model):
        reason = _reason_to_skip(layer)
        if reason:
            skipped[name] = reason
        else:
            replaced[name] = layer
    devices = {layer.weight.device for layer in replaced.values()}
    for device in devices:
        if device.type == "cuda" and static_weights is None:
            torch.cuda.synchronize(device)
    for layer in replaced.values():
        layer.__class__ = Linear
        layer.patched = True
        layer.static_weights = static_weights
        if static_weights is None:
            layer.note_weight()
    fused = fusing.fuse(model, fuse)
    elsewhere = replaced and not any(device.type == torch_ops.DEVICE_TYPE for device in devices)
    note = "; on no GPU yet, so PyTorch runs them until they are moved to one" if elsewhere else ""
    summary = PatchSummary(tuple(replaced), skipped, fused, note)
    if verbose:
        print(summary)
    return summary


def unpatch(model: nn.Module, *, verbose: bool = True) -> int:
    """Undo ``patch``: its layers are ``torch.nn.Linear`` again. Returns and prints how many of these there are.

    Raises
    ------
    TypeError
        If ``model`` is no module.
    """
    layers: list[Any] = [layer for _, layer in linear_layers(model) if type(layer) is Linear and layer.patched]
    fusing.unfuse(model)
    for layer in layers:
        layer.__class__ = nn.Linear
        for name in _ADDED:
            layer.__dict__.pop(name, None)
    if verbose:
        print(f"aks.unpatch: {len(layers)} linear layers are torch.nn.Linear again")
    return len(layers)


def _reason_to_skip(layer: nn.Linear) -> str:
    """Why a layer stays as it is; empty if nothing speaks against replacing it."""
    if type(layer) is Linear:
        return "is an aks.nn.Linear already"
    return why_not_plain(layer) or _reason_by_weight(layer.weight) or _reason_by_bias(layer)


def _reason_by_weight(weight: Tensor) -> str:
    if type(weight) is not Parameter:
        return f"its weight is a {type(weight).__name__}"
    if weight.layout is not torch.strided:
        return f"its weight is {weight.layout}"
    if weight.dtype not in torch_ops.DTYPES:
        return f"its weight is {weight.dtype}; the kernels take bfloat16 and float16"
    if weight.device.type == "meta":
        return "its weight is on the meta device: load it first"
    if weight.device.type == "cuda" and dispatcher.dispatcher_of(weight.get_device()) is None:
        return f"no tree for {torch.cuda.get_device_name(weight.device)}"
    return ""


def _reason_by_bias(layer: nn.Linear) -> str:
    if layer.bias is not None and layer.bias.dtype != layer.weight.dtype:
        return f"its bias is {layer.bias.dtype}, its weight {layer.weight.dtype}"
    return ""
