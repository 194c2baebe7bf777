from __future__ import annotations

import numpy as np

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
    asked = other.features, other.columns, other.configs, usable
    predicted = fit_latency_model(half, seed=1).latency_us(*asked)
    timed = np.isfinite(other.latency_us)
    assert np.array_equal(np.isfinite(predicted), usable)
    error = np.abs(np.log(predicted[timed] / other.latency_us[timed]))
    constant = np.abs(np.log(other.latency_us[timed] / np.median(other.latency_us[timed])))
    assert np.median(error) < 0.1 < np.median(constant)
    assert np.array_equal(predicted, fit_latency_model(half, seed=1).latency_us(*asked))
