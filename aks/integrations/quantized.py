"""``aks.nn.Fp8Linear`` and ``aks.nn.Int8Linear``: linear layers whose weight has 8 bits an element; all precisions."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aks.core.problem import Problem
from aks.integrations import quantized_ops
from aks.integrations.int4 import Int4Linear
from aks.integrations.quantized_base import QuantizedLinear, why_not
from aks.integrations.quantized_ops import SCALINGS, scaling_of, scalings_of

_DEEPSEEK_SCALE = "weight_scale_inv"
"""What weights are multiplied by, whatever its name says (``weight_dequant`` in DeepSeek-V3's ``kernel.py``)."""


class ScaledLinear(QuantizedLinear):
    """Base of linear layers of 8-bit weights.

    Buffers are ``weight`` [out_features, in_features], ``weight_scale`` float32 and ``bias``. An instance that is made
    by itself has weights of 0: it is for loading a ``state_dict``. ``from_linear`` quantises, as
    ``aks.ops.quantize_rows.reference.quantize`` says: ``scale = max(|w|) / top`` for each row of the weight, all of it
    or each of its blocks, and values rounded to the nearest. ``from_quantized`` takes what is quantised already.

    Parameters
    ----------
    scaling : str
        ``row``: a scale for each row of the weight, and for each row of x when it is quantised; ``tensor``: one for the
        weight, one for x; ``block``: one for every 128 x 128 of the weight, and for every 128 of a row of x. Int8 has
        rows alone.
    static_weights : bool, optional
        As of ``aks.nn.Linear``.

    Raises
    ------
    ValueError
        If the scaling is unknown.
    """

    kind: ClassVar[quantized_ops.Kind]

    weight_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        *,
        scaling: str = "row",
        static_weights: bool | None = None,
    ) -> None:
        super().__init__()
        known = scalings_of(self.kind.op)
        if scaling not in known:
            raise ValueError(f"scaling is {scaling!r}; aks.nn.{type(self).__name__} takes {', '.join(known)}")
        self.in_features, self.out_features, self.scaling = in_features, out_features, scaling
        self.static_weights = static_weights
        shape = SCALINGS[scaling].w_shape(out_features, in_features)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=self.kind.dtype, device=device))
        self.register_buffer("weight_scale", torch.ones(shape, dtype=torch.float32, device=device))
        made = torch.zeros(out_features, dtype=torch.bfloat16, device=device) if bias else None
        self.register_buffer("bias", made)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, scaling: str = "row", *, static_weights: bool | None = None) -> Self:
        """A layer of the quantised weight of ``linear``, on its device; in evaluation mode if that is.

        Raises
        ------
        ValueError
            If the scaling is unknown, or the weight has no floats of 16 bits or more, an infinity or NaN.
        """
        weight = linear.weight
        reason = why_not(weight)
        if reason:
            raise ValueError(f"aks.nn.{cls.__name__}.from_linear: {reason}")
        # On the meta device: what these buffers hold is replaced at once.
        made = cls(
            linear.in_features, linear.out_features, linear.bias is not None, "meta",
            scaling=scaling, static_weights=static_weights,
        )  # fmt: skip
        made.weight, made.weight_scale = made.quantize_weight(weight.detach(), scaling)
        if not made.weight_scale.isfinite().all():
            raise ValueError(f"aks.nn.{cls.__name__}.from_linear: the weight has an infinity or NaN; load it first")
        made.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16, copy=True)
        return made.train(linear.training)

    @classmethod
    def from_quantized(
        cls, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, *, static_weights: bool | None = None
    ) -> Self:
        """A layer of a weight that is quantised already, in evaluation mode. It shares their memory with its arguments.

        Parameters
        ----------
        weight : Tensor
            [out_features, in_features] of the layer's 8-bit type.
        weight_scale : Tensor
            By which the weight is to be multiplied: [out_features], [1] or of blocks, which says the scaling. Not
            float32, it is converted. The ``weight_scale_inv`` of DeepSeek's checkpoints is one of blocks.
        bias : Tensor, optional
            [out_features], bf16 or converted to it.

        Raises
        ------
        ValueError
            If dtypes or shapes do not fit.
        """
        if weight.dtype != cls.kind.dtype or weight.dim() != 2:
            raise ValueError(
                f"aks.nn.{cls.__name__}.from_quantized: weight is {list(weight.shape)} {weight.dtype}; wanted "
                f"[out_features, in_features] of {cls.kind.dtype}"
            )
        weight_scale = weight_scale.detach().float()
        scaling = scaling_of(cls.kind, weight, weight_scale)
        made = cls(
            weight.shape[1], weight.shape[0], bias is not None, "meta", scaling=scaling, static_weights=static_weights
        )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"aks.nn.{cls.__name__}.from_quantized: bias is {list(bias.shape)}; wanted {list(weight.shape[:1])}"
            )
        made.weight, made.weight_scale = weight.detach(), weight_scale
        made.bias = None if bias is None else bias.detach().to(torch.bfloat16)
        return made.eval()

    def quantize_weight(self, weight: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
        """Weight and scales of a weight [out_features, in_features] of floats."""
        return SCALINGS[scaling].quantise_w(weight, self.kind.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], of x's dtype."""
        mode = self.mode(self._is_static_now())
        y = quantized_ops.call(self.kind, input, self.weight, self.weight_scale, self.bias, None, *mode)
        return y if y.dtype == input.dtype else y.to(input.dtype)

    def mode(self, static_weights: bool) -> tuple[bool, ...]:
        """What the op's calls are told beside tensors."""
        return (static_weights,)

    def problems(self, static_weights: bool) -> tuple[Problem, ...]:
        """What a call with one row of bf16 poses, in the order of the launches."""
        mode = self.mode(static_weights)
        return quantized_ops.problems_of(self.kind, self.weight, self.weight_scale, self.bias, *mode)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scaling={self.scaling!r}"
        )


class Fp8Linear(ScaledLinear):
    """A ``ScaledLinear`` of 8-bit floats (e4m3), computed by ``aks.fp8_linear``; scaling ``row``, ``tensor`` or
    ``block``.

    With scaling ``block`` it loads what DeepSeek's checkpoints have, too: ``weight_scale_inv`` of any floats for
    ``weight_scale``.
    """

    precision, kind, op = "fp8", quantized_ops.FP8, quantized_ops.FP8.op

    fast_accum = True
    """As of ``aks.fp8_linear``; set it on the layer."""

    def mode(self, static_weights: bool) -> tuple[bool, ...]:
        return self.fast_accum, static_weights

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        theirs = prefix + _DEEPSEEK_SCALE
        if self.scaling == "block" and theirs in state_dict and prefix + "weight_scale" not in state_dict:
            state_dict = {name: value for name, value in state_dict.items() if name != theirs} | {
                prefix + "weight_scale": state_dict[theirs].float()
            }
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Int8Linear(ScaledLinear):
    """A ``ScaledLinear`` of 8-bit integers, computed by ``aks.int8_linear``; scaling ``row``."""

    precision, kind, op = "int8", quantized_ops.INT8, quantized_ops.INT8.op


PRECISIONS: dict[str, type[QuantizedLinear]] = {layer.precision: layer for layer in (Fp8Linear, Int8Linear, Int4Linear)}
"""What a model can be quantised to."""
