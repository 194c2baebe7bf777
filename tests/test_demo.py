"""What `make demo` does, on a small cut of made-up data: merge, train, export, evaluate, report, explain."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from aks.cli import main
from aks.collect.store import Store
from aks.ops import OPS
from aks.runtime import Predictor
from tests.synthetic import synthetic_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder with a store in it, as `aks collect` would leave it."""
    folder = tmp_path_factory.mktemp("demo")
    records = synthetic_records(configs=12)
    with Store.create(folder / "runs.db", op=OPS["gemm"], device=records[0].device) as store:
        store.add(records)
    return folder


@pytest.fixture
def aks(folder, monkeypatch, capsys):
    """A call of ``aks`` in that folder that must succeed; its output."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["aks", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert not caught.value.code, err
        return out

    return call


def test_the_pipeline_end_to_end(aks, folder):
    rows = aks("data", "merge", "runs.db", "--out", "data.parquet")
    assert rows == f"{len(synthetic_records(configs=12))} rows written to data.parquet\n"
    assert "without the vendor's call: 0" in aks("data", "check", "data.parquet")
    assert "data.parquet" in aks("data", "list", ".")

    out = aks("train", "--data", "data.parquet", "--out", "trained", "--held-out", "gamma", "--max-portfolio", "5")
    assert "MLflow run" in out
    assert (folder / "mlflow.db").is_file()
    selector = json.loads((folder / "trained/selector.json").read_text())
    assert selector["dataset"]["held_out_families"] == ["gamma"]
    assert selector["command"].startswith("aks train --data data.parquet")

    assert "levels, for h200: written to model" in aks("export", "trained/selector.json", "--out", "model")
    written = {path.name for path in (folder / "model").iterdir()}
    assert written == {"tree.py", "tree.h", "tree.json", "forecast.json", "manifest.json"}

    options = ["--data", "data.parquet", "--model", "model", "--selector", "trained/selector.json"]
    table = aks("evaluate", *options, "--report", "report.html", "--json", "figures.json")
    assert "held out: gamma" in table
    assert "report written to report.html" in table
    figures = {row["chooser"]: row for row in json.loads((folder / "figures.json").read_text())["rows"]}
    assert figures["oracle"]["mean_regret"] == 0
    assert figures["vendor"]["geomean_speedup"] == 1
    assert 0 < figures["exported tree"]["mean_regret"] < figures["vendor"]["mean_regret"]
    for chooser in figures:
        assert chooser.split()[0] in table
    page = (folder / "report.html").read_text()
    assert "data:image/svg+xml" in page
    assert not re.findall(r"""(?:src|href)=["']https?://""", page)

    assert "report written to again.html" in aks("report", "again.html", *options, "--no-ladder")

    problem = {"m": 16, "n": 2048, "k": 2048}
    explained = aks("explain", "gemm", *(f"{name}={size}" for name, size in problem.items()), "--model", "model")
    assert Predictor.load("gemm", path=folder / "model").predict(**problem).key() in explained


def test_one_device_is_too_few_to_hold_out(aks):
    aks("data", "merge", "runs.db", "--out", "data.parquet")
    with pytest.raises(AssertionError, match="one device is too few for a cross-GPU figure"):
        aks("evaluate", "--data", "data.parquet", "--holdout", "device")
