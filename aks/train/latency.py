"""A model of latency: what every config takes on every problem, measured there or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from aks.core import formula
from aks.core.config import Config
from aks.core.features import Feature, evaluate_columns
from aks.core.measurement import Regime
from aks.ops.op import Op
from aks.train.dataset import TrainingSet

Columns = Mapping[str, NDArray[np.int64]]
"""Variables of P problems and their devices, by name: arrays [P]."""

_NUM_BOOSTERS, _ROUNDS = 2, 400
PARAMETERS: dict[str, Any] = {
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
# A booster that goes on does not seed the generator anew, unless each round does.
_ADAPTING = {"eta": 0.1, "max_depth": 5, "reg_lambda": 20, "seed_per_iteration": True}
_ADAPTING_ROUNDS = 120
_HOPELESS = 8.0
"""A row weighs 1 / (1 + this * (slowdown - 1)): telling the good ones apart matters, the bad ones need not be exact."""
_LEAST_WEIGHT = 0.05
_ROOFLINE_FACTS = frozenset({"dram_gb_s", "sm_count", "clock_mhz", "tflops_16bit"})


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
        predicted = self._log_ratio(features, columns, configs, usable, regime).mean(axis=0)
        return np.exp(predicted.astype(np.float64)) * roofline_us(self.op, columns)[:, None]

    def members_us(
        self, features: NDArray, columns: Columns, configs: Sequence[Config], usable: NDArray[np.bool_], regime: Regime
    ) -> NDArray[np.float64]:
        """[B, P, K]: the same by each booster alone."""
        predicted = self._log_ratio(features, columns, configs, usable, regime)
        return np.exp(predicted.astype(np.float64)) * roofline_us(self.op, columns)[:, None]

    def _log_ratio(
        self, features: NDArray, columns: Columns, configs: Sequence[Config], usable: NDArray[np.bool_], regime: Regime
    ) -> NDArray[np.float32]:
        predicted = np.full((len(self.boosters), *usable.shape), np.inf, dtype=np.float32)
        for index, config in enumerate(configs):
            asked = np.flatnonzero(usable[:, index])
            if len(asked):
                here = {name: values[asked] for name, values in columns.items()}
                matrix = xgb.DMatrix(_rows(self.op, features[asked], here, config, regime), nthread=1)
                predicted[:, asked, index] = [booster.predict(matrix) for booster in self.boosters]
        return predicted


def fit_latency_model(
    training_sets: Sequence[TrainingSet], seed: int = 0, *, num_boosters: int = _NUM_BOOSTERS
) -> LatencyModel:
    """Fit on all timed cells of ``training_sets``, one a regime; deterministic for a seed.

    What a config costs in one regime says much of what it costs in another, so the regime that has
    little data gains by the one that has more.
    """
    rows, target, weight = _all_timed(training_sets)
    matrix = xgb.QuantileDMatrix(rows, target, weight=weight, max_bin=PARAMETERS["max_bin"])
    seeds = range(num_boosters * seed, num_boosters * (seed + 1))
    with ThreadPoolExecutor(_NUM_BOOSTERS) as pool:  # XGBoost lets go of the interpreter
        boosters = pool.map(lambda one: xgb.train({**PARAMETERS, "seed": one}, matrix, _ROUNDS), seeds)
        return LatencyModel(training_sets[0].op, tuple(boosters))


def adapt_latency_model(model: LatencyModel, measured: TrainingSet, seed: int = 0) -> LatencyModel:
    """``model`` as ``measured``, a few problems of a device that it never saw, corrects it.

    Each booster goes on from where it is by a few small steps, on the new cells alone. It learns which
    configs are better than it thought, not how long all of a problem's take: of most problems only
    the promising configs are measured, and if these became slower, the untried ones would look better.
    """
    timed = np.isfinite(measured.latency_us)
    columns = measured.columns
    expected = model.latency_us(measured.features, columns, measured.configs, timed, measured.regime)
    residual = log_ratio(measured.latency_us, expected)
    weight = timed / (1 + _HOPELESS * np.where(timed, measured.latency_us / measured.oracle_us[:, None] - 1, 0.0))
    offset = (weight * residual).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    rows, target, weight = _all_timed([replace(measured, latency_us=measured.latency_us / np.exp(offset))])
    # Not quantised: the trees that are there split between the values of other data.
    matrix = xgb.DMatrix(rows, target, weight=weight, nthread=1)
    adapted = [
        xgb.train({**PARAMETERS, **_ADAPTING, "seed": seed + index}, matrix, _ADAPTING_ROUNDS, xgb_model=booster)
        for index, booster in enumerate(model.boosters)
    ]
    return LatencyModel(model.op, tuple(adapted))


def log_ratio(latency_us: NDArray[np.float64], expected_us: NDArray[np.float64]) -> NDArray[np.float64]:
    """How wrong what was expected is, in nats; 0 where nothing was timed."""
    timed = np.isfinite(latency_us)
    return np.log(np.where(timed, latency_us, 1.0) / np.where(timed, expected_us, 1.0))


def _all_timed(training_sets: Sequence[TrainingSet]) -> tuple[NDArray, NDArray, NDArray]:
    parts = [part for training_set in training_sets for part in _timed(training_set)]
    rows, target, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, target, np.maximum(weight, _LEAST_WEIGHT)


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
    from_dram = moved / (columns["dram_gb_s"] * 1e3)
    into_sms = moved / (columns["sm_count"] * columns["clock_mhz"] * 64.0)
    by_arithmetic = flops / (op.rate * columns["tflops_16bit"] * 1e6)
    return np.maximum.reduce([from_dram, into_sms, by_arithmetic, np.ones(len(moved))])


def variables_read(op: Op) -> frozenset[str]:
    """Names of variables (of problem, config and device) that a model's inputs and the roofline are made of."""
    formulas = [op.bytes_moved, op.flops, *(feature.formula for feature in (*op.features, *op.config_features))]
    return _ROOFLINE_FACTS.union(*map(formula.names, formulas))


def _rows(op: Op, features: NDArray, columns: Columns, config: Config, regime: Regime) -> NDArray[np.float32]:
    """What is known of the problem, what ``config`` makes of it, which config it is, and in which regime."""
    constants = {name: np.int64(value) for name, value in config.variables().items()}
    own = evaluate_columns(op.config_features, {**columns, **constants})
    which = np.full((len(features), 2), (op.space.places[config], list(Regime).index(regime)))
    return np.concatenate([features, own, which], axis=1).astype(np.float32)
