"""Carrying measurements over to a device: what was measured there stays, the rest is expected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aks.core.device import find_device
from aks.train.latency import fit_latency_model
from aks.train.transport import carry_over, default_device, device_distance, nearest_device, uncovered_facts

H200, HALF = find_device("h200"), find_device("h200-64sm")


def test_distance_grows_with_what_differs():
    assert device_distance(H200, H200) == 0
    assert device_distance(H200, HALF) == pytest.approx(np.log(132 / 64), rel=0.02)
    assert device_distance(HALF, H200) == device_distance(H200, HALF)
    assert device_distance(H200, find_device("h100-80gb-hbm3")) < device_distance(H200, find_device("a100-sxm4-80gb"))
    parts = [find_device(f"h200-{count}sm") for count in (16, 48, 96)]
    assert nearest_device(HALF, parts).sm_count == 48


@pytest.fixture(scope="module")
def model(training_set):
    return fit_latency_model([training_set])


def test_at_home_nothing_changes(training_set, model):
    home = carry_over(training_set, model, default_device(training_set))
    assert home.problems == training_set.problems
    np.testing.assert_array_equal(home.latency_us, training_set.latency_us)


def test_elsewhere_a_cell_is_what_the_model_expects_and_how_wrong_it_was(training_set, model):
    away = carry_over(training_set, model, HALF)
    assert set(away.devices) == {HALF}
    assert len(away) == len(set(training_set.problems))
    # The device's facts are in the features, and illegal stays illegal.
    assert (away.columns["sm_count"] == 64).all()
    assert np.isinf(away.latency_us[~away.legal]).all()
    timed = np.isfinite(away.latency_us) & np.isfinite(training_set.latency_us)
    assert (np.isfinite(away.latency_us) <= np.isfinite(training_set.latency_us)).all()
    expected = model.latency_us(away.features, away.columns, away.configs, timed, away.regime)
    there = model.latency_us(training_set.features, training_set.columns, training_set.configs, timed, away.regime)
    residual = np.log(training_set.latency_us[timed] / there[timed])
    correction = np.log(away.latency_us[timed] / expected[timed])
    assert np.corrcoef(residual, correction)[0, 1] > 0.99
    assert np.abs(correction).sum() < np.abs(residual).sum()


def test_what_was_measured_on_the_device_is_kept_and_what_failed_everywhere_fails(training_set, model):
    column = 3
    latency_us = training_set.latency_us.copy()
    latency_us[:, column] = np.inf
    failing = replace(training_set, latency_us=latency_us)
    here = replace(failing.subset([0, 1]), devices=(HALF, HALF))
    here = replace(here, latency_us=np.where(np.isfinite(here.latency_us), 77.0, here.latency_us))
    both = replace(
        failing,
        problems=failing.problems + here.problems,
        devices=failing.devices + here.devices,
        families=failing.families + here.families,
        latency_us=np.concatenate([failing.latency_us, here.latency_us]),
        legal=np.concatenate([failing.legal, here.legal]),
        legal_undeclared=np.concatenate([failing.legal_undeclared, here.legal_undeclared]),
        features=np.concatenate([failing.features, here.features]),
    )
    away = carry_over(both, model, HALF)
    assert len(away) == len(set(training_set.problems))
    measured = [away.problems.index(problem) for problem in here.problems]
    kept = away.latency_us[measured]
    assert (kept[np.isfinite(kept)] == 77.0).all()
    assert not np.isfinite(away.latency_us[:, column]).any()


def test_facts_are_covered_up_to_a_half_beyond_what_was_measured():
    known = [find_device(name) for name in ("h200-32sm", "h200-96sm")]
    assert uncovered_facts(find_device("h200-64sm"), known) == ()
    assert uncovered_facts(H200, known) == ()
    assert uncovered_facts(find_device("h200-16sm"), known) == ("sm_count",)
    assert "capability" in uncovered_facts(find_device("a100-sxm4-80gb"), known)
