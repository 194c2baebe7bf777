"""The layers of a PyTorch model, as planning its CUDA graphs needs them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from aks.core.device import DeviceSpec
from aks.core.errors import GraphError
from aks.integrations.modules import Linear
from aks.ops.gemm.call import problem_of
from aks.ops.gemm.spec import GemmProblem
from aks.runtime import dispatcher, graphs
from aks.runtime.graphs import Layer, Plan
from aks.runtime.predictor import Predictor


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """The problems that a model's ``aks.nn.Linear`` layers (what ``aks.patch`` makes) pose, each once.

    Operands other than weights are taken for contiguous and aligned to 16 bytes, as PyTorch allocates them. Left out
    are layers whose weight the kernels do not take.
    """
    found: dict[GemmProblem, Layer] = {}
    for name, layer in model.named_modules():
        problem = _problem(layer) if isinstance(layer, Linear) else None
        if problem is not None:
            first = found.get(problem, Layer(name, problem, 0))
            found[problem] = Layer(first.name, problem, first.count + 1)
    return tuple(found.values())


def plan_model(
    model: nn.Module,
    max_m: int,
    *,
    padding: float = 0.05,
    max_graphs: int | None = None,
    cost: Callable[[int], float] | None = None,
    predictor: Predictor | None = None,
    device: DeviceSpec | None = None,
) -> Plan:
    """``aks.graphs.plan`` for all layers of a model with the tree that serves it.

    Parameters
    ----------
    model : torch.nn.Module
        Patched (``aks.patch``), where and as it will serve.
    max_m : int
        The most rows of a step: sequences, times the tokens of each.
    padding, max_graphs, cost
        As of ``aks.graphs.plan``.
    predictor, device : optional
        The tree and the GPU to plan for, instead of those of the GPU that the model is on.

    Raises
    ------
    GraphError
        If the model has no layer that aks runs, or lies on no GPU with a tree and none is given.
    """
    layers = layers_of(model)
    if predictor is None or device is None:
        where = {parameter.get_device() for parameter in model.parameters() if parameter.is_cuda}
        served = dispatcher.dispatcher_of(where.pop()) if len(where) == 1 else None
        if served is None:
            raise GraphError("the model is not on one GPU that has a tree; move it there, or give predictor and device")
        predictor, device = predictor or served.predictor, device or served.device
    return graphs.plan(layers, max_m, predictor, device, padding=padding, max_graphs=max_graphs, cost=cost)


def _problem(layer: Linear) -> GemmProblem | None:
    w = layer.weight
    n, k = w.shape
    x, out = w.new_empty((1, k)), w.new_empty((1, n))
    return problem_of(x, w, out, _is_static(layer))


def _is_static(layer: Linear) -> bool:
    """Whether the weight is static once the layer has been called with it (``aks.nn.Linear``)."""
    if layer.training or layer.static_weights is not None:
        return bool(layer.static_weights) and not layer.training
    return not layer._forward_pre_hooks and not layer.weight.is_inference()
