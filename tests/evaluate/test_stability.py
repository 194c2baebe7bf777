"""Two trainings on the same problems: what counts as a flip, what it costs, and which measurements each sees."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from aks.cli import app
from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.data.parquet import write_table
from aks.data.schema import arrow_schema
from aks.evaluate import stability
from aks.evaluate.samples import Noise
from aks.evaluate.stability import TRAINED_ON, UNSEEN, count_flips, measure_stability, split_by_run
from aks.train.dataset import from_frame
from aks.train.fit import Options
from aks.train.growth import Shape
from tests.evaluate.tiny import OP, OTHER, PLAIN, VENDOR, make_frame
from tests.synthetic import synthetic_records

NOISE = Noise(1, 0.0, 0.0, 1, 1, run_median=0.02, run_p95=0.05, winner_cost=0.0)
QUICK = Options(max_portfolio=4, num_imagined=200, num_rounds=10, shape=Shape(max_leaves=20))


def scene():
    """Four problems whose oracle takes 100 us; columns of the vendor, PLAIN and OTHER."""
    table = {
        1: {VENDOR: [100], PLAIN: [101], OTHER: [200]},
        4: {VENDOR: [150], PLAIN: [100], OTHER: [104]},
        16: {VENDOR: [100], PLAIN: [120], OTHER: [130]},
        512: {VENDOR: [100], PLAIN: [100], OTHER: [100]},
    }
    data = from_frame(make_frame(table), OP)
    return data, data.configs.index(PLAIN), data.configs.index(OTHER)


def test_flips_by_hand():
    data, plain, other = scene()
    row = count_flips("c", "a", np.array([[0, plain, plain, 0], [plain, other, plain, plain]]), data, NOISE)
    # Regrets 0, 0, 20, 0 % against 1, 4, 20, 0 %: three flips, of 1, 4 and 0 %.
    assert (row.problems, row.flips, row.flip_rate) == (4, 3, 0.75)
    assert row.flip_regret == pytest.approx(0.05 / 3)
    assert row.flip_worst == pytest.approx(0.04)
    assert row.flip_cost == pytest.approx(0.05 / 4)
    assert (row.near_tie_share, row.near_tie_p95_share) == (pytest.approx(2 / 3), 1.0)
    assert (row.first_mean_regret, row.second_mean_regret) == (pytest.approx(0.05), pytest.approx(0.0625))
    assert row.second_p95_regret == pytest.approx(0.04 + 0.85 * 0.16)


def test_it_does_not_matter_which_of_the_two_is_the_worse():
    data, plain, other = scene()
    choices = np.array([[0, other, plain, 0], [plain, plain, plain, 0]])
    row, turned = (count_flips("c", "a", order, data, NOISE) for order in (choices, choices[::-1]))
    assert row.flip_regret == turned.flip_regret == pytest.approx(0.025)
    assert row.first_mean_regret == turned.second_mean_regret == pytest.approx(0.06)


def test_no_flip_costs_nothing():
    data, plain, _ = scene()
    row = count_flips("c", "a", np.full((2, 4), plain), data, NOISE)
    assert (row.flips, row.flip_rate, row.flip_cost) == (0, 0.0, 0.0)
    assert math.isnan(row.flip_regret) and math.isnan(row.near_tie_share)


def test_what_was_not_measured_is_left_out():
    data, plain, _ = scene()
    row = count_flips("c", "a", np.array([[-1, plain, plain, 0], [0, plain, -1, plain]]), data, NOISE)
    assert (row.problems, row.flips) == (2, 1)


def run_at(hour: int, table: dict, run_id: str, **kwargs) -> pd.DataFrame:
    return make_frame(table, run_id=run_id, **kwargs).assign(measured_at=f"2026-01-01T{hour:02}:00:00+00:00")


def test_the_first_and_the_last_run_of_each_problem():
    frame = pd.concat(
        [
            run_at(9, {4: {VENDOR: [30]}, 16: {VENDOR: [31]}}, "a"),  # the last, whatever its name and place
            run_at(2, {1: {VENDOR: [10]}, 4: {VENDOR: [11]}}, "b"),
            run_at(5, {1: {VENDOR: [20]}, 4: {VENDOR: [21]}, 16: {VENDOR: [22]}, 512: {VENDOR: [23]}}, "c"),
        ],
        ignore_index=True,
    )
    first, last = split_by_run(frame, OP, Regime.COLD)
    assert first.problems == last.problems
    found = zip(first.axes[:, 0], first.baseline_us, last.baseline_us, strict=True)
    assert sorted(found) == [(1, 10, 20), (4, 11, 30), (16, 22, 31)]


def test_a_problem_that_one_of_the_runs_lacks_the_vendor_of_is_left_out():
    frame = pd.concat(
        [
            run_at(1, {1: {VENDOR: [10]}, 4: {VENDOR: [10]}}, "a"),
            run_at(2, {1: {PLAIN: [10]}, 4: {VENDOR: [12]}}, "b"),
        ],
        ignore_index=True,
    )
    first, last = split_by_run(frame, OP, Regime.COLD)
    assert first.axes[:, 0].tolist() == last.axes[:, 0].tolist() == [4]


def test_runs_of_other_regimes_are_no_repetition():
    frame = pd.concat(
        [run_at(1, {1: {VENDOR: [10]}}, "a"), run_at(2, {1: {VENDOR: [9]}}, "b", regime=Regime.CHAIN)],
        ignore_index=True,
    )
    with pytest.raises(DataError, match=r"measured by two runs in regime 'cold'.*aks collect --problems"):
        split_by_run(frame, OP, Regime.COLD)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Families alpha and beta measured by two runs, the others by one."""
    rows = []
    for number in (1, 2):
        for record in synthetic_records(number, configs=8):
            row = replace(record, run_id=f"run-{number}", measured_at=f"2026-01-0{number}").to_row()
            if row["m"] in (1, 8, 48, 512) and (number == 1 or row["families"] in ("alpha", "beta")):
                rows.append(row)
    path = tmp_path_factory.mktemp("data") / "h200.parquet"
    write_table(pa.Table.from_pylist(rows, schema=arrow_schema(OP)), OP, path)
    return path


