from __future__ import annotations

from math import gcd

import numpy as np
import pytest

from aks.core.features import evaluate
from aks.train.classifier import fit_classifier
from aks.train.dataset import undeclared
from aks.train.examples import CostRule, make_examples
from aks.train.latency import fit_latency_model
from aks.train.portfolio import select_portfolio
from aks.train.teacher import Teacher, imagine


@pytest.fixture(scope="module")
def examples(training_set):
    return make_examples(training_set, select_portfolio(training_set, 5).columns)


@pytest.fixture(scope="module")
def imagined(training_set, examples):
    return imagine(training_set, examples.configs, 400, seed=3)


def test_imagined_problems_lie_around_measured_ones(training_set, imagined):
    axes, source = imagined.inputs.axes, training_set.axes[imagined.source]
    assert (axes >= training_set.axes.min(axis=0)).all() and (axes <= training_set.axes.max(axis=0)).all()
    same_weights = (axes[:, 1:] == source[:, 1:]).all(axis=1)
    assert 0.2 < same_weights.mean() < 0.5
    assert len(np.unique(axes[:, 0])) > 100
    inside = (axes[:, 1:] > training_set.axes.min(axis=0)[1:]) & (axes[:, 1:] < training_set.axes.max(axis=0)[1:])
    for value, original, kept in zip(axes[:, 1:].ravel(), source[:, 1:].ravel(), inside.ravel(), strict=True):
        assert not kept or value % gcd(int(original), 64) == 0


def test_imagined_features_and_legality_are_those_of_real_problems(training_set, examples, imagined, op):
    device = training_set.devices[0]
    for row in range(0, 400, 57):
        values = dict(zip(op.problem_type.AXES, imagined.inputs.axes[row].tolist(), strict=True))
        problem = op.problem_type(**{**training_set.problems[imagined.source[row]].to_row(), **values})
        assert tuple(imagined.inputs.features[row]) == evaluate(op.features, device.variables() | problem.variables())
        broken = [bool(op.space.broken_rules(config, problem, device)) for config in examples.configs]
        assert broken == (~imagined.inputs.legal[row]).tolist()
        plain = [bool(op.space.broken_rules(config, undeclared(problem), device)) for config in examples.configs]
        assert plain == (~imagined.legal_undeclared[row]).tolist()


def test_what_was_drawn_around_held_out_rows_is_left_out(imagined):
    kept = imagined.drawn_around(np.arange(0, 200))
    assert len(kept.source) and kept.source.max() < 200
    assert len(kept.source) == len(kept.inputs) == len(kept.legal_undeclared) == (imagined.source < 200).sum()


def test_the_teacher_prices_what_it_saw(training_set, examples):
    classifier = fit_classifier(examples, {"max_depth": 3}, 20)
    teacher = Teacher(classifier, fit_latency_model(training_set), examples.configs, CostRule())
    cost = teacher.cost(examples.inputs)
    assert (cost >= 0).all()
    choice = np.where(examples.inputs.legal, cost, np.inf).argmin(axis=1)
    vendor = examples.regret(np.zeros(len(examples), dtype=np.intp)).mean()
    assert examples.regret(choice).mean() < vendor / 4
    illegal = ~examples.inputs.legal
    assert np.array_equal(cost[illegal], np.broadcast_to(cost[:, :1], cost.shape)[illegal])
