"""An XGBoost classifier whose loss is the expected cost of its choice, not the log-loss of a label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from aks.train.examples import Inputs
from aks.train.growth import Rows

PARAMETERS: dict[str, Any] = {
    "tree_method": "hist",
    "max_bin": 128,
    "max_depth": 5,
    "colsample_bynode": 0.5,
    "eta": 0.3,
    "reg_lambda": 0.1,
    # Hessians are costs (nats of slowdown) times probabilities: a few hundredths a row.
    "min_child_weight": 0.01,
    # Start from the uniform choice; XGBoost would otherwise estimate an offset from labels there are none of.
    "base_score": 0.0,
    "disable_default_eval_metric": 1,
    # Too little work to share; and the same sums in the same order wherever it runs.
    "nthread": 1,
}
_MIN_HESSIAN = 1e-6


def softmax(margins: NDArray, legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probabilities [P, K] over the legal classes; an illegal class has 0."""
    masked = np.where(legal, margins.astype(np.float64), -np.inf)
    powers = np.exp(masked - masked.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def regret_objective(cost: NDArray[np.float64], legal: NDArray[np.bool_]) -> Callable:
    """The objective L = sum_c p_c cost_c, p the softmax of the margins over the legal classes.

    cost [P, K], legal [P, K]. The gradient in margin j is p_j (cost_j - L). The second derivative,
    p_j (1 - 2 p_j) (cost_j - L), changes sign, so Newton's step would climb; |1 - 2 p_j| <= 1 makes
    p_j |cost_j - L| a bound on its size, and with that a step is never longer than the learning rate.
    """

    def objective(margins: NDArray, _: xgb.DMatrix) -> tuple[NDArray, NDArray]:
        probability = softmax(margins.reshape(cost.shape), legal)
        excess = cost - (probability * cost).sum(axis=1, keepdims=True)
        gradient = probability * excess
        return gradient, np.maximum(np.abs(gradient), _MIN_HESSIAN)

    return objective


@dataclass(frozen=True)
class RegretClassifier:
    """Chooses the most probable of the legal classes."""

    booster: xgb.Booster
    num_rounds: int

    def probabilities(self, inputs: Inputs) -> NDArray[np.float64]:
        """[P, K], 0 for illegal classes."""
        margins = self.booster.predict(
            _matrix(inputs), output_margin=True, iteration_range=(0, self.num_rounds), strict_shape=True
        )
        return softmax(margins.reshape(inputs.legal.shape), inputs.legal)

    def __call__(self, inputs: Inputs) -> NDArray[np.intp]:
        """[P] class indices."""
        return self.probabilities(inputs).argmax(axis=1)


def _matrix(inputs: Inputs) -> xgb.DMatrix:
    return xgb.DMatrix(inputs.features.astype(np.float32))


def fit_classifier(
    rows: Rows, legal: NDArray[np.bool_], num_rounds: int, seed: int = 0, **changed: Any
) -> RegretClassifier:
    """Fit to the costs [N, K] of measured and imagined rows; ``changed`` replaces XGBoost's parameters."""
    booster = xgb.train(
        {**PARAMETERS, **changed, "num_class": rows.cost.shape[1], "seed": seed},
        xgb.DMatrix(rows.features),
        num_rounds,
        obj=regret_objective(rows.cost * rows.weight[:, None], legal),
    )
    return RegretClassifier(booster, num_rounds)
