"""``aks.prepare``: what the first call of a shape costs, paid before serving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from aks.integrations.fusing import is_fused_layer
from aks.integrations.modules import Linear


@torch.inference_mode()
def prepare(model: nn.Module, sizes: Iterable[int]) -> int:
    """Run each kind of a patched model's layers once for each number of rows that it will serve.

    Kernels of a bundle need none of this. But the vendor's libraries choose an algorithm at the first sight of a shape
    and load its code at the first launch: 0.2 to 15 ms, on the serving path if this is not called. Without a bundle it
    compiles what is needed, too. Of layers of the same class, shapes and dtype one stands for all.

    Parameters
    ----------
    model : torch.nn.Module
        Patched (``aks.patch``), in evaluation mode, where it will serve.
    sizes : iterable of int
        Rows of a step: sequences, times the tokens of each; ``range(1, 257)``, say.

    Returns
    -------
    int
        How many layers stood for all.

    Raises
    ------
    ValueError
        If a size is less than 1.
    """
    rows = sorted(set(sizes))
    if rows and rows[0] < 1:
        raise ValueError(f"sizes begin at {rows[0]}; wanted numbers of rows from 1 up")
    count = 0
    for layer, width, like in _kinds_of_layers(model):
        count += 1
        x = torch.zeros(rows[-1] if rows else 0, width, dtype=like.dtype, device=like.device)
        for m in rows:
            layer(x[:m])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count


def _kinds_of_layers(model: nn.Module) -> Iterator[tuple[Any, int, torch.Tensor]]:
    """One layer of each kind, the length of its rows, and a tensor of its dtype on its device."""
    seen: set[tuple[Any, ...]] = set()
    for layer in model.modules():
        if layer.training or not (isinstance(layer, Linear) or is_fused_layer(layer)):
            continue
        weights = list(layer.parameters())
        first = weights[0]
        kind = type(layer), *((tuple(w.shape), w.stride(), w.dtype, w.device) for w in weights)
        if kind not in seen:
            seen.add(kind)
            yield layer, first.shape[-1], first
