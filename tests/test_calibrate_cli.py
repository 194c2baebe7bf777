"""``aks calibrate`` from a prior to a selector that can be exported, with a GPU that is made up."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aks.cli import app
from aks.collect import runner
from aks.collect.sources import configs_from_csv, problems_from_csv
from aks.core.device import find_device
from aks.export.bundle import export
from aks.ops import OPS
from aks.runtime.predictor import Predictor
from aks.train.selector import train
from tests.collect.scene import ENVIRONMENT
from tests.synthetic import synthetic_records
from tests.train.conftest import OPTIONS, write_parquet

OP, AWAY = OPS["gemm"], find_device("h200-64sm")


def write_records(path: Path, **options) -> Path:
    import pandas as pd

    frame = pd.DataFrame([record.to_row() for record in synthetic_records(configs=24, **options)])
    return write_parquet(frame, path, OP)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    path = write_records(folder / "h200.parquet")
    train(OP, path, folder, held_out=["beta"], options=OPTIONS, track=False, with_prior=True)
    return folder


@pytest.fixture
def aks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aks.train.fit.Options", lambda seed=0: OPTIONS)
    monkeypatch.setattr("aks.core.device.current_device", lambda: AWAY)
    monkeypatch.setattr("aks.collect.environment.current_environment", lambda: ENVIRONMENT)
    good = partial(runner.collect, measure="tests.collect.fakes:good", workers=0, quiet=True)
    monkeypatch.setattr("aks.collect.runner.collect", good)

    def call(*words: object) -> str:
        result = CliRunner().invoke(app, ["calibrate", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_calibrates_the_gpu_of_this_machine(aks, prior, tmp_path):
    out = aks("--prior", prior, "--minutes", "0.1", "--out", "here")
    assert "problems measured on h200-64sm" in out
    selector = json.loads((tmp_path / "here/selector.json").read_text())
    assert selector["device"]["device"] == "h200-64sm"
    export(tmp_path / "here/selector.json", tmp_path / "model")
    Predictor.load(OP, None, tmp_path / "model").predict(m=16, n=4096, k=4096)
    # Goes on from what was measured, if there is anything left.
    count = int(out.partition(" problems measured")[0].split()[-1])
    again = aks("--prior", prior / "selector.json", "--minutes", "0.1", "--out", "here")
    assert int(again.partition(" problems measured")[0].split()[-1]) >= count > 0


def test_what_it_measured_is_scored_by_the_minute(aks, prior, tmp_path):
    path = write_records(tmp_path / "away.parquet", seed=1, device="h200-32sm")
    words = ("--measured", path, "--prior", prior, "--data", path, "--minutes", "0,1", "--json", "curve.json")
    assert "as measured" in aks("simulate", *words)
    points = json.loads((tmp_path / "curve.json").read_text())["points"]
    assert {point["minutes"]: point["problems"] > 0 for point in points} == {0.0: False, 1.0: True}


def test_without_time_the_prior_alone_makes_the_selector(aks, prior):
    assert aks("--prior", prior, "--minutes", "0", "--out", "here").startswith("0 problems measured")


def test_a_plan_is_measured_elsewhere_and_comes_back(aks, prior, tmp_path):
    aks("--prior", prior, "--device", "h200-64sm", "--minutes", "0.05", "--plan-only", "plan.csv")
    work, configs = problems_from_csv(OP, "plan.csv"), configs_from_csv(OP, "plan.csv")
    assert configs and {one.problem for one in work} == set(configs)
    with open("plan.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["families"] and OP.vendor.key() in first["configs"].split(";")
    runner.collect(
        OP,
        work,
        out="away.db",
        device=AWAY,
        environment=ENVIRONMENT,
        configs=configs,
        measure="tests.collect.fakes:good",
        workers=0,
        quiet=True,
    )
    out = aks("--prior", prior, "--measured", "away.db", "--out", "here")
    assert out.startswith(f"{len(work)} problems measured on h200-64sm")


def test_what_does_not_fit_is_told(aks, prior, tmp_path):
    run = partial(CliRunner().invoke, app)
    (tmp_path / "x.db").touch()
    told = run(["calibrate", "--prior", str(prior), "--measured", "x.db", "--plan-only", "plan.csv"])
    assert told.exit_code == 2 and "leave one out" in told.output
    told = run(["calibrate", "--prior", str(tmp_path)])
    assert "cannot be read" in str(told.exception)
    told = run(["calibrate", "--prior", str(prior), "--minutes", "0.01", "--device", "a100", "--plan-only", "no/p.csv"])
    assert "cannot write no/p.csv" in str(told.exception)
