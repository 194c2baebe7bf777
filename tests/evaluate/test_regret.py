"""Regrets and speed-ups of cases small enough to compute by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aks.core.measurement import Status
from aks.evaluate import baselines
from aks.evaluate.regret import (
    Chooser,
    Scorer,
    bootstrap_interval,
    clusters,
    family_rows,
    resolve,
    without_promises,
    worst_problems,
)
from aks.train.dataset import TrainingSet, from_frame
from tests.evaluate.tiny import EARLY, OP, OTHER, PLAIN, VENDOR, make_frame

TABLE = {
    1: {VENDOR: [10.0], PLAIN: [8.0], EARLY: [5.0]},
    16: {VENDOR: [10.0], PLAIN: [11.0], EARLY: [20.0]},
    512: {VENDOR: [100.0], PLAIN: [100.0], EARLY: Status.LAUNCH_ERROR},
}


@pytest.fixture
def data() -> TrainingSet:
    return from_frame(make_frame(TABLE, families={16: ["beta"], 512: ["alpha", "beta"]}), OP, also=[OTHER])


def scorer(data: TrainingSet) -> Scorer:
    return Scorer(data, None, None, clusters(data.families, ["alpha", "beta"]))


def always(data: TrainingSet, config) -> np.ndarray:
    return np.full((len(data), 1), data.configs.index(config), dtype=np.intp)


def run(data: TrainingSet, chooser: Chooser) -> np.ndarray:
    return resolve(chooser.rank(data), data.latency_us)


def test_regret_is_chosen_over_oracle_less_one(data):
    row = scorer(data).score("plain", resolve(always(data, PLAIN), data.latency_us))
    # Oracles: 5, 10, 100; chosen 8, 11, 100.
    assert row.score.mean_regret == pytest.approx((0.6 + 0.1 + 0.0) / 3)
    assert row.score.worst_regret == pytest.approx(0.6)
    assert row.score.geomean_speedup == pytest.approx((10 / 8 * 10 / 11 * 1) ** (1 / 3))
    assert row.score.slower_share == pytest.approx(1 / 3)
    assert row.share == 1.0


def test_vendor_speedup_is_exactly_one_in_every_band(data):
    row = scorer(data).score("vendor", run(data, baselines.vendor()))
    assert row.score.geomean_speedup == 1.0
    assert row.bands[0] == row.bands[1] == row.bands[3] == 1.0
    assert math.isnan(row.bands[2])  # no problem has 17 <= m <= 256
    assert row.score.slower_share == 0.0


def test_oracle_regret_is_exactly_zero(data):
    row = scorer(data).score("oracle", run(data, baselines.oracle()))
    assert row.score.mean_regret == row.score.worst_regret == 0.0
    assert row.regret_interval == (0.0, 0.0)


def test_portfolio_oracle_knows_its_columns_only(data):
    kept = [0, data.configs.index(PLAIN)]
    row = scorer(data).score("portfolio", run(data, baselines.portfolio_oracle(kept)))
    assert row.score.worst_regret == pytest.approx(8 / 5 - 1)


def test_a_failed_config_gives_way_to_its_successor_then_to_the_vendor(data):
    early, plain = data.configs.index(EARLY), data.configs.index(PLAIN)
    last = int(np.flatnonzero(data.axes[:, 0] == 512)[0])
    assert resolve(np.array([[early, plain]] * 3), data.latency_us)[last] == plain
    assert resolve(np.array([[early, -1]] * 3), data.latency_us)[last] == 0


def test_a_config_that_nobody_tried_is_not_scored_and_lowers_the_share(data):
    ranking = always(data, PLAIN)
    ranking[0] = data.configs.index(OTHER)
    column = resolve(ranking, data.latency_us)
    assert column.tolist()[0] == -1
    assert scorer(data).score("other", column).share == pytest.approx(2 / 3)


def test_no_answer_is_not_scored(data):
    assert resolve(np.full((3, 2), -1), data.latency_us).tolist() == [-1, -1, -1]


def test_without_promises_the_early_config_is_illegal_for_the_oracle_too(data):
    plain = without_promises(data)
    assert not any(problem.to_row()["static_weights"] for problem in plain.problems)
    assert plain.oracle_us.tolist() == [8.0, 10.0, 100.0]
    assert resolve(always(data, EARLY), plain.latency_us).tolist() == [0, 0, 0]


def test_a_problem_of_two_families_counts_in_both_tables_but_in_one_cluster(data):
    rows = family_rows(scorer(data), np.zeros(3, dtype=np.intp))
    assert {name: row.score.problems for name, row in rows.items()} == {"alpha": 2, "beta": 2}
    assert clusters(data.families, ["beta"]).tolist() == [0, 1, 1]


def test_worst_problem_names_what_was_picked_and_what_was_best(data):
    worst = worst_problems(data, resolve(always(data, PLAIN), data.latency_us), count=1)[0]
    assert (worst.chosen, worst.best) == (PLAIN.key(), EARLY.key())
    assert (worst.chosen_us, worst.best_us, worst.vendor_us) == (8.0, 5.0, 10.0)
    assert worst.regret == pytest.approx(0.6)


def test_bootstrap_draws_whole_families():
    # Two families that agree within and differ between: the mean is 0, 0.5 or 1, nothing else.
    values, cluster = np.array([0.0] * 50 + [1.0] * 50), np.array([0] * 50 + [1] * 50)
    assert bootstrap_interval(values, cluster) == (0.0, 1.0)
    problem_by_problem = bootstrap_interval(values, np.arange(100))
    assert 0.35 < problem_by_problem[0] < 0.5 < problem_by_problem[1] < 0.65


def test_bootstrap_of_one_family_draws_problems_and_is_reproducible():
    values = np.linspace(0, 1, 40)
    interval = bootstrap_interval(values, np.zeros(40, dtype=np.intp))
    assert interval == bootstrap_interval(values, np.zeros(40, dtype=np.intp))
    assert 0.3 < interval[0] < 0.5 < interval[1] < 0.7


def test_bootstrap_of_nothing_is_nan():
    assert all(math.isnan(end) for end in bootstrap_interval(np.empty(0), np.empty(0, dtype=np.intp)))
