"""``aks.quantize``: a model's linear layers to 8 or 4 bits, in place."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aks.integrations.modules import Linear
from aks.integrations.quantized import PRECISIONS
from aks.integrations.quantized_base import QuantizedLinear, why_not
from aks.integrations.summary import describe, linear_layers, why_not_plain

SKIPPED = ("lm_head",)
"""The output layer of language models: what its errors cost shows in the tokens, and it is one layer of many."""


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """What ``aks.quantize`` did: names of linear layers, and for those that it skipped the reason.

    Bytes are of the weights that were replaced, with their scales and copies, before and after.
    """

    precision: str
    replaced: tuple[str, ...]
    skipped: Mapping[str, str]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.skipped)
        title = (
            f"aks.quantize: {len(self.replaced)} of {total} linear layers to {self.precision}, "
            f"{self.bytes_before / 1e6:.3g} MB to {self.bytes_after / 1e6:.3g} MB"
        )
        return describe(title, {"replaced": dict.fromkeys(self.replaced, ""), "skipped": self.skipped})


def quantize(
    model: nn.Module,
    precision: str,
    *,
    skip: Collection[str] = SKIPPED,
    static_weights: bool | None = None,
    verbose: bool = True,
    **options: Any,
) -> QuantizeSummary:
    """Replace a model's linear layers by quantised ones (``aks.nn.Fp8Linear``, ``Int8Linear``, ``Int4Linear``).

    In place, one by one, so that no two copies of the model are needed; there is no way back. Call it when the model is
    loaded and in evaluation mode, and ``aks.patch`` after it, which fuses norms and residuals.

    Skipped are, beside what ``skip`` says: what ``aks.patch`` skips for being no plain ``torch.nn.Linear``, layers that
    it has replaced, layers with hooks, and those whose sizes are no multiples of 16 (routers of experts, say) or, of
    4 bits, whose in_features are no multiple of the group.

    Parameters
    ----------
    model : torch.nn.Module
        Any that is not itself a linear layer; for that there is ``from_linear``.
    precision : str
        ``fp8``, ``int8`` or ``int4``.
    skip : collection of str
        Names of layers, or of modules that they are in, or parts of such names between dots; also as regular
        expressions.
    static_weights : bool, optional
        As of ``aks.nn.Linear``. With the default, None, weights are static from the first call on: this waits until
        all that runs on the model's GPUs has ended.
    verbose : bool
        Print the summary.
    **options
        Of the layer: scaling of 8 bits (``row``; of fp8 also ``tensor``, ``block``); group, zeros, tinygemm, keep_bf16
        and density of 4.

    Returns
    -------
    QuantizeSummary
        Also what is printed.

    Raises
    ------
    TypeError
        If ``model`` is no module, or a linear layer itself, or the layer of that precision has no such option.
    ValueError
        If the precision is unknown, or an option's value, or a weight has an infinity or NaN.
    """
    kind = kind_of(precision)
    if isinstance(model, nn.Linear):
        raise TypeError(f"the model is a linear layer itself; use aks.nn.{kind.__name__}.from_linear(model)")
    replaced: dict[str, QuantizedLinear] = {}
    skipped: dict[str, str] = {}
    before = after = 0
    for name, layer in linear_layers(model):
        reason = reason_to_skip(name, layer, skip, kind, **options)
        if reason:
            skipped[name] = reason
            continue
        try:
            made = kind.from_linear(layer, static_weights=static_weights, **options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        before += layer.weight.nbytes
        after += made.weight_bytes
        exchange(model, {layer: made})
        replaced[name] = made
    settle(replaced.values())
    summary = QuantizeSummary(precision, tuple(replaced), skipped, before, after)
    if verbose:
        print(summary)
    return summary


def kind_of(precision: str) -> type[QuantizedLinear]:
    """The layer of a precision.

    Raises
    ------
    ValueError
        If it is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; known: {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def reason_to_skip(
    name: str, layer: nn.Linear, skip: Collection[str], kind: type[QuantizedLinear], **options: Any
) -> str:
    """Why a layer stays as it is; empty if nothing speaks against replacing it by one of a kind with these options."""
    for pattern in skip:
        if re.search(rf"(^|\.)({pattern})(\.|$)", name):
            return f"skip has {pattern!r}"
    if type(layer) is Linear:
        return "is an aks.nn.Linear: call aks.unpatch first, and aks.patch afterwards"
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    reason = why_not_plain(layer) or ("has hooks" if hooks else "") or why_not(layer.weight)
    return reason or kind.why_slow(layer, **options)


def exchange(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some, wherever the model has them."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and child in others:
                module._modules[name] = others[child]


def settle(layers: Iterable[nn.Module]) -> None:
    """Take the weights of quantised layers for static from here on: wait until what wrote them has ended."""
    watched = [layer for layer in layers if isinstance(layer, QuantizedLinear) and layer.static_weights is None]
    for device in {layer.weight.device for layer in watched}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    for layer in watched:
        layer.note_weight()
