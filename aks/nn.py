"""Modules that take the place of those of ``torch.nn``."""

from aks.integrations.modules import Linear
from aks.integrations.quantized import Fp8Linear, Int8Linear

__all__ = ["Fp8Linear", "Int8Linear", "Linear"]
