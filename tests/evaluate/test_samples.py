"""Noise, and an oracle that noise cannot flatter."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from aks.core.measurement import Regime, Status
from aks.evaluate.samples import grouped_medians, half_medians, measure_noise, split_oracle_us
from aks.train.dataset import from_frame, present_regimes
from tests.evaluate.tiny import OP, PLAIN, VENDOR, make_frame


def test_grouped_medians():
    values = np.array([3.0, 1.0, 2.0, 10.0, 20.0])
    medians = grouped_medians(values, np.array([0, 0, 0, 2, 2]), 3)
    assert medians[[0, 2]].tolist() == [2.0, 15.0]
    assert math.isnan(medians[1])


def test_halves_are_every_second_sample():
    frame = make_frame({4: {VENDOR: [1.0, 10.0, 3.0, 30.0, 5.0], PLAIN: [7.0]}})
    data = from_frame(frame, OP)
    halves = half_medians(frame, data)
    assert halves[:, 0, 0].tolist() == [3.0, 20.0]
    # One sample serves as both halves; nothing was measured elsewhere.
    assert halves[:, 0, data.configs.index(PLAIN)].tolist() == [7.0, 7.0]
    assert np.isnan(halves[:, 0, np.isnan(data.latency_us[0])]).all()


def test_split_oracle_is_chosen_by_the_other_half():
    # PLAIN looks best in the first half (lucky samples), VENDOR in the second.
    frame = make_frame({4: {VENDOR: [10.0, 10.0, 10.0, 10.0], PLAIN: [6.0, 12.0, 6.0, 12.0]}})
    data = from_frame(frame, OP)
    # First half is scored on the second half's winner (VENDOR: 10), second half on PLAIN: 12.
    assert split_oracle_us(half_medians(frame, data), data.trusted)[:, 0].tolist() == [10.0, 12.0]
    # The plain oracle takes the luckier median.
    assert data.oracle_us.tolist() == [9.0]


def test_split_oracle_skips_failures_and_the_untrusted():
    frame = make_frame({4: {VENDOR: [10.0, 10.0], PLAIN: [5.0, 5.0]}, 8: {VENDOR: [1.0], PLAIN: Status.WRONG_RESULT}})
    data = from_frame(frame, OP)
    assert split_oracle_us(half_medians(frame, data), data.trusted).tolist() == [[10.0, 1.0], [10.0, 1.0]]


def test_samples_of_a_raced_out_run_do_not_mix_with_a_full_one():
    full = make_frame({4: {VENDOR: [10.0] * 4, PLAIN: [5.0] * 4}})
    raced = make_frame({4: {PLAIN: [50.0]}}, run_id="two")
    raced["status"] = Status.RACED_OUT.value
    frame = pd.concat([raced, full], ignore_index=True)
    data = from_frame(frame, OP)
    assert half_medians(frame, data)[:, 0, data.configs.index(PLAIN)].tolist() == [5.0, 5.0]


def test_noise_within_a_cell_and_between_runs():
    first = make_frame({4: {VENDOR: [9.0, 10.0, 11.0], PLAIN: [5.0, 5.0]}})
    second = make_frame({4: {VENDOR: [11.0, 11.0]}}, run_id="two")
    noise = measure_noise(pd.concat([first, second], ignore_index=True), OP)
    assert noise.cells == 3
    assert noise.sample_median == 0.0  # of 0.1, 0 and 0
    assert noise.repeated_cells == noise.repeated_problems == 1
    assert noise.run_median == pytest.approx(0.1)


def test_the_winner_of_one_run_is_scored_in_the_other():
    first = make_frame({4: {VENDOR: [10.0] * 3, PLAIN: [9.0] * 3}, 8: {VENDOR: [1.0]}})
    second = make_frame({4: {VENDOR: [10.0] * 3, PLAIN: [12.0] * 3}}, run_id="two")
    both = pd.concat([first, second], ignore_index=True)
    assert measure_noise(both, OP).winner_cost == pytest.approx((12 / 10 - 1 + 10 / 9 - 1) / 2)
    assert math.isnan(measure_noise(first, OP).winner_cost)


def test_noise_of_a_single_run_is_not_known_between_runs():
    noise = measure_noise(make_frame({4: {VENDOR: [9.0, 10.0, 11.0]}}), OP)
    assert noise.sample_median == pytest.approx(0.1)
    assert noise.repeated_cells == 0
    assert math.isnan(noise.run_median)


def test_present_regimes_come_in_their_own_order():
    frames = [make_frame({4: {VENDOR: [1.0]}}, regime=regime) for regime in (Regime.CHAIN, Regime.COLD)]
    assert present_regimes(pd.concat(frames)) == [Regime.COLD, Regime.CHAIN]
