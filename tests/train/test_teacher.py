from __future__ import annotations

from math import gcd

import numpy as np
import pytest

from aks.core.features import evaluate
from aks.train.dataset import undeclared
from aks.train.examples import COST_CAP, make_examples
from aks.train.latency import fit_latency_model
from aks.train.teacher import expected_cost, imagine


@pytest.fixture(scope="module")
def model(training_set):
    return fit_latency_model([training_set])


@pytest.fixture(scope="module")
def imagined(training_set, model):
    return imagine(training_set, model, 400, training_set.devices[0], seed=3)


def test_imagined_problems_lie_around_measured_ones(training_set, imagined):
    axes = imagined.inputs.axes
    low, high = training_set.axes.min(axis=0), training_set.axes.max(axis=0)
    assert (axes >= low).all() and (axes <= high).all()
    measured = {tuple(row) for row in training_set.axes[:, 1:].tolist()}
    same_weights = np.mean([tuple(row) in measured for row in axes[:, 1:].tolist()])
    assert 0.2 < same_weights < 0.5
    assert len(np.unique(axes[:, 0])) > 100
    granules = {gcd(value, 64) for value in training_set.axes[:, 1:].ravel().tolist()}
    inside = (axes[:, 1:] > low[1:]) & (axes[:, 1:] < high[1:])
    assert all(value % min(granules) == 0 for value in axes[:, 1:][inside].tolist())


def test_imagined_features_and_legality_are_those_of_real_problems(training_set, imagined, op):
    device, template = training_set.devices[0], training_set.problems[0]
    for row in range(0, 400, 57):
        values = {
            name: int(column[row]) for name, column in imagined.inputs.columns.items() if name in template.to_row()
        }
        for name, choices in template.CHOICES.items():
            values[name] = choices[values[name]] if isinstance(choices[0], str) else type(choices[0])(values[name])
        problem = op.problem_type.from_row(values)
        assert tuple(imagined.inputs.features[row]) == evaluate(op.features, device.variables() | problem.variables())
        broken = [bool(op.space.broken_rules(config, problem, device)) for config in training_set.configs]
        assert broken == (~imagined.inputs.legal[row]).tolist()
        plain = [bool(op.space.broken_rules(config, undeclared(problem), device)) for config in training_set.configs]
        assert plain == (~imagined.legal_undeclared[row]).tolist()


def test_the_teacher_prices_what_it_saw(training_set, model, imagined):
    examples = make_examples(training_set, range(len(training_set.configs)))
    cost = expected_cost(model, training_set, examples.inputs)
    assert (cost >= 0).all() and (cost <= COST_CAP).all()
    choice = np.where(examples.inputs.legal, cost, np.inf).argmin(axis=1)
    vendor = examples.regret(np.zeros(len(examples), dtype=np.intp)).mean()
    assert examples.regret(choice).mean() < vendor / 4
    illegal = ~examples.inputs.legal
    assert np.array_equal(cost[illegal], np.broadcast_to(cost[:, :1], cost.shape)[illegal])
    assert imagined.cost.shape == imagined.inputs.legal.shape
    assert np.array_equal(imagined.cost, expected_cost(model, training_set, imagined.inputs))
