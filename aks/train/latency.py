"""A model of latency: what every config takes on every problem, measured there or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.features import Feature, evaluate_columns
from aks.ops.op import Op
from aks.train.dataset import TrainingSet

Columns = Mapping[str, NDArray[np.int64]]
"""Variables of P problems and their devices, by name: arrays [P]."""

_ROUNDS = 200
_PARAMETERS = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_bin": 128,
    "eta": 0.15,
    "max_depth": 7,
    "min_child_weight": 3,
    "subsample": 0.8,
    "colsample_bynode": 0.6,
    "nthread": 1,  # threads that wait for one another spin where others work too
}
_HOPELESS = 6.0
"""A row weighs 1 / (1 + this * (slowdown - 1)): telling the good ones apart matters, the bad ones need not be exact."""
_LEAST_WEIGHT = 0.1


@dataclass(frozen=True)
class LatencyModel:
    """Regression of log(latency / roofline) over pairs of a problem and a config.

    It learns from every measured config of the space, not from the portfolio alone, and sees what a
    config makes of a problem (``op.config_features``: programs, waves, steps), so that one problem
    teaches it dozens of rows and a new problem is described in the terms that decide its latency.
    """

    op: Op
    booster: xgb.Booster

    def latency_us(self, features: NDArray, columns: Columns, configs: Sequence[Config]) -> NDArray[np.float64]:
        """[P, K] microseconds; legality is the caller's business."""
        predicted = np.empty((len(features), len(configs)))
        for index, config in enumerate(configs):
            rows = _rows(self.op, features, columns, config)
            predicted[:, index] = self.booster.predict(xgb.DMatrix(rows))
        return np.exp(predicted) * roofline_us(self.op, columns)[:, None]


def fit_latency_model(training_set: TrainingSet, seed: int = 0) -> LatencyModel:
    """Fit on all timed cells of ``training_set``; deterministic for a seed."""
    op, columns = training_set.op, training_set.columns
    roofline, oracle_us = roofline_us(op, columns), training_set.oracle_us
    parts = []
    for index, config in enumerate(training_set.configs):
        timed = np.flatnonzero(np.isfinite(training_set.latency_us[:, index]))
        if not len(timed):
            continue
        latency_us = training_set.latency_us[timed, index]
        here = {name: values[timed] for name, values in columns.items()}
        rows = _rows(op, training_set.features[timed], here, config)
        excess = latency_us / oracle_us[timed] - 1
        parts.append((rows, np.log(latency_us / roofline[timed]), 1 / (1 + _HOPELESS * excess)))
    rows, target, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    matrix = xgb.QuantileDMatrix(rows, target, weight=np.maximum(weight, _LEAST_WEIGHT), max_bin=_PARAMETERS["max_bin"])
    return LatencyModel(op, xgb.train({**_PARAMETERS, "seed": seed}, matrix, _ROUNDS))


def roofline_us(op: Op, columns: Columns) -> NDArray[np.float64]:
    """[P]: max(bytes / bandwidth, operations / compute rate), and at least 1 microsecond, as ``Op.limit_us``."""
    table = (Feature("bytes", op.bytes_moved), Feature("flops", op.flops))
    moved, flops = evaluate_columns(table, columns).T.astype(np.float64)
    return np.maximum.reduce(
        [moved / (columns["dram_gb_s"] * 1e3), flops / (columns["tflops_16bit"] * 1e6), np.ones(len(moved))]
    )


def _rows(op: Op, features: NDArray, columns: Columns, config: Config) -> NDArray[np.float32]:
    constants = {name: np.int64(value) for name, value in config.variables().items()}
    own = evaluate_columns(op.config_features, {**columns, **constants})
    return np.concatenate([features, own], axis=1).astype(np.float32)
