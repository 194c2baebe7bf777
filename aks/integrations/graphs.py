"""The layers of a PyTorch model, as planning its CUDA graphs needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from aks.core.device import DeviceSpec
from aks.core.errors import GraphError
from aks.integrations import fusing
from aks.integrations.modules import Linear
from aks.integrations.quantized_base import QuantizedLinear
from aks.ops import find_op
from aks.ops.fused_linear import call as fused_linear_call
from aks.ops.gemm.call import problem_of
from aks.ops.rms_norm import call as rms_norm_call
from aks.runtime import graphs
from aks.runtime.graphs import Layer, Plan, Predictors
from aks.runtime.layers import dispatcher_for
from aks.runtime.served import Dispatcher


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """The problems that a model's layers pose, each once: ``aks.nn.Linear``, fused and quantised layers.

    Operands other than weights are taken for contiguous and aligned to 16 bytes, as PyTorch allocates them; the
    model is taken to be called without gradients. Left out are layers whose weight the kernels do not take, and norms
    of rows that no linear layer takes, such as those of attention heads: how many rows of theirs a row of the step
    has, a module does not tell.
    """
    found: dict[Layer, Layer] = {}
    for layer in _layers(model):
        kind = replace(layer, name="")
        first = found.get(kind, replace(layer, count=0))
        found[kind] = replace(first, count=first.count + 1)
    return tuple(found.values())


def plan_model(
    model: nn.Module,
    max_m: int,
    *,
    padding: float = 0.05,
    max_graphs: int | None = None,
    cost: Callable[[int], float] | None = None,
    predictors: Predictors | None = None,
    device: DeviceSpec | None = None,
) -> Plan:
    """``aks.graphs.plan`` for all layers of a model with the trees that serve it.

    Parameters
    ----------
    model : torch.nn.Module
        Patched (``aks.patch``), where and as it will serve.
    max_m : int
        The most rows of a step: sequences, times the tokens of each.
    padding, max_graphs, cost
        As of ``aks.graphs.plan``.
    predictors, device : optional
        The trees, by op, and the GPU to plan for, instead of those of the GPU that the model is on.

    Raises
    ------
    GraphError
        If the model has no layer that aks runs, or lies on no GPU with a tree and none is given.
    """
    layers = layers_of(model)
    if predictors is None or device is None:
        served = _served(model, layers)
        device = device or served[0].device
        predictors = predictors or {one.predictor.tree.op: one.predictor for one in served}
    return graphs.plan(layers, max_m, predictors, device, padding=padding, max_graphs=max_graphs, cost=cost)


def _served(model: nn.Module, layers: tuple[Layer, ...]) -> list[Dispatcher]:
    """What serves the layers' ops on the model's GPU, of those that have a tree for it."""
    where = {parameter.get_device() for parameter in model.parameters() if parameter.is_cuda}
    ops = sorted(graphs.ops_of(layers)) if len(where) == 1 else []
    found = [dispatcher_for(find_op(op), *where) for op in ops]
    served = [one for one in found if one is not None]
    if not served:
        raise GraphError(
            "the model has no layers of aks (patch the model first: aks.patch), or is not on one GPU that has a tree; "
            "move it there, or give predictors and device"
        )
    return served


def _layers(model: nn.Module) -> Iterator[Layer]:
    """Every layer that kernels take, in the order of the model's modules; the parts of a gated one with it."""
    with_residual = fusing.fused_with_residuals(model)
    widths = {module.in_features for module in model.modules() if isinstance(module, Linear | QuantizedLinear)}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        found: list[Layer | None] = []
        if (norm := fusing.norm_of(module)) and (module in with_residual or norm[0].shape[0] in widths):
            found = [_norm(name, norm, module in with_residual)]
        elif gated := fusing.gated_of(module):
            names, activation = gated
            linears: list[Any] = [getattr(module, part) for part in names]
            inside.update(linears)
            found = _gated(name, names, linears, activation, module in with_residual)
        elif isinstance(module, Linear) and module not in inside:
            found = [_linear(name, module)]
        elif isinstance(module, QuantizedLinear):
            found = [Layer(name, problem) for problem in module.problems(_is_static(module))]
        yield from _taken(found)


def _taken(layers: Iterable[Layer | None]) -> tuple[Layer, ...]:
    return tuple(layer for layer in layers if layer is not None)


def _linear(name: str, linear: Any) -> Layer | None:
    """A linear layer by itself; None if the kernels do not take it."""
    if linear.bias is not None:
        return _fused_linear(name, [linear], "bias", bias=linear.bias)
    w = linear.weight
    n, k = w.shape
    problem = problem_of(w.new_empty((1, k)), w, w.new_empty((1, n)), _is_static(linear))
    return problem and Layer(name, problem)


def _gated(name: str, names: Any, linears: Any, activation: str, adds: bool) -> list[Layer | None]:
    """A gated layer, gate and up in one kernel and down in another, which adds a residual or not; else its parts."""
    gate, up, down = linears
    apart = [_linear(part, linear) for part, linear in zip(names, linears, strict=True)]
    fused = summed = None
    if fusing.may_fuse(gate, up):
        fused = _fused_linear(name, [gate, up], f"{activation}_mul", up=up.weight)
    if fused is None:
        return [part and replace(part, name=f"{name}.{part.name}") for part in apart]
    last = _taken(apart[2:])
    if adds and fusing.may_fuse(down):
        residual = down.weight.new_empty((1, down.out_features))
        summed = _fused_linear(names[2], [down], "residual", bias=down.bias, residual=residual)
    then = (replace(summed, instead=last),) if summed else last
    return [replace(fused, instead=_taken(apart), then=then)]


def _fused_linear(name: str, linears: list[Any], epilogue: str, **operands: Any) -> Layer | None:
    w = linears[0].weight
    n, k = w.shape
    layer = fused_linear_call.Operands(w, **operands)
    is_static = all(map(_is_static, linears))
    call = fused_linear_call.call_of(w.new_empty((1, k)), layer, w.new_empty((1, n)), epilogue, is_static)
    return call and Layer(name, call.problem())


def _norm(name: str, norm: tuple[Tensor, float, bool], adds: bool) -> Layer | None:
    """A norm; ``adds``: of the sum with a residual, which PyTorch adds by itself where the tree declines."""
    weight, eps, one_plus = norm
    x, residual, out, total = (weight.new_empty((1, weight.shape[0])) for _ in range(4))
    operands = rms_norm_call.Operands(weight, eps=eps, one_plus=one_plus)
    alone = rms_norm_call.call_of(x, operands, out)
    added = rms_norm_call.call_of(x, operands._replace(residual=residual, total=total), out)
    if adds and added and alone:
        return Layer(name, added.problem(), instead=(Layer("norm", alone.problem()),))
    return alone and Layer(name, alone.problem())


def _is_static(layer: Linear | QuantizedLinear) -> bool:
    """Whether the weight is static once the layer has been called with it (``aks.nn.Linear``)."""
    if layer.training or layer.static_weights is not None:
        return bool(layer.static_weights) and not layer.training
    return not layer._forward_pre_hooks and not layer.weight.is_inference()
