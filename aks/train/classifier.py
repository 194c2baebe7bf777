"""An XGBoost classifier whose loss is the expected cost of its choice, not the log-loss of a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from aks.train.examples import Examples, Inputs

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]

GRID: tuple[dict[str, Any], ...] = (
    {"max_depth": 3, "colsample_bynode": 0.5},
    {"max_depth": 5, "colsample_bynode": 0.5},
    {"max_depth": 5, "colsample_bynode": 1.0},
)
_FIXED = {
    "tree_method": "hist",
    "max_bin": 128,
    "eta": 0.2,
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
    examples: Examples,
    settings: Mapping[str, Any],
    num_rounds: int,
    seed: int = 0,
    *,
    watch: Examples | None = None,
    curve: list[float] | None = None,
) -> RegretClassifier:
    """Fit; with ``watch``, append to ``curve`` the mean regret on it of the choice after each round."""
    results: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(
        {**_FIXED, **settings, "num_class": examples.cost.shape[1], "seed": seed},
        _matrix(examples.inputs),
        num_rounds,
        obj=regret_objective(examples.cost, examples.inputs.legal),
        evals=[(_matrix(watch.inputs), "watch")] if watch is not None else [],
        custom_metric=_regret_metric(watch) if watch is not None else None,
        evals_result=results,
        verbose_eval=False,
    )
    if curve is not None and watch is not None:
        curve.extend(results["watch"]["regret"])
    return RegretClassifier(booster, num_rounds)


def _regret_metric(watch: Examples) -> Callable:
    def regret(margins: NDArray, _: xgb.DMatrix) -> tuple[str, float]:
        choice = softmax(margins.reshape(watch.cost.shape), watch.inputs.legal).argmax(axis=1)
        return "regret", float(watch.regret(choice).mean())

    return regret


@dataclass(frozen=True)
class Tuned:
    """Hyper-parameters chosen by cross-validation, and the fold models that saw only their fold's training rows.

    curve: mean regret on the folds' held-out families after each round.
    """

    settings: dict[str, Any]
    num_rounds: int
    curve: tuple[float, ...]
    fold_models: tuple[RegretClassifier, ...]


def tune_classifier(
    examples: Examples, folds: Folds, seed: int = 0, *, grid: Sequence[dict[str, Any]] = GRID, rounds: int = 100
) -> Tuned:
    """Choose settings and number of rounds by the mean regret on the folds' held-out families.

    Early stopping, but on the mean over folds: one number of rounds for all, far less noisy than
    each fold's own, and usable for the final fit, which has no rows left to stop on.
    """
    best: Tuned | None = None
    for settings in grid:
        curves, models = [], []
        for train, test in folds:
            curve: list[float] = []
            models.append(
                fit_classifier(examples.rows(train), settings, rounds, seed, watch=examples.rows(test), curve=curve)
            )
            curves.append(np.array(curve) * len(test))
        mean = np.sum(curves, axis=0) / sum(len(test) for _, test in folds)
        stop = int(mean.argmin()) + 1
        if best is None or mean[stop - 1] < best.curve[best.num_rounds - 1]:
            fold_models = tuple(RegretClassifier(model.booster, stop) for model in models)
            best = Tuned(dict(settings), stop, tuple(mean.tolist()), fold_models)
    if best is None:
        raise ValueError("tune_classifier needs at least one entry in grid")
    return best
