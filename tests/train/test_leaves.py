from __future__ import annotations

import numpy as np
import pytest

from aks.train.examples import Examples, Inputs, choice_cost
from aks.train.growth import Rows
from aks.train.leaves import LeafRule, fill_leaf


def leaf_of(latency_us, *, legal=None, demands=None, rule=None, configs=()):
    latency_us = np.asarray(latency_us, dtype=np.float64)
    problems = len(latency_us)
    legal = np.ones(latency_us.shape, bool) if legal is None else np.asarray(legal, bool)
    oracle_us = np.nanmin(np.where(legal, latency_us, np.inf), axis=1)
    cost = choice_cost(latency_us, oracle_us)
    cost = np.where(legal, cost, cost[:, :1])
    nothing = np.zeros((problems, 1), dtype=np.int64)
    examples = Examples(configs, Inputs(nothing, nothing, legal, {}), latency_us, oracle_us, latency_us[:, 0], cost)
    rows = Rows(nothing.astype(np.float32), cost, np.ones(problems), np.ones(problems, bool))
    demands = legal if demands is None else np.asarray(demands, bool)
    return fill_leaf(rows, np.arange(problems), examples, demands, rule or LeafRule())


def test_ranks_by_cost_and_ends_with_the_vendor():
    leaf = leaf_of([[10, 8, 5, 20], [10, 8, 5, 20]])
    assert leaf.ranking == (2, 1, 0)
    assert leaf.expected_slowdown == (1.0, 1.6, 2.0)
    assert (leaf.count, leaf.abstain) == (2, False)


def test_the_vendor_wins_a_tie_and_the_lower_class_after_it():
    assert leaf_of([[10, 10]] * 3).ranking == (0,)
    assert leaf_of([[10, 5, 5]] * 3).ranking == (1, 2, 0)


def test_a_gain_within_the_noise_does_not_displace_the_vendor():
    assert leaf_of([[10, 9.95]] * 4) == leaf_of([[10, 9.95]] * 4, rule=LeafRule(noise=0.01))
    assert leaf_of([[10, 9.95]] * 4).abstain
    assert leaf_of([[10, 9.95]] * 4).ranking == (0,)
    assert leaf_of([[10, 9.95]] * 4, rule=LeafRule(noise=0.001)).ranking == (1, 0)


def test_abstains_where_too_many_problems_would_be_harmed():
    latency_us = [[10, 5, 30]] * 7 + [[10, 10.5, 30]] * 3
    assert leaf_of(latency_us, rule=LeafRule(max_harmed=0.2)).abstain
    assert not leaf_of(latency_us, rule=LeafRule(max_harmed=0.3)).abstain
    assert not leaf_of([[10, 5, 30]] * 7 + [[10, 10.1, 30]] * 3).abstain  # within 2 % is no harm


def test_names_the_successor_that_a_caller_without_promises_needs():
    latency_us = [[10, 5, 6, 7, 8, 9]] * 3
    everything = [True] * 6
    plain = [True, False, False, False, True, True]
    assert leaf_of(latency_us, demands=[everything, plain]).ranking == (1, 2, 4, 0)
    assert leaf_of(latency_us, demands=[everything]).ranking == (1, 2, 0)


def test_a_class_that_no_problem_ran_is_not_named():
    latency_us = np.array([[10.0, 5.0, np.nan]] * 3)
    assert leaf_of(latency_us).ranking == (1, 0)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_leaf_without_measured_problems_answers_the_vendor(classes):
    leaf = leaf_of(np.empty((0, classes)))
    assert (leaf.ranking, leaf.count) == ((0,), 0)


@pytest.mark.parametrize(("gain", "ranking"), [(0.005, (0,)), (0.05, (1, 0))])
def test_without_measured_problems_the_teacher_decides(gain, ranking):
    nothing = np.zeros((0, 2))
    features = np.zeros((3, 1), dtype=np.int64)
    inputs = Inputs(features[:0], features[:0], nothing.astype(bool), {})
    examples = Examples((), inputs, nothing, nothing[:, 0], nothing[:, 0], nothing)
    cost = np.array([[gain, 0.0]] * 3)
    rows = Rows(features.astype(np.float32), cost, np.ones(3), np.zeros(3, bool))
    demands = np.ones((1, 2), bool)
    leaf = fill_leaf(rows, np.arange(3), examples, demands, LeafRule())
    assert (leaf.ranking, leaf.count, leaf.abstain) == (ranking, 0, len(ranking) == 1)
    assert leaf.expected_slowdown == (None,) * len(ranking)
