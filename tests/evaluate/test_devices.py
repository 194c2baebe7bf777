"""Held-out devices: who may know what, and what the alternatives answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aks.cli import app
from aks.core.device import find_device
from aks.evaluate import run
from aks.evaluate.devices import (
    ANALYTIC,
    COPY,
    COVERED,
    MODEL,
    NEAREST_TREE,
    OWN_TREE,
    TREE,
    by_device,
    device_choosers,
)
from aks.evaluate.regret import Chooser
from aks.evaluate.run import evaluate_holdout
from aks.train.dataset import from_frame
from aks.train.fit import fit
from tests.evaluate.test_run import QUICK, write
from tests.evaluate.tiny import OP, PLAIN, VENDOR, make_frame
from tests.synthetic import synthetic_records

PARTS = ("h200-48sm", "h200-64sm", "h200-96sm")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    paths = []
    for device in PARTS:
        rows = [record.to_row() for record in synthetic_records(configs=8, device=device)]
        rows = [row for row in rows if row["m"] in (1, 8, 64, 512)]
        paths.append(write(rows, folder / f"{device}.parquet"))
    return paths


@pytest.fixture(scope="module")
def result(files):
    return evaluate_holdout(OP, files, "device", ladder=True, options=QUICK)


def test_every_alternative_is_scored_on_every_device_and_the_zero_shot_tree_beats_the_vendor(result):
    names = {"vendor", ANALYTIC, COPY, NEAREST_TREE, MODEL, "XGBoost selector", TREE, COVERED, OWN_TREE, "oracle"}
    assert [group.group for group in result.groups] == list(PARTS)
    assert all({row.chooser for row in group.rows} == names for group in result.groups)
    overall = {row.chooser: row.score for row in result.overall}
    assert overall[TREE].problems == len(result.data) == 3 * 20 * 4
    assert overall[TREE].mean_regret < overall["vendor"].mean_regret / 2
    assert overall["oracle"].geomean_slowdown == 1.0 < overall[TREE].geomean_slowdown
    assert overall[TREE].geomean_slowdown == pytest.approx(
        overall["oracle"].geomean_speedup / overall[TREE].geomean_speedup
    )


def test_what_is_held_out_is_seen_by_the_one_that_may_see_it_alone(files):
    seen = []

    def spy(train, inside, options, *, ladder):
        seen.append((train, inside))
        return device_choosers(train, inside, options, ladder=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "device_choosers", spy)
        result = evaluate_holdout(OP, files, "device", held_out=["alpha", "beta"], options=QUICK)
    for device, (train, inside) in zip(PARTS, seen, strict=True):
        assert {entry.name for entry in train.devices} == set(PARTS) - {device}
        assert {entry.name for entry in inside.devices} == set(PARTS)
        for part in (train, inside):
            assert set().union(*part.families) == {"gamma", "delta", "sample"}
    assert set().union(*result.data.families) == {"alpha", "beta"}
    assert result.to_json()["held_out_families"] == ["alpha", "beta"]


def test_the_winner_of_the_nearest_device_is_copied_and_nothing_is_made_up():
    fast, slow = {VENDOR: [10.0], PLAIN: [5.0]}, {VENDOR: [10.0], PLAIN: [20.0]}
    near = make_frame({m: fast for m in (1, 2)}, device="h200-96sm")
    far = make_frame({m: slow for m in (1, 2, 4)}, device="h200-16sm")
    asked = from_frame(make_frame({m: fast for m in (1, 2, 4)}, device="h200-80sm"), OP)
    train = from_frame(pd.concat([near, far], ignore_index=True), OP)
    copy = next(c for c in device_choosers(train, train, QUICK) if c.name == COPY)
    assert copy.rank(asked)[:, 0].tolist() == [asked.configs.index(PLAIN)] * 2 + [-1]


def test_a_chooser_by_device_asks_each_for_its_own_rows():
    both = from_frame(
        pd.concat([make_frame({1: {VENDOR: [1.0]}}, device=name) for name in ("h200", "h200-64sm")], ignore_index=True),
        OP,
    )
    widths = {"h200": 1, "h200-64sm": 3}
    chooser = by_device(
        "x", lambda device: Chooser("x", lambda data: np.full((len(data), widths[device.name]), widths[device.name]))
    )
    ranking = chooser.rank(both)
    expected = {"h200": [1, -1, -1], "h200-64sm": [3, 3, 3]}
    assert [ranking[row].tolist() for row in range(2)] == [expected[device.name] for device in both.devices]


def test_on_a_device_unlike_all_others_the_tree_leans_on_the_vendor_and_counts_as_uncovered(files):
    data = from_frame(pd.concat([pd.read_parquet(path) for path in files[1:]], ignore_index=True), OP)
    near, far = (fit(data, QUICK, device=find_device(name)) for name in ("h200-80sm", "h200-8sm"))
    assert near.uncovered == () and far.uncovered == ("sm_count",)
    covered = next(c for c in device_choosers(data, data, QUICK) if c.name == COVERED)
    assert (covered.rank(_on(data, "h200-8sm"))[:, 0] == -1).all()
    assert (covered.rank(_on(data, "h200-80sm"))[:, 0] >= 0).any()
    strict = QUICK.guessed_leaf
    assert strict.noise > QUICK.leaf.noise and strict.max_harmed < QUICK.leaf.max_harmed


def _on(data, name):
    return replace(data, devices=(find_device(name),) * len(data))


def test_the_command_takes_records_and_logs_a_run(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "evaluate_holdout", lambda *a, **k: evaluate_holdout(*a, **k, options=QUICK))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["evaluate", "--holdout", "device", "--no-ladder", "--json", "figures.json", "--tracking-uri", uri]
    app([*words, "--importance", *(word for path in files for word in ("--records", str(path)))], standalone_mode=False)
    output = capsys.readouterr().out
    assert "each device held out in turn" in output and "geometric mean slowdown" in output
    figures = json.loads(Path("figures.json").read_text())
    assert [group["group"] for group in figures["groups"]] == list(PARTS)
    assert "cannot be told: fewer than 6 devices" in output
    sms = figures["importance"]["facts"][0]
    assert list(sms["spans"]) == ["sm_count", "tflops_16bit"] and list(sms["dropped"]["by_device"]) == list(PARTS)

    import mlflow

    mlflow.set_tracking_uri(uri)
    logged = mlflow.search_runs(experiment_names=["aks-gemm-holdout"], output_format="list")
    assert len(logged) == 1
    tree = next(row for row in figures["overall"] if row["chooser"] == TREE)
    assert logged[0].data.metrics["overall.tree/mean_regret"] == pytest.approx(tree["mean_regret"])
    assert logged[0].data.metrics["importance.sm_count_tflops_16bit/permuted_regret_change"] == sms["permuted"]["mean"]
    changes = mlflow.load_table("importance.json", run_ids=[logged[0].info.run_id])
    assert changes["how"].tolist() == ["permuted", "dropped"]
    assert "sm_count, tflops_16bit" in logged[0].data.tags["mlflow.note.content"]
    files_logged = {file.path for file in mlflow.MlflowClient().list_artifacts(logged[0].info.run_id, "pictures")}
    assert files_logged == {"pictures/regret_map.png", "pictures/regret_by_distance.png"}
