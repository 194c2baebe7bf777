"""What serves: the predictor, which needs nothing, and the dispatcher, which needs torch."""

from aks.runtime.predictor import Predictor

__all__ = ["Predictor"]
