"""Calibration replayed: the held-out device is unknown to the prior, and time buys measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from aks.core.errors import DataError
from aks.evaluate import calibration
from aks.evaluate.calibration import (
    INFORMATIVE,
    RANDOM_ALL,
    RANDOM_FILTERED,
    Clock,
    replay_measured,
    simulate,
    to_json,
)
from aks.ops import OPS
from aks.train.dataset import from_frame
from aks.train.latency import fit_latency_model
from aks.train.prior import make_prior
from aks.train.splits import split
from tests.synthetic import synthetic_records

OP = OPS["gemm"]
AWAY = "h200-32sm"


@pytest.fixture(scope="module")
def data():
    records = [*synthetic_records(0, configs=20), *synthetic_records(1, device=AWAY, configs=20)]
    return from_frame(pd.DataFrame([record.to_row() for record in records]), OP)


@pytest.fixture(scope="module")
def points(data):
    clock = Clock(round=12.0, thinking=1.0)
    return simulate(data, AWAY, ["beta"], [0.0, 0.1, 0.2, 9.0], trees=False, clock=clock)


def test_each_strategy_starts_from_the_prior_and_ends_with_every_problem(points):
    for strategy in (INFORMATIVE, RANDOM_ALL, RANDOM_FILTERED):
        curve = {point.minutes: point for point in points if (point.strategy, point.part) == (strategy, "all")}
        counts = [curve[minute].problems for minute in (0.0, 0.1, 0.2, 9.0)]
        assert counts == sorted(counts) and counts[0] == 0 < counts[2] < counts[3]
        assert curve[9.0].mean_regret < curve[0.0].mean_regret
        assert curve[9.0].count == curve[0.0].count
    assert len({point.mean_regret for point in points if (point.minutes, point.part) == (0.0, "all")}) == 1


def test_held_out_families_are_scored_and_never_measured(points, data):
    pairs = zip(data.devices, data.families, strict=True)
    count = sum(device.name == AWAY and "beta" in names for device, names in pairs)
    assert {point.count for point in points if point.part == "held out"} == {count}
    last = [point for point in points if (point.minutes, point.part) == (9.0, "unmeasured")]
    assert all(point.count == 0 and math.isnan(point.mean_regret) for point in last)
    assert max(point.problems for point in points) == sum(device.name == AWAY for device in data.devices) - count


def test_the_prior_sees_other_devices_only(data, monkeypatch):
    seen = []
    fit = calibration.fit_latency_model
    monkeypatch.setattr(calibration, "fit_latency_model", lambda sets, *a, **k: seen.extend(sets) or fit(sets, *a, **k))
    simulate(data, AWAY, ["beta"], [0.0], strategies=[RANDOM_ALL], trees=False)
    assert {device.name for device in seen[0].devices} == {"h200"}
    assert not any("beta" in names for names in seen[0].families)


def test_filtered_picks_buy_more_problems_than_whole_rows(points):
    at = {point.strategy: point for point in points if (point.minutes, point.part) == (0.2, "all")}
    assert at[RANDOM_FILTERED].problems > at[RANDOM_ALL].problems
    assert at[RANDOM_FILTERED].cells / at[RANDOM_FILTERED].problems < at[RANDOM_ALL].cells / at[RANDOM_ALL].problems


def test_figures_are_json_and_a_missing_device_is_told(points, data):
    document = to_json(points, Clock())
    assert document["clock"]["cost"]["kernel"] == 0.25
    assert any(row["mean_regret"] is None for row in document["points"])
    with pytest.raises(DataError, match="cannot hold out 'b200'"):
        simulate(data, "b200", ["beta"], [0.0])


def test_what_was_measured_is_scored_as_it_came(data):
    home, away = (
        data.subset([row for row, d in enumerate(data.devices) if (d.name == AWAY) == there]) for there in (0, 1)
    )
    train, _ = split(home, ["beta"])
    prior = replace(make_prior(home.subset(train), fit_latency_model([home.subset(train)])), held_out=("beta",))
    known, _ = split(away, ["beta"])

    def until(minute):
        return away.subset(known[: int(min(minute, 1.0) * len(known))]) if minute else None

    points = replay_measured(prior, away, until, [0.0, 0.5, 1.0])
    at = {(point.minutes, point.part): point for point in points}
    assert [at[minute, "all"].problems for minute in (0.0, 0.5, 1.0)] == [0, len(known) // 2, len(known)]
    assert at[1.0, "all"].mean_regret < at[0.0, "all"].mean_regret
    assert at[1.0, "unmeasured"].count == 0 < at[1.0, "held out"].count == len(away) - len(known)
    with pytest.raises(DataError, match="h200, h200-32sm; wanted one device"):
        replay_measured(prior, home, until, [0.0])
    with pytest.raises(DataError, match="nothing of held-out families"):
        replay_measured(replace(prior, held_out=()), away, until, [0.0])
