from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from aks.train.examples import Inputs, choice_cost
from aks.train.portfolio import select_portfolio
from aks.train.teacher import Imagined


def tiny(training_set, latency_us, legal=None, trusted=None):
    """``training_set`` cut down to a made-up matrix."""
    problems, configs = latency_us.shape
    part = training_set.subset(range(problems))
    legal = np.ones(latency_us.shape, bool) if legal is None else legal
    return replace(
        part,
        configs=part.configs[:configs],
        latency_us=np.where(legal, latency_us, np.inf),
        legal=legal,
        legal_undeclared=legal,
        trusted=np.ones(configs, bool) if trusted is None else trusted,
    )


@pytest.mark.parametrize("seed", range(6))
def test_as_good_as_brute_force_on_a_tiny_case(training_set, seed):
    rng = np.random.default_rng(seed)
    data = tiny(training_set, np.exp(rng.normal(size=(30, 8)) * 0.1) * 10)
    found = select_portfolio(data, 4, undeclared_weight=0.0)
    loss = choice_cost(data.latency_us, data.oracle_us)
    best = min(loss[:, [0, *rest]].min(axis=1).mean() for rest in combinations(range(1, 8), 3))
    # Swaps reach a local optimum; on cases of this size that is the global one or next to it.
    assert loss[:, list(found.columns)].min(axis=1).mean() <= best * 1.03 + 1e-12


def test_the_vendor_leads_and_the_curve_falls_to_the_oracle(training_set):
    found = select_portfolio(training_set, 16)
    assert found.columns[0] == 0 and len(set(found.columns)) == len(found.columns) <= 16
    assert np.all(np.diff(found.curve) <= 1e-12)
    vendor_regret = (training_set.baseline_us / training_set.oracle_us).mean() - 1
    assert found.curve[0] == pytest.approx(vendor_regret)
    assert found.curve[-1] < vendor_regret / 5


def test_an_untrusted_config_is_never_chosen(training_set):
    favourite = select_portfolio(training_set, 2).columns[1]
    trusted = training_set.trusted.copy()
    trusted[favourite] = False
    assert favourite not in select_portfolio(replace(training_set, trusted=trusted), 16).columns


def test_an_illegal_or_failed_config_covers_nothing(training_set):
    latency_us = np.full((4, 3), 10.0)
    latency_us[:, 1] = 5.0
    latency_us[:, 2] = 8.0
    legal = np.ones((4, 3), bool)
    assert select_portfolio(tiny(training_set, latency_us), 2).columns == (0, 1)
    legal[:, 1] = False
    assert select_portfolio(tiny(training_set, latency_us, legal), 2).columns == (0, 2)
    latency_us[:, 1] = np.nan
    assert select_portfolio(tiny(training_set, latency_us), 2).columns == (0, 2)


def test_callers_who_promise_nothing_are_covered_too(training_set):
    latency_us = np.array([[10.0, 5.0, 6.0, 10.0]] * 4)
    data = tiny(training_set, latency_us)
    undeclared = data.legal.copy()
    undeclared[:, 1] = False
    data = replace(data, legal_undeclared=undeclared)
    assert set(select_portfolio(data, 3, undeclared_weight=0.25).columns) == {0, 1, 2}
    assert select_portfolio(data, 3, undeclared_weight=0.0).columns == (0, 1)


def test_imagined_problems_speak_for_configs_that_measured_ones_do_not_want(training_set):
    data = tiny(training_set, np.array([[10.0, 5.0, 6.0]] * 4))
    legal = np.ones((5, 3), bool)
    inputs = Inputs(np.ones((5, 3), np.int64), np.ones((5, 1), np.int64), legal, {})
    imagined = Imagined(inputs, legal, np.array([[0.4, 0.3, 0.0]] * 5))
    assert select_portfolio(data, 3).columns == (0, 1)
    assert set(select_portfolio(data, 3, imagined=imagined).columns) == {0, 1, 2}
    assert select_portfolio(data, 2, imagined=imagined, imagined_weight=0.5).columns == (0, 1)
    assert select_portfolio(data, 2, imagined=imagined, imagined_weight=5.0).columns == (0, 2)
    nothing = replace(imagined, inputs=replace(inputs, legal=np.array([[True, True, False]] * 5)))
    assert select_portfolio(data, 3, imagined=nothing).columns == (0, 1)
