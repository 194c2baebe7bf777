from __future__ import annotations

import numpy as np
import pytest

from aks.train.dataset import from_frame
from aks.train.examples import COST_CAP, choice_cost, make_examples


def test_cost_is_the_capped_logarithm_of_the_slowdown():
    latency_us = np.array([[10.0, 12.0, 20.0, np.inf, np.nan, 1e6]])
    cost = choice_cost(latency_us, np.array([10.0]))[0]
    assert cost == pytest.approx([0.0, np.log(1.2), COST_CAP, COST_CAP, COST_CAP, COST_CAP])


def test_an_illegal_config_costs_what_the_vendor_does(training_set):
    examples = make_examples(training_set, range(len(training_set.configs)))
    illegal = ~examples.inputs.legal
    assert illegal.any()
    assert np.array_equal(examples.cost[illegal], np.broadcast_to(examples.cost[:, :1], illegal.shape)[illegal])


def test_without_promises_the_oracle_has_none_either(training_set):
    columns = range(len(training_set.configs))
    declared, plain = (make_examples(training_set, columns, declared=flag) for flag in (True, False))
    assert (plain.inputs.legal <= declared.inputs.legal).all()
    assert (plain.oracle_us >= declared.oracle_us).all() and (plain.oracle_us > declared.oracle_us).any()
    best = np.where(plain.inputs.legal & np.isfinite(plain.latency_us), plain.latency_us, np.inf).min(axis=1)
    assert np.array_equal(best, plain.oracle_us)


def test_a_choice_that_was_never_measured_counts_as_the_slowest(frame, op):
    training_set = from_frame(frame, op, also=op.space.configs)
    examples = make_examples(training_set, range(len(training_set.configs)))
    row, column = np.argwhere(np.isnan(examples.latency_us))[0]
    choice = np.zeros(len(examples), dtype=np.intp)
    choice[row] = column
    timed = examples.latency_us[row][np.isfinite(examples.latency_us[row])]
    assert examples.chosen_us(choice)[row] == timed.max()
