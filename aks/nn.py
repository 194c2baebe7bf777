"""Modules that take the place of those of ``torch.nn``."""

from aks.integrations.modules import Linear

__all__ = ["Linear"]
