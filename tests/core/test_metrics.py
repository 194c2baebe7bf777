"""Scores against numpy and against figures worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.core.metrics import geomean, quantile, score

latencies = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50)


@given(latencies, st.floats(0, 1))
def test_quantile_is_numpys(values, q):
    assert quantile(values, q) == pytest.approx(np.quantile(values, q), rel=1e-12)


@given(latencies)
def test_geomean_is_the_mean_of_logs(values):
    assert geomean(values) == pytest.approx(np.exp(np.mean(np.log(values))), rel=1e-9)


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 3), st.floats(0.5, 4)), min_size=1, max_size=40))
def test_score_is_numpys(rows):
    oracle, slowdown, baseline_ratio = np.array(rows).T
    got = score(oracle * slowdown, oracle, oracle * baseline_ratio)
    regret = oracle * slowdown / oracle - 1
    speedup = oracle * baseline_ratio / (oracle * slowdown)
    assert got.problems == len(rows)
    assert got.mean_regret == pytest.approx(regret.mean(), abs=1e-9)
    assert got.p95_regret == pytest.approx(np.quantile(regret, 0.95), abs=1e-9)
    assert got.p99_regret == pytest.approx(np.quantile(regret, 0.99), abs=1e-9)
    assert got.worst_regret == pytest.approx(regret.max(), abs=1e-9)
    assert got.geomean_speedup == pytest.approx(np.exp(np.log(speedup).mean()))


def test_score_by_hand():
    got = score(chosen_us=[10, 20, 44], oracle_us=[10, 10, 40], baseline_us=[20, 20, 40])
    assert got.mean_regret == pytest.approx((0 + 1 + 0.1) / 3)
    assert got.worst_regret == pytest.approx(1)
    assert got.geomean_speedup == pytest.approx((2 * 1 * 40 / 44) ** (1 / 3))
    assert got.slower_share == pytest.approx(1 / 3)


def test_two_percent_slower_is_noise():
    got = score(chosen_us=[101.9, 102.1], oracle_us=[100, 100], baseline_us=[100, 100])
    assert got.slower_share == 0.5


def test_no_problems_have_no_score():
    row = score([], [], []).to_row()
    assert row.pop("problems") == 0
    assert all(math.isnan(value) for value in row.values())


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        score([1, 2], [1], [1, 2])
