"""The linear layers of a few blocks of an 8B model, as a step that a server runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aks.ops.gemm.call import problem_of
from aks.runtime import dispatcher
from aks.runtime.capture import Outputs
from aks.runtime.graphs import Layer

Linear = Callable[[Tensor, Tensor], Tensor]
"""``x @ w.T``: x [M, K], w [N, K]."""
Run = Callable[[Tensor], Outputs]
"""One step: x [M, hidden]."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of a block's layers; the defaults are Llama-3-8B's."""

    hidden: int = 4096
    key_value: int = 1024
    intermediate: int = 14336

    def weights(self) -> dict[str, tuple[int, int]]:
        """(n, k) of each layer."""
        hidden, wide = self.hidden, self.intermediate
        narrow = {"k": (self.key_value, hidden), "v": (self.key_value, hidden)}
        wide_ones = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
        return {"q": (hidden, hidden), **narrow, "o": (hidden, hidden), **wide_ones}


@dataclass(frozen=True, slots=True)
class Load:
    """What is served.

    fixed_steps steps of fixed_batch rows come after the trace. cold_seconds: as long the cold autotuner may serve.
    """

    steps: int = 5000
    max_batch: int = 256
    layers: int = 8
    fixed_batch: int = 16
    fixed_steps: int = 1000
    cold_seconds: float = 20.0
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)


class Blocks:
    """The weights of some blocks, and a step through them."""

    def __init__(self, load: Load, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator(device).manual_seed(load.seed)

        def weight(n: int, k: int) -> Tensor:
            # So scaled, x neither vanishes nor overflows on its way through the layers.
            drawn = torch.randn(n, k, device=device, dtype=torch.float32, generator=generator)
            return drawn.mul_(k**-0.5).to(dtype)

        shapes = load.sizes.weights()
        self.weights = [{name: weight(*shape) for name, shape in shapes.items()} for _ in range(load.layers)]

    def step(self, linear: Linear, x: Tensor) -> Tensor:
        """x [M, hidden] through all layers; what a block does not hand on (k, v, up) is computed all the same."""
        for w in self.weights:
            query = linear(x, w["q"])
            linear(x, w["k"])
            linear(x, w["v"])
            x = linear(query, w["o"])
            gate = linear(x, w["gate"])
            linear(x, w["up"])
            x = linear(gate, w["down"])
        return x

    def prepare(self, linear: Linear, max_m: int) -> None:
        """Each layer of a block once for each number of rows, then all, as ``aks.prepare`` does it with a model."""
        first = self.weights[0]["q"]
        with dispatcher.preparing(first.get_device()) if first.is_cuda else nullcontext():
            for w in {w.shape: w for w in self.weights[0].values()}.values():
                x = w.new_zeros((max_m, w.shape[1]))
                for m in range(1, max_m + 1):
                    linear(x[:m], w)
            self.step(linear, first.new_zeros((max_m, first.shape[1])))

    def layers(self) -> list[Layer]:
        """The problems that its layers pose, with static weights."""
        found = []
        for name, w in self.weights[0].items():
            x, out = (w.new_empty((1, length)) for length in (w.shape[1], w.shape[0]))
            problem = problem_of(x, w, out, True)
            assert problem is not None  # dense weights of a dtype that kernels take
            found.append(Layer(name, problem, len(self.weights)))
        return found