def test_two_trainings_are_compared_on_what_they_saw_and_on_what_neither_saw(data_file):
    result = measure_stability(OP, data_file, options=QUICK)
    assert result.problems == 2 * 4 * 4
    assert [(row.chooser, row.asked, row.problems) for row in result.rows] == [
        ("fastest measured", TRAINED_ON, 32),
        ("XGBoost selector", TRAINED_ON, 32),
        ("tree", TRAINED_ON, 32),
        ("XGBoost selector", UNSEEN, 32),
        ("tree", UNSEEN, 32),
    ]
    assert all(0 <= row.flip_cost <= row.flip_rate * row.flip_worst for row in result.rows if row.flips)


def test_trainings_on_the_same_latencies_never_differ(data_file, monkeypatch):
    split = stability.split_by_run
    monkeypatch.setattr(stability, "split_by_run", lambda *args: (split(*args)[0],) * 2)
    assert {row.flips for row in measure_stability(OP, data_file, options=QUICK).rows} == {0}


def test_the_command_prints_a_table_and_writes_all_figures(data_file, tmp_path, monkeypatch, capsys):
    choosers = stability.selector_choosers
    monkeypatch.setattr(stability, "selector_choosers", lambda data, _: choosers(data, QUICK))
    words = ["stability", "--data", str(data_file), "--json", str(tmp_path / "figures.json")]
    app(words, standalone_mode=False)
    output = capsys.readouterr().out
    assert "first and on the last run of 32 problems" in output and "Near-ties:" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    tree = next(row for row in figures["rows"] if (row["chooser"], row["asked"]) == ("tree", UNSEEN))
    assert figures["training_problems"] == 32 and tree["problems"] == 32
    assert f"{100 * tree['flip_rate']:.1f} %" in output
