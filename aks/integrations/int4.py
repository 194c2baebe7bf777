"""``aks.nn.Int4Linear``: linear layers whose weight has 4 bits an element."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from aks.core.problem import Problem
from aks.integrations import int4_ops
from aks.integrations.quantized_base import QuantizedLinear, why_not
from aks.ops.int4_gemm import packing
from aks.ops.int4_gemm.call import Operands
from aks.ops.int4_gemm.packing import Int4Weight, num_meta, num_words
from aks.ops.int4_gemm.reference import takes_tinygemm, to_tinygemm
from aks.ops.int4_gemm.spec import DENSITIES, GROUPS, INT4_GEMM


class Int4Linear(QuantizedLinear):
    """A linear layer of 4-bit weights in groups along in_features, computed by ``aks.int4_linear``.

    Inputs are rounded to bf16, if they are not. In the ``state_dict`` are ``weight`` and ``weight_meta``, packed as
    ``aks.ops.int4_gemm.packing`` says, ``weight_layout`` (out_features, in_features, group, zeros), ``bias``, and
    ``order`` of a layer with act_order. Copies of the weight, which some kernels read, are made of these when they are
    loaded or moved to another device. A layer that is made by itself has weights of 0: it is for loading a
    ``state_dict``.

    Parameters
    ----------
    group : int
        32, 64 or 128: weights of a row that share a scale.
    zeros : bool
        Whether each group has a zero point of its own; without, it is in the middle of the 16 values.
    act_order : bool
        Whether columns of x are brought into another order first, as of GPTQ with ``desc_act``; a kernel more.
    tinygemm : bool
        Keep a copy of the weight for PyTorch's own kernel on a GPU, as large as the weight: what runs where there is no
        tree for the GPU, or where it says so. Without, and for sizes that this kernel does not take, weights are
        dequantised at each such call.
    keep_bf16 : bool
        Keep a copy in bf16, four times as large, for batches at which that is faster.
    density : int
        About how many percent of x are not 0, as of ``aks.int4_linear``. Less than 100 keeps a copy of the weight, for
        a kernel that skips the weights of zeros.
    static_weights : bool, optional
        As of ``aks.nn.Linear``.

    Raises
    ------
    ValueError
        If the group or the density is not one of those.
    """

    precision, op = "int4", INT4_GEMM

    weight_meta: Tensor
    weight_layout: Tensor
    order: Tensor | None
    tiny_words: Tensor | None
    tiny_scales: Tensor | None
    dense: Tensor | None
    by_k: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        *,
        group: int = 128,
        zeros: bool = False,
        act_order: bool = False,
        tinygemm: bool = True,
        keep_bf16: bool = False,
        density: int = 100,
        static_weights: bool | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("group", group, GROUPS), ("density", density, DENSITIES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; aks.nn.Int4Linear takes {', '.join(map(str, known))}")
        self.in_features, self.out_features, self.group, self.zeros = in_features, out_features, group, zeros
        self.tinygemm, self.keep_bf16, self.density = tinygemm, keep_bf16, density
        self.static_weights = static_weights
        n, k = out_features, in_features
        stored = {
            "weight": torch.zeros(num_words(n, k), dtype=torch.int32, device=device),
            "weight_meta": torch.zeros(num_meta(n, k, group, zeros), dtype=torch.int32, device=device),
            "weight_layout": torch.tensor(self._layout, dtype=torch.int32, device=device),
            "bias": torch.zeros(n, dtype=torch.bfloat16, device=device) if bias else None,
            "order": torch.arange(k, device=device) if act_order else None,
        }
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        for name in ("tiny_words", "tiny_scales", "dense", "by_k"):
            self.register_buffer(name, None, persistent=False)
        self._make_copies()

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, group: int = 128, zeros: bool = False, **options: Any) -> Self:
        """A layer of the weight of ``linear``, rounded (``packing.quantize``), on its device; in its training mode.

        options are those of the constructor.

        Raises
        ------
        ValueError
            If an option is not allowed, or the weight has no floats of 16 bits or more, an infinity or NaN.
        """
        weight = linear.weight
        reason = why_not(weight)
        if reason:
            raise ValueError(f"aks.nn.{cls.__name__}.from_linear: {reason}")
        packed = packing.quantize(weight.detach(), group, zeros)
        return cls.from_packed(packed, linear.bias, **options).train(linear.training)

    @classmethod
    @torch.no_grad()
    def from_gptq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        group: int = 0,
        v2: bool = False,
        **options: Any,
    ) -> Self:
        """A layer of a checkpoint of AutoGPTQ or GPTQModel, in evaluation mode; tensors as ``packing.from_gptq`` says.

        Scales and the bias are rounded to bf16.

        Raises
        ------
        ValueError
            If shapes or dtypes do not fit, or an option of the constructor is not allowed.
        """
        packed, order = packing.from_gptq(qweight, qzeros, scales, g_idx, group=group, v2=v2)
        return cls.from_packed(packed, bias, order=order, **options)

    @classmethod
    @torch.no_grad()
    def from_awq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        *,
        group: int = 0,
        **options: Any,
    ) -> Self:
        """A layer of a checkpoint of AutoAWQ (GEMM), in evaluation mode; tensors as ``packing.from_awq`` says.

        Scales and the bias are rounded to bf16.

        Raises
        ------
        ValueError
            If shapes or dtypes do not fit, or an option of the constructor is not allowed.
        """
        packed = packing.from_awq(qweight, qzeros, scales, group=group)
        return cls.from_packed(packed, bias, **options)

    @classmethod
    @torch.no_grad()
    def from_packed(
        cls, weight: Int4Weight, bias: Tensor | None = None, *, order: Tensor | None = None, **options: Any
    ) -> Self:
        """A layer of a packed weight, in evaluation mode. bias [N] of floats; order [K] in which to take columns of x.

        options are those of the constructor.
        """
        # On the meta device: what these buffers hold is replaced at once.
        made = cls(
            weight.k, weight.n, bias is not None, "meta",
            group=weight.group, zeros=weight.zeros, act_order=order is not None, **options,
        )  # fmt: skip
        made.weight, made.weight_meta, made.order = weight.words, weight.meta, order
        made.weight_layout = torch.tensor(made._layout, dtype=torch.int32, device=weight.words.device)
        made.bias = None if bias is None else bias.detach().to(torch.bfloat16, copy=True)
        made._make_copies()
        return made.eval()

    @classmethod
    def why_slow(cls, linear: nn.Linear, **options: Any) -> str:
        group = options.get("group", 128)
        if linear.in_features % group == 0:
            return super().why_slow(linear)
        others = [other for other in GROUPS if linear.in_features % other == 0]
        instead = f"group={max(others)} is one" if others else "no group is one that kernels take"
        return f"in_features is {linear.in_features}, no multiple of group={group}: {instead}"

    @property
    def packed(self) -> Int4Weight:
        """The weight, for ``aks.int4_linear`` and ``aks.ops.int4_gemm.packing``."""
        return self._operands().weight

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], of x's dtype."""
        static = self._is_static_now()
        order = self._buffers["order"]
        x = input if order is None else input.index_select(-1, order)
        y = int4_ops.call(x, self._operands(), self.density, static)
        return y if y.dtype == input.dtype else y.to(input.dtype)

    def problems(self, static_weights: bool) -> tuple[Problem, ...]:
        return int4_ops.problems_of(self._operands(), self.density, static_weights)

    def extra_repr(self) -> str:
        said = {
            "in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None,
            "group": self.group, "zeros": self.zeros,
        }  # fmt: skip
        more = {"act_order": self.order is not None, "tinygemm": self.tinygemm, "keep_bf16": self.keep_bf16}
        usual = {"act_order": False, "tinygemm": True, "keep_bf16": False}
        said |= {name: value for name, value in more.items() if value != usual[name]}
        said |= {"density": self.density} if self.density < 100 else {}
        return ", ".join(f"{name}={value}" for name, value in said.items())

    @property
    def _layout(self) -> tuple[int, int, int, int]:
        return self.out_features, self.in_features, self.group, int(self.zeros)

    def _operands(self) -> Operands:
        buffers: Any = self._buffers  # looked up at a tenth of the cost of a module's attribute
        tiny = None if buffers["tiny_words"] is None else (buffers["tiny_words"], buffers["tiny_scales"])
        weight = Int4Weight(
            buffers["weight"], buffers["weight_meta"], self.out_features, self.in_features, self.group, self.zeros
        )
        return Operands(weight, buffers["bias"], tiny, buffers["dense"], buffers["by_k"])

    @torch.no_grad()
    def _make_copies(self) -> None:
        """Copies for other kernels, of what the weight now is."""
        weight, device = self.packed, self.weight.device.type
        there = device != "meta"
        tiny = to_tinygemm(weight) if self.tinygemm and device == "cuda" and takes_tinygemm(weight) else (None, None)
        self.tiny_words, self.tiny_scales = tiny
        self.dense = packing.dequantize(weight) if self.keep_bf16 and there else None
        self.by_k = packing.by_k(weight) if self.density < 100 and there else None

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = self.weight.device
        super()._apply(fn, recurse)
        if self.weight.device != before:
            self._make_copies()
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        layout = state_dict.get(f"{prefix}weight_layout")
        if layout is not None and not layout.is_meta and tuple(layout.tolist()) != self._layout:
            names = "out_features, in_features, group, zeros"
            errors.append(
                f"{prefix}weight_layout is {tuple(layout.tolist())}; this layer's is {self._layout} ({names}): make it "
                "as that one was made"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        self._make_copies()
