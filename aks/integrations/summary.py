"""What is done to a model's layers, in words: for ``aks.patch`` and ``aks.quantize``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import nn


def linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of a model with their names; itself, under its class's, if it is one.

    Raises
    ------
    TypeError
        If ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{model!r} is a {type(model).__name__}; wanted a torch.nn.Module: pass the model itself")
    # Of modules that are replaced while they are walked over, none is missed: the list comes first.
    return [
        (name or type(layer).__name__, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    ]


def why_not_plain(layer: nn.Linear) -> str:
    """Why a linear layer may compute something else than its weight says; empty if nothing speaks for it."""
    kind = type(layer)
    if kind is not nn.Linear:
        return f"is a {kind.__module__}.{kind.__qualname__}, a subclass of torch.nn.Linear"
    if "forward" in layer.__dict__:
        return "its forward was replaced"
    if layer.training:
        return "in training mode: call eval() first"
    if "weight" not in layer._parameters:
        return "its weight is computed before each call (weight_norm, pruning)"
    return ""


def describe(title: str, groups: Mapping[str, Mapping[str, str]]) -> str:
    """A title, then for each group a line for all names that differ in numbers alone and have the same reason."""
    lines = [title]
    for group, reasons in groups.items():
        counts = Counter((re.sub(r"\b\d+\b", "*", name), reason) for name, reason in reasons.items())
        lines += [
            f"  {group:<9} {name}{f' ({count})' if count > 1 else ''}{f': {reason}' if reason else ''}"
            for (name, reason), count in counts.items()
        ]
    return "\n".join(lines)
