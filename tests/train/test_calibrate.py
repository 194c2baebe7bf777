"""Calibration: what was measured is kept, the rest is expected, and the picks are where it matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from aks.core.device import find_device
from aks.train.calibrate import adapt, calibrate, expected, on_device
from aks.train.dataset import from_frame
from aks.train.latency import fit_latency_model
from aks.train.picks import Seconds, contenders, expected_regret, kinds, member_latencies, pick, similarity
from aks.train.prior import make_prior
from tests.synthetic import synthetic_records
from tests.train.conftest import OPTIONS

AWAY = find_device("h200-32sm")


@pytest.fixture(scope="module")
def prior(training_set):
    return make_prior(training_set, fit_latency_model([training_set], num_boosters=3))


@pytest.fixture(scope="module")
def away(op):
    """Everything there is to measure on another device."""
    records = synthetic_records(1, device=AWAY.name, configs=24, op=op)
    return from_frame(pd.DataFrame([record.to_row() for record in records]), op)


def regret(model, data):
    usable = np.isfinite(data.latency_us)
    choice = model.latency_us(data.features, data.columns, data.configs, usable, data.regime).argmin(axis=1)
    return float((data.latency_us[np.arange(len(data)), choice] / data.oracle_us - 1).mean())


def test_a_few_measurements_adapt_the_model_to_what_was_not_measured(prior, away):
    order = np.random.default_rng(0).permutation(len(away))
    adapted = adapt(prior, away.subset(order[:40]))
    rest = away.subset(order[40:])
    assert regret(adapted, rest) < 0.8 * regret(prior.model, rest)
    assert adapt(prior, None) is prior.model
    asked = rest.features, rest.columns, rest.configs, np.isfinite(rest.latency_us), rest.regime
    again = adapt(prior, away.subset(order[:40]))
    np.testing.assert_array_equal(again.latency_us(*asked), adapted.latency_us(*asked))


def test_a_device_that_is_slower_throughout_changes_no_choice(prior, training_set):
    slower = replace(training_set, latency_us=3 * training_set.latency_us)
    few = slower.subset(range(0, len(slower), 20))
    asked = training_set.features, training_set.columns, training_set.configs, training_set.legal, training_set.regime
    before, after = prior.model.latency_us(*asked), adapt(prior, few).latency_us(*asked)
    legal = training_set.legal
    assert np.abs(np.log(after[legal] / before[legal])).mean() < 0.05


def test_measured_cells_stay_and_the_others_are_expected(prior, away):
    column = 2
    latency_us = away.latency_us.copy()
    latency_us[:, column] = np.inf  # it failed wherever it was tried
    latency_us[0, 3:] = np.where(away.legal[0, 3:], np.nan, np.inf)
    measured = replace(away, latency_us=latency_us).subset([0, 1, 2])
    here = on_device(prior, AWAY, prior.problems, prior.families, measured)
    assert here.problems == prior.problems and set(here.devices) == {AWAY}
    failing = here.configs.index(away.configs[column])
    assert np.isinf(here.latency_us[:, failing]).all()
    rows = [here.problems.index(problem) for problem in measured.problems]
    columns = [here.configs.index(config) for config in measured.configs]
    np.testing.assert_array_equal(here.latency_us[np.ix_(rows, columns)], measured.latency_us)
    filled = expected(here, prior.model)
    assert not np.isnan(filled.latency_us).any()
    tried = ~np.isnan(here.latency_us)
    np.testing.assert_array_equal(filled.latency_us[tried], here.latency_us[tried])
    asked = here.features, here.columns, here.configs, here.legal, here.regime
    timed, untried = np.isfinite(here.latency_us[rows[0]]), np.isnan(here.latency_us[rows[0]])
    assert untried.any()
    residual = np.log(filled.latency_us[rows[0], timed | untried])
    residual -= np.log(prior.model.latency_us(*asked)[rows[0], timed | untried])
    measured_part = timed[timed | untried]
    np.testing.assert_allclose(residual[~measured_part], residual[measured_part].mean())


def test_a_selector_for_the_device_with_and_without_measurements(prior, away):
    training, fitted = calibrate(prior, AWAY, None, OPTIONS)
    assert fitted.device == AWAY and len(training) == len(prior.problems)
    training, fitted = calibrate(prior, AWAY, away.subset([0, 1]), OPTIONS)
    assert len(training) == len(prior.problems)
    assert (training.latency_us[training.problems.index(away.problems[0]), 0]) == away.latency_us[0, 0]


def test_members_that_agree_expect_no_regret():
    agreed = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    split = np.array([[[1.0, 1.5]], [[1.2, 1.0]]])
    assert expected_regret(agreed) == pytest.approx([0.0])
    assert expected_regret(split) == pytest.approx([0.1])
    assert contenders(np.array([[[2.0, 1.0, 1.1, 1.3]]])).tolist() == [[True, True, True, False]]
    assert contenders(np.array([[[2.0, 1.0, 1.1, 1.3]], [[2.0, 1.2, 1.3, 1.3]]])).tolist() == [[True] * 4]


def test_picks_cover_what_is_at_stake_and_nothing_twice(prior, away):
    measured = away.subset(range(0, len(away), 3))
    candidates = on_device(prior, AWAY, away.problems, away.families, measured)
    picks = pick(prior.model, candidates, 3.0)
    problems = [one.problem for one in picks]
    assert 3 < len(set(problems)) == len(problems) < len(away) - len(measured)
    assert set(problems).isdisjoint(measured.problems)
    assert all(one.configs[0] == prior.op.vendor and len(one.configs) < 20 for one in picks)
    stake = expected_regret(member_latencies(prior.model, candidates))
    rows = [candidates.problems.index(problem) for problem in problems]
    assert stake[rows].mean() > 1.5 * stake.mean()
    near = similarity(candidates, kinds(candidates))[np.ix_(rows[:8], rows[:8])]
    assert near[~np.eye(len(near), dtype=bool)].max() < 0.9
    # A kernel that costs much to compile makes problems attractive that need few new ones.
    dear = pick(prior.model, candidates, 1e9, Seconds(kernel=100.0))
    assert len(dear) == len(away) - len(measured)
