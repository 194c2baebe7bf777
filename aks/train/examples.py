"""What a chooser learns from and is asked: problems against the K configs of a portfolio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aks.core.config import Config
from aks.train.dataset import TrainingSet

COST_CAP = 0.5
"""Nats: slowdowns beyond 1.65x are all the same disaster. Also the cost of a config that failed, or was not tried."""


def choice_cost(latency_us: NDArray, oracle_us: NDArray) -> NDArray[np.float64]:
    """[P, K]: what is minimised, log(latency / oracle latency) up to ``COST_CAP``.

    latency_us [P, K] (``inf``: failed, ``nan``: not tried), oracle_us [P].
    """
    with np.errstate(invalid="ignore"):
        slowdown = np.log(latency_us / oracle_us[:, None])
    return np.where(np.isfinite(slowdown), np.minimum(slowdown, COST_CAP), COST_CAP)


@dataclass(frozen=True)
class Inputs:
    """What may be known of P problems when a config is chosen: nothing measured.

    axes [P, A] int64, features [P, F] int64, legal [P, K] bool. Class 0, the vendor's call, is always legal.
    columns: what formulas may read of problems and devices, arrays [P] by name.
    """

    axes: NDArray[np.int64]
    features: NDArray[np.int64]
    legal: NDArray[np.bool_]
    columns: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, index: NDArray) -> Inputs:
        """The problems at ``index``."""
        columns = {name: values[index] for name, values in self.columns.items()}
        return Inputs(self.axes[index], self.features[index], self.legal[index], columns)


@dataclass(frozen=True)
class Examples:
    """Measured problems over K configs of a ``TrainingSet``, the vendor's first; rows in the set's order.

    latency_us [P, K] as in the set. cost [P, K]: ``choice_cost``; where a config is illegal, the
    vendor's, which is what runs when nothing else may.
    """

    configs: tuple[Config, ...]
    inputs: Inputs
    latency_us: NDArray[np.float64]
    oracle_us: NDArray[np.float64]
    baseline_us: NDArray[np.float64]
    cost: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: NDArray) -> Examples:
        """The problems at ``index``."""
        return Examples(
            self.configs,
            self.inputs.rows(index),
            self.latency_us[index],
            self.oracle_us[index],
            self.baseline_us[index],
            self.cost[index],
        )

    def chosen_us(self, choice: NDArray[np.intp]) -> NDArray[np.float64]:
        """[P]: latency of the chosen classes; one that has none counts as the slowest class that has."""
        latency_us = self.latency_us[np.arange(len(choice)), choice]
        slowest = np.max(np.where(np.isfinite(self.latency_us), self.latency_us, 0.0), axis=1)
        return np.where(np.isfinite(latency_us), latency_us, slowest)

    def regret(self, choice: NDArray[np.intp]) -> NDArray[np.float64]:
        """[P]: chosen latency / oracle latency - 1."""
        return self.chosen_us(choice) / self.oracle_us - 1


def make_inputs(training_set: TrainingSet, columns: Sequence[int], *, declared: bool = True) -> Inputs:
    """What a chooser over the configs at ``columns`` is asked for the problems of ``training_set``.

    declared=False: as asked by a caller who promises nothing (no static weights).
    """
    legal = training_set.legal if declared else training_set.legal_undeclared
    return Inputs(training_set.axes, training_set.features, legal[:, list(columns)], training_set.columns)


def make_examples(training_set: TrainingSet, columns: Sequence[int], *, declared: bool = True) -> Examples:
    """Examples over the configs at ``columns``; column 0, the vendor's, must lead.

    declared=False: as asked by a caller who promises nothing, the oracle too.
    """
    inputs = make_inputs(training_set, columns, declared=declared)
    if not declared:
        training_set = replace(
            training_set, latency_us=np.where(training_set.legal_undeclared, training_set.latency_us, np.inf)
        )
    latency_us = training_set.latency_us[:, list(columns)]
    oracle_us, baseline_us = training_set.oracle_us, training_set.baseline_us
    cost = choice_cost(latency_us, oracle_us)
    configs = tuple(training_set.configs[column] for column in columns)
    cost = np.where(inputs.legal, cost, cost[:, :1])
    return Examples(configs, inputs, latency_us, oracle_us, baseline_us, cost)
