"""Picks the fastest GPU kernel for the problem at hand, from a model trained on measured latencies.

The public names are loaded when first used: ``import aks`` costs neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aks import graphs, nn
    from aks.core.device import DeviceSpec, current_device, find_device
    from aks.core.errors import AksError
    from aks.integrations.adaptive import adaptive
    from aks.integrations.fused_ops import add_rms_norm, fused_linear, rms_norm
    from aks.integrations.int4_ops import int4_linear
    from aks.integrations.patching import patch, unpatch
    from aks.integrations.preparing import prepare
    from aks.integrations.quantized_ops import fp8_linear, int8_linear, quantize_rows
    from aks.integrations.quantizing import quantize
    from aks.integrations.torch_ops import linear, matmul
    from aks.ops import OPS, find_op
    from aks.runtime.predictor import Predictor
    from aks.runtime.served import reload, write_missed

__all__ = [
    "OPS",
    "AksError",
    "DeviceSpec",
    "Predictor",
    "adaptive",
    "add_rms_norm",
    "current_device",
    "find_device",
    "find_op",
    "fp8_linear",
    "fused_linear",
    "graphs",
    "int4_linear",
    "int8_linear",
    "linear",
    "matmul",
    "nn",
    "patch",
    "prepare",
    "quantize",
    "quantize_rows",
    "reload",
    "rms_norm",
    "unpatch",
    "write_missed",
]

_HOMES = {
    "OPS": "aks.ops",
    "AksError": "aks.core.errors",
    "DeviceSpec": "aks.core.device",
    "Predictor": "aks.runtime.predictor",
    "add_rms_norm": "aks.integrations.fused_ops",
    "adaptive": "aks.integrations.adaptive",
    "current_device": "aks.core.device",
    "find_device": "aks.core.device",
    "find_op": "aks.ops",
    "fp8_linear": "aks.integrations.quantized_ops",
    "fused_linear": "aks.integrations.fused_ops",
    "int4_linear": "aks.integrations.int4_ops",
    "int8_linear": "aks.integrations.quantized_ops",
    "linear": "aks.integrations.torch_ops",
    "matmul": "aks.integrations.torch_ops",
    "patch": "aks.integrations.patching",
    "prepare": "aks.integrations.preparing",
    "quantize": "aks.integrations.quantizing",
    "quantize_rows": "aks.integrations.quantized_ops",
    "reload": "aks.runtime.served",
    "rms_norm": "aks.integrations.fused_ops",
    "unpatch": "aks.integrations.patching",
    "write_missed": "aks.runtime.served",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("aks")
    if name in ("graphs", "nn"):
        return import_module(f"aks.{name}")  # which sets the attribute
    if name not in _HOMES:
        raise AttributeError(f"module 'aks' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
