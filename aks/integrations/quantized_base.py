"""What linear layers of quantised weights have in common, whatever the bits."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aks.core.problem import Problem
from aks.integrations.modules import WatchesWeight
from aks.ops.op import Op

_NEEDED_MULTIPLE = 16
"""Of in_features and out_features, where kernels read and write whole vectors and the vendor's need no copies."""


class QuantizedLinear(WatchesWeight, nn.Module):
    """Base of linear layers of quantised weights: x [..., in_features] to [..., out_features] of x's dtype.

    For inference. Weights, scales and the bias (bf16, or None) are buffers; they keep their dtypes when the module is
    cast (``.to(dtype)``, ``.half()``), and a ``state_dict`` must have them.
    """

    precision: ClassVar[str]
    op: ClassVar[Op]
    """Of its products."""

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def from_linear(cls, *args: Any, **kwargs: Any) -> Self:
        """A layer of a ``torch.nn.Linear``, which comes first; then its options, and ``static_weights``."""
        raise NotImplementedError

    def problems(self, static_weights: bool) -> tuple[Problem, ...]:
        """What a call with one row of bf16 poses, in the order of the launches."""
        raise NotImplementedError

    @classmethod
    def why_slow(cls, linear: nn.Linear, **options: Any) -> str:
        """Why a layer of these options of ``from_linear`` would be a slow one; empty if nothing speaks for it."""
        for name in ("in_features", "out_features"):
            if getattr(linear, name) % _NEEDED_MULTIPLE:
                return f"{name} is {getattr(linear, name)}, no multiple of {_NEEDED_MULTIPLE}: most kernels want that"
        return ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight with its scales, and copies of it."""
        return sum(buffer.nbytes for buffer in self.buffers() if buffer is not self.bias)

    def _is_static_now(self) -> bool:
        if torch.compiler.is_compiling():
            return bool(self.is_static_compiled(self.weight))
        return bool(self.is_static(self._buffers["weight"]))  # type: ignore[arg-type]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            # Moved only: the bits of a cast weight would mean nothing, nor would 16 of a scale.
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        for name, buffer in self._buffers.items():
            found = state_dict.get(prefix + name)
            if buffer is not None and found is not None and found.dtype != buffer.dtype:
                errors.append(
                    f"{prefix}{name} is {found.dtype}; this layer's is {buffer.dtype}: load the model before it is "
                    "quantised, or the state_dict of one that was quantised likewise"
                )
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


def why_not(weight: Tensor) -> str:
    """Why a weight cannot be quantised; empty if it can."""
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        return f"its weight is {weight.dtype}; wanted bfloat16, float16 or float32"
    if weight.device.type == "meta":
        return "its weight is on the meta device: load it first"
    if weight.layout is not torch.strided or type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}, {weight.layout}"
    return ""
