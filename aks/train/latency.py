"""A model of latency: what every config takes on every problem, measured there or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.features import Feature, evaluate_columns
from aks.core.measurement import Regime
from aks.ops.op import Op
from aks.train.dataset import TrainingSet

Columns = Mapping[str, NDArray[np.int64]]
"""Variables of P problems and their devices, by name: arrays [P]."""

_NUM_BOOSTERS, _ROUNDS = 2, 400
_PARAMETERS = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_bin": 256,
    "eta": 0.1,
    "max_depth": 7,
    "min_child_weight": 3,
    "subsample": 0.8,
    "colsample_bynode": 0.6,
    "nthread": 1,  # threads that wait for one another spin where others work too
}
_HOPELESS = 8.0
"""A row weighs 1 / (1 + this * (slowdown - 1)): telling the good ones apart matters, the bad ones need not be exact."""
_LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class LatencyModel:
    """Regression of log(latency / roofline) over pairs of a problem and a config.

    It learns from every measured config of the space, not from a portfolio alone, and sees what a
    config makes of a problem (``op.config_features``: programs, waves, steps), so that one problem
    teaches it dozens of rows and a new problem is described in the terms that decide its latency.
    Predictions are means over boosters that differ in their seed.
    """

    op: Op
    boosters: tuple[xgb.Booster, ...]

    def latency_us(
        self, features: NDArray, columns: Columns, configs: Sequence[Config], usable: NDArray[np.bool_], regime: Regime
    ) -> NDArray[np.float64]:
        """[P, K] microseconds in a regime; ``inf`` where ``usable`` [P, K] is False."""
        predicted = np.full(usable.shape, np.inf)
        for index, config in enumerate(configs):
            asked = np.flatnonzero(usable[:, index])
            if len(asked):
                here = {name: values[asked] for name, values in columns.items()}
                matrix = xgb.DMatrix(_rows(self.op, features[asked], here, config, regime))
                predicted[asked, index] = np.mean([booster.predict(matrix) for booster in self.boosters], axis=0)
        return np.exp(predicted) * roofline_us(self.op, columns)[:, None]


def fit_latency_model(training_sets: Sequence[TrainingSet], seed: int = 0) -> LatencyModel:
    """Fit on all timed cells of ``training_sets``, one a regime; deterministic for a seed.

    What a config costs in one regime says much of what it costs in another, so the regime that has
    little data gains by the one that has more.
    """
    op = training_sets[0].op
    parts = [part for training_set in training_sets for part in _timed(training_set)]
    rows, target, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    matrix = xgb.QuantileDMatrix(rows, target, weight=np.maximum(weight, _LEAST_WEIGHT), max_bin=_PARAMETERS["max_bin"])
    seeds = range(_NUM_BOOSTERS * seed, _NUM_BOOSTERS * (seed + 1))
    with ThreadPoolExecutor(_NUM_BOOSTERS) as pool:  # XGBoost lets go of the interpreter
        boosters = pool.map(lambda one: xgb.train({**_PARAMETERS, "seed": one}, matrix, _ROUNDS), seeds)
        return LatencyModel(op, tuple(boosters))


def _timed(training_set: TrainingSet) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Rows, targets and weights of the timed cells, config by config."""
    op, columns = training_set.op, training_set.columns
    roofline, oracle_us = roofline_us(op, columns), training_set.oracle_us
    for index, config in enumerate(training_set.configs):
        timed = np.flatnonzero(np.isfinite(training_set.latency_us[:, index]))
        if not len(timed):
            continue
        latency_us = training_set.latency_us[timed, index]
        here = {name: values[timed] for name, values in columns.items()}
        rows = _rows(op, training_set.features[timed], here, config, training_set.regime)
        excess = latency_us / oracle_us[timed] - 1
        yield rows, np.log(latency_us / roofline[timed]), 1 / (1 + _HOPELESS * excess)


def roofline_us(op: Op, columns: Columns) -> NDArray[np.float64]:
    """[P]: the longest of moving all bytes, moving them into the SMs, the arithmetic, and 1 microsecond.

    An SM takes 64 bytes a clock from L2 (NVIDIA, Hopper Tuning Guide, and measured: 16 SMs of an H200 do not
    reach half of its bandwidth).
    """
    table = (Feature("bytes", op.bytes_moved), Feature("flops", op.flops))
    moved, flops = evaluate_columns(table, columns).T.astype(np.float64)
    into_sms = columns["sm_count"] * columns["clock_mhz"] * 64.0
    return np.maximum.reduce(
        [
            moved / (columns["dram_gb_s"] * 1e3),
            moved / into_sms,
            flops / (columns["tflops_16bit"] * 1e6),
            1.0 + 0 * moved,
        ]
    )


def _rows(op: Op, features: NDArray, columns: Columns, config: Config, regime: Regime) -> NDArray[np.float32]:
    """What is known of the problem, what ``config`` makes of it, which config it is, and in which regime."""
    constants = {name: np.int64(value) for name, value in config.variables().items()}
    own = evaluate_columns(op.config_features, {**columns, **constants})
    which = np.full((len(features), 2), (op.space.places[config], list(Regime).index(regime)))
    return np.concatenate([features, own, which], axis=1).astype(np.float32)
