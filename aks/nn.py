"""Modules that take the place of those of ``torch.nn``."""

from aks.integrations.int4 import Int4Linear
from aks.integrations.modules import Linear
from aks.integrations.quantized import Fp8Linear, Int8Linear

__all__ = ["Fp8Linear", "Int4Linear", "Int8Linear", "Linear"]
