"""``aks.prepare``: what the first call of a shape costs, paid before serving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from aks.integrations.fusing import is_fused_layer
from aks.integrations.modules import Linear
from aks.integrations.quantized_base import QuantizedLinear
from aks.runtime.dispatcher import preparing


@torch.inference_mode()
def prepare(model: nn.Module, sizes: Iterable[int]) -> int:
    """Run each kind of a patched or quantised model's layers once for each number of rows to serve, then every layer.

    Kernels of a bundle need none of this. But the vendor's libraries choose an algorithm at the first sight of a shape
    and load its code at the first launch: 0.2 to 15 ms, on the serving path if this is not called. Without a bundle it
    compiles what is needed, too; with one, the native dispatcher afterwards launches the vendor's algorithms itself at
    these sizes. Of layers of the same class, shapes and dtype one stands for all.

    Parameters
    ----------
    model : torch.nn.Module
        Patched or quantised (``aks.patch``, ``aks.quantize``), in evaluation mode, where it will serve. Inputs of
        quantised layers are taken for bf16.
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
    if not rows:
        return 0
    kinds: dict[Any, tuple[Any, torch.Tensor]] = {}
    others: list[tuple[Any, torch.Tensor]] = []
    for layer, kind, like in _layers(model):
        if kind in kinds:
            others.append((layer, kinds[kind][1]))
        else:
            kinds[kind] = layer, torch.zeros(rows[-1], like.shape[-1], dtype=like.dtype, device=like.device)
    gpus = {x.get_device() for _, x in kinds.values() if x.is_cuda}
    with ExitStack() as stack:
        for index in gpus:
            stack.enter_context(preparing(index))
        for layer, x in kinds.values():
            for m in rows:
                layer(x[:m])
        for layer, x in others:
            layer(x)
    for index in gpus:
        torch.cuda.synchronize(index)
    return len(kinds)


def _layers(model: nn.Module) -> Iterator[tuple[Any, Any, torch.Tensor]]:
    """The patched layers, of what kind each is, and a tensor whose rows are as long as those of its input."""
    for layer in model.modules():
        if layer.training or not (isinstance(layer, Linear | QuantizedLinear) or is_fused_layer(layer)):
            continue
        weights = [*layer.parameters(), *layer.buffers()]
        like, shape = weights[0], ()
        if isinstance(layer, QuantizedLinear):
            like = like.new_empty(0, layer.in_features, dtype=torch.bfloat16)
            shape = layer.in_features, layer.out_features  # packed weights do not tell
        yield layer, (type(layer), shape, *((tuple(w.shape), w.stride(), w.dtype, w.device) for w in weights)), like
