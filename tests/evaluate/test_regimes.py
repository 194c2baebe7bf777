"""What picking another regime's winner costs."""

from __future__ import annotations

import pandas as pd
import pytest

from aks.core.measurement import Regime
from aks.evaluate.regimes import compare_regimes
from aks.evaluate.samples import half_medians
from aks.train.dataset import from_frame
from tests.evaluate.tiny import EARLY, OP, PLAIN, VENDOR, make_frame

COLD = {1: {VENDOR: [10.0] * 4, PLAIN: [5.0] * 4}, 2: {VENDOR: [8.0] * 4, PLAIN: [4.0] * 4}, 3: {VENDOR: [1.0]}}
CHAIN = {
    1: {VENDOR: [10.0] * 4, PLAIN: [12.0] * 4, EARLY: [1.0] * 4},
    2: {VENDOR: [8.0] * 4, PLAIN: [4.0] * 4, EARLY: [1.0] * 4},
}


def compare(tables):
    frame = pd.concat([make_frame(table, regime=regime) for regime, table in tables.items()], ignore_index=True)
    data = {regime: from_frame(frame, OP, regime=regime) for regime in tables}
    return compare_regimes(data, {regime: half_medians(frame, entry) for regime, entry in data.items()})


def test_cost_of_the_cold_winner_in_the_chain():
    picks = {(pick.picked_in, pick.run_in): pick for pick in compare({Regime.COLD: COLD, Regime.CHAIN: CHAIN})}
    assert set(picks) == {("cold", "chain"), ("chain", "cold")}
    there = picks["cold", "chain"]
    # m = 3 has no chain; EARLY has no cold: neither counts.
    assert there.problems == 2
    assert there.differs_share == 0.5
    assert there.mean_cost == pytest.approx((12 / 10 - 1) / 2)
    assert there.geomean_speedup == pytest.approx((10 / 12 * 8 / 4) ** 0.5)
    assert there.noise_cost == 0.0
    assert there.beyond_noise_share == 0.5
    assert picks["chain", "cold"].mean_cost == pytest.approx((10 / 5 - 1) / 2)


def test_a_difference_within_the_noise_is_called_so():
    cold = {1: {VENDOR: [10.0] * 4, PLAIN: [10.1] * 4}}
    # In the chain PLAIN wins by 1 %, but halves of the samples differ by far more.
    chain = {1: {VENDOR: [10.0, 11.0, 10.0, 11.0], PLAIN: [11.0, 9.8, 11.0, 9.8]}}
    pick = next(p for p in compare({Regime.COLD: cold, Regime.CHAIN: chain}) if p.run_in == "chain")
    assert pick.differs_share == 1.0
    assert pick.mean_cost == pytest.approx(10.5 / 10.4 - 1)
    assert pick.noise_cost > pick.mean_cost
    assert pick.beyond_noise_share == 0.0


def test_one_regime_or_no_common_problem_gives_no_comparison():
    assert compare({Regime.COLD: COLD}) == ()
    assert compare({Regime.COLD: {1: {VENDOR: [1.0]}}, Regime.CHAIN: {2: {VENDOR: [1.0]}}}) == ()
