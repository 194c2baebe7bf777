from __future__ import annotations

from dataclasses import replace

import numpy as np

from aks.core.measurement import Regime
from aks.train.dataset import TrainingSet
from aks.train.latency import fit_latency_model, roofline_us


def test_roofline_is_the_ops(training_set: TrainingSet) -> None:
    op, columns = training_set.op, training_set.columns
    limits = [op.limit_us(*pair) for pair in zip(training_set.problems, training_set.devices, strict=True)]
    assert np.allclose(roofline_us(op, columns), np.maximum(limits, 1.0))


def test_learns_latencies_and_is_the_same_for_a_seed(training_set: TrainingSet) -> None:
    half = training_set.subset(np.arange(0, len(training_set), 2))
    other = training_set.subset(np.arange(1, len(training_set), 2))
    usable = other.legal
    asked = other.features, other.columns, other.configs, usable, Regime.COLD
    predicted = fit_latency_model([half], seed=1).latency_us(*asked)
    timed = np.isfinite(other.latency_us)
    assert np.array_equal(np.isfinite(predicted), usable)
    error = np.abs(np.log(predicted[timed] / other.latency_us[timed]))
    constant = np.abs(np.log(other.latency_us[timed] / np.median(other.latency_us[timed])))
    assert np.median(error) < 0.1 < np.median(constant)
    assert np.array_equal(predicted, fit_latency_model([half], seed=1).latency_us(*asked))


def test_a_regime_with_little_data_gains_by_one_with_more(training_set: TrainingSet) -> None:
    # In the chain every config takes as long as alone, and one microsecond more.
    chain = replace(training_set, regime=Regime.CHAIN, latency_us=training_set.latency_us + 1.0)
    few = chain.subset(np.arange(0, len(chain), 16))
    asked = chain.features, chain.columns, chain.configs, chain.legal, Regime.CHAIN
    timed = np.isfinite(chain.latency_us)

    def error(training_sets) -> float:
        predicted = fit_latency_model(training_sets).latency_us(*asked)
        return float(np.abs(np.log(predicted[timed] / chain.latency_us[timed])).mean())

    assert error([few, training_set]) < 0.7 * error([few])
