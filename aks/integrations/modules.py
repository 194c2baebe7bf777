"""``aks.nn.Linear``: ``torch.nn.Linear`` through the dispatcher; what layers know of their weights."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aks.integrations import fused_ops, torch_ops
from aks.runtime import dispatcher


class WatchesWeight:
    """Base of layers that know whether kernels may read their weight before the preceding kernel has ended.

    That is a race where that kernel writes it. static_weights: never in training mode; else False: no; True: yes, the
    caller sees to it; None, the default: where nothing wrote the weight, so far as PyTorch tells.

    What PyTorch tells is the weight's version and address. The first call that finds them changed is not static; those
    after it are. Not told are writes through ``weight.data`` or another library, and those of another stream; for them
    to matter, their kernel must come directly before the layer's. Weights that a forward pre-hook may make, and weights
    made in inference mode, are not static. Compiled code takes the weight for static in evaluation mode, if it needs no
    gradient there.
    """

    static_weights: bool | None = None
    _seen: tuple[weakref.ref[Tensor], int, int] | None = None

    def note_weight(self: Any) -> None:
        """Take the weight for static from here on: all that wrote it has ended."""
        w = self.weight
        self.__dict__["_seen"] = None if w.is_inference() else (weakref.ref(w), w._version, w.data_ptr())

    def is_static(self: Any, w: Tensor) -> bool | None:
        """Whether w is static; None if it changed, so that a kernel must run that starts when all before has ended."""
        if self.training or self.static_weights is not None:
            return bool(self.static_weights) and not self.training
        if self._forward_pre_hooks or w.is_inference():
            return False
        seen = self._seen
        if seen and seen[0]() is w and seen[1] == w._version and seen[2] == w.data_ptr():
            return True
        self.note_weight()
        return None

    def is_static_compiled(self: Any, w: Tensor) -> bool:
        """``is_static`` for code that is being traced."""
        if self.training or self.static_weights is not None:
            return bool(self.static_weights) and not self.training
        return not self._forward_pre_hooks and not (torch.is_grad_enabled() and w.requires_grad)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has another weight; and a weak reference cannot be pickled.
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_seen"}


class Linear(WatchesWeight, nn.Linear):
    """``torch.nn.Linear``, computed by ``aks.linear``: the same arguments, parameters and ``state_dict``.

    Parameters
    ----------
    static_weights : bool, optional
        Whether kernels may read the weight before the preceding kernel has ended: as ``WatchesWeight`` says. Where the
        weight changed, PyTorch's own kernel runs.

    A bias is added by the kernel that multiplies.
    """

    patched = False
    """Whether ``aks.patch`` made it of a ``torch.nn.Linear``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        static_weights: bool | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.static_weights = static_weights

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features]."""
        if torch.compiler.is_compiling():
            return torch_ops.traced(input, self.weight, self.is_static_compiled(self.weight), self.bias)
        parameters: dict[str, Any] = self._parameters  # looked up at a tenth of the cost of a module's attribute
        try:
            w, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # one is computed (pruning, weight_norm)
            w, bias = self.weight, self.bias
        if torch_ops.is_plain(input, w):
            static = self.is_static(w)
            if static is None:
                return functional.linear(input, w, bias)
            if bias is None:
                return dispatcher.linear(input, w, static_weights=static)
            y = fused_ops.launch_linear(input, w, None, bias, None, None, static)
            return functional.linear(input, w, bias) if y is None else y
        if bias is None:
            return torch_ops.linear(input, w, static_weights=self.static_weights is True and not self.training)
        return functional.linear(input, w, bias)
