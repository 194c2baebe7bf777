"""From a measurement file and an exported tree to the table: what is shipped is what is scored."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aks.core.errors import DataError
from aks.data.parquet import write_table
from aks.data.schema import arrow_schema
from aks.evaluate import baselines, run
from aks.evaluate.run import check_held_out, evaluate, evaluate_holdout
from aks.export.bundle import export
from aks.runtime.predictor import Predictor
from aks.train.fit import Options
from aks.train.ladder import LADDER
from aks.train.selector import train
from tests.evaluate.tiny import OP
from tests.synthetic import synthetic_records

HELD_OUT = ("alpha", "beta")
QUICK = Options(max_portfolio=4, num_imagined=200, num_rounds=20)


def write(rows: Sequence[dict], path: Path) -> Path:
    write_table(pa.Table.from_pylist(list(rows), schema=arrow_schema(OP)), OP, path)
    return path


def read(folder: Path) -> list[dict]:
    return pq.read_table(folder / "data.parquet").to_pylist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data.parquet (every other m, cold and chain), selector.json and the exported tree in models/."""
    folder = tmp_path_factory.mktemp("shipped")
    cold = [record.to_row() for record in synthetic_records(configs=10)]
    cold = [row for row in cold if row["m"] in (1, 2, 8, 16, 48, 128, 512, 4096)]
    chain = [{**row, "regime": "chain"} for row in cold if row["m"] < 100]
    write([*cold, *chain], folder / "data.parquet")
    result = train(OP, folder / "data.parquet", folder, held_out=HELD_OUT, options=QUICK, track=False)
    export(result.selector_path, folder / "models")
    return folder


@pytest.fixture(scope="module")
def evaluation(folder):
    return evaluate(OP, folder / "data.parquet", folder / "models", selector=folder / "selector.json")


def test_every_rung_of_the_ladder_is_scored_on_the_same_problems(evaluation):
    names = [row.chooser for row in evaluation.rows]
    rungs = [rung.description for rung in LADDER]
    assert names == [
        baselines.VENDOR,
        *rungs,
        baselines.XGBOOST,
        baselines.TREE,
        baselines.PORTFOLIO_ORACLE,
        baselines.ORACLE,
    ]
    assert {row.score.problems for row in evaluation.rows} == {2 * 4 * 8}
    assert all(families & set(HELD_OUT) for families in evaluation.data.families)


def test_vendor_oracle_and_order(evaluation):
    assert evaluation.row("vendor").score.geomean_speedup == 1.0
    assert evaluation.row("oracle").score.worst_regret == 0.0
    portfolio = evaluation.row("oracle over the portfolio").score.mean_regret
    for row in evaluation.rows[:-2]:
        assert row.score.mean_regret >= portfolio >= 0


def test_the_exported_tree_is_scored_problem_by_problem_as_it_predicts(evaluation, folder):
    predictor = Predictor.load(OP, path=folder / "models")
    latency: dict[tuple, dict] = {}
    for row in read(folder):
        if row["regime"] == "cold" and row["families"] in HELD_OUT:
            cell = latency.setdefault((row["m"], row["n"], row["k"]), {})
            cell[OP.config_type.from_row(row)] = row["latency_us"]
    regrets = [
        cell[predictor.predict(*axes, static_weights=True)] / min(cell.values()) - 1 for axes, cell in latency.items()
    ]
    score = evaluation.row(baselines.TREE).score
    assert score.mean_regret == pytest.approx(sum(regrets) / len(regrets))
    assert score.worst_regret == pytest.approx(max(regrets))


def test_other_regimes_and_undeclared_callers_have_rows_of_their_own(evaluation):
    assert {row.regime for row in evaluation.regime_rows} == {"chain"}
    assert {row.score.problems for row in evaluation.regime_rows} == {2 * 4 * 5}
    assert {row.declared for row in evaluation.undeclared_rows} <= {False}
    # Regimes are compared on all problems that have both, held out or not.
    assert {pick.problems for pick in evaluation.regime_picks} == {5 * 4 * 5}
    assert all(pick.differs_share == 0.0 for pick in evaluation.regime_picks)


def test_a_config_of_the_tree_that_the_data_lacks_is_not_scored(folder, tmp_path):
    absent = Predictor.load(OP, path=folder / "models").configs[1]
    rows = [row for row in read(folder) if OP.config_type.from_row(row) != absent]
    data = write(rows, tmp_path / "few.parquet")
    found = evaluate(OP, data, folder / "models", selector=folder / "selector.json", ladder=False)
    assert absent in found.data.configs
    assert found.row(baselines.TREE).share < 1.0 == found.row(baselines.ORACLE).share


def test_a_family_that_training_saw_is_refused(folder):
    with pytest.raises(DataError, match=r"trained on gamma.*held out were alpha, beta"):
        evaluate(OP, folder / "data.parquet", folder / "models", held_out=["gamma"])


def test_held_out_families_can_be_narrowed(folder):
    narrow = evaluate(OP, folder / "data.parquet", folder / "models", held_out=["beta"], ladder=False)
    assert narrow.held_out == ("beta",)
    assert narrow.row("vendor").score.problems == 4 * 8
    assert [row.chooser for row in narrow.rows] == [
        "vendor",
        "exported tree",
        "oracle over the portfolio",
        "oracle",
    ]


def test_a_tree_that_saw_every_family_has_no_score():
    with pytest.raises(DataError, match="trained on every model family"):
        check_held_out({"held_out_families": []}, ())


def test_data_of_another_device_is_refused(folder, tmp_path):
    rows = [{**row, "device": "a100-sxm4-80gb"} for row in read(folder)]
    with pytest.raises(DataError, match=r"for device 'h200', but the data is of a100-sxm4-80gb"):
        evaluate(OP, write(rows, tmp_path / "other.parquet"), folder / "models")


def test_other_data_than_the_tree_s_is_remarked(folder, tmp_path):
    data = write(read(folder)[::-1], tmp_path / "other.parquet")
    other = evaluate(OP, data, folder / "models", ladder=False)
    assert any("trained on other data" in remark for remark in other.remarks)


def test_a_selector_that_the_tree_is_not_from_is_refused(folder, tmp_path):
    for name in ("selector.json", "xgboost.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    selector = json.loads((tmp_path / "selector.json").read_text())
    (tmp_path / "selector.json").write_text(json.dumps({**selector, "seed": 7}))
    with pytest.raises(DataError, match="not the selector that the tree was exported from"):
        evaluate(OP, folder / "data.parquet", folder / "models", selector=tmp_path / "selector.json", ladder=False)


def test_an_altered_xgboost_model_is_refused(folder, tmp_path):
    (tmp_path / "selector.json").write_bytes((folder / "selector.json").read_bytes())
    (tmp_path / "xgboost.json").write_bytes((folder / "xgboost.json").read_bytes()[:-5])
    with pytest.raises(DataError, match=r"xgboost\.json is missing or is not the model"):
        baselines.xgboost_chooser(tmp_path / "selector.json", OP)


def test_a_selector_of_other_features_is_refused(folder):
    other = replace(OP, features=OP.features[:-1])
    with pytest.raises(DataError, match="trained on other features"):
        baselines.xgboost_chooser(folder / "selector.json", other)


@pytest.fixture
def script(capsys, monkeypatch):
    """A call of scripts/evaluate_cross_gpu.py: exit status, stdout, stderr."""
    path = Path(__file__).parents[2] / "scripts" / "evaluate_cross_gpu.py"

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(path), run_name="__main__")
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_script_says_that_one_device_is_too_few(folder, script):
    status, _, err = script("--data", str(folder / "data.parquet"))
    assert status == 2
    assert "too few for a cross-GPU figure" in err


def test_script_names_a_missing_file(tmp_path, script):
    status, _, err = script("--data", str(tmp_path / "none.parquet"))
    assert status == 2
    assert "no measurement file" in err


def test_script_holds_out_families(folder, script, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "evaluate_holdout", lambda *a, **k: evaluate_holdout(*a, **k, options=QUICK))
    words = [
        "--data",
        str(folder / "data.parquet"),
        "--holdout",
        "family",
        "--max-groups",
        "2",
        "--no-ladder",
        "--no-track",
    ]
    status, output, _ = script(*words, "--json", str(tmp_path / "rows.json"))
    assert status == 0
    assert "each family held out in turn" in output and "XGBoost selector" in output
    result = json.loads((tmp_path / "rows.json").read_text())
    overall = {row["chooser"]: row for row in result["overall"]}
    # Four families of 4 weights and 8 values of m, each scored once; random shapes stay in training.
    assert overall["tree"]["problems"] == 4 * 4 * 8
    assert overall["oracle"]["mean_regret"] == 0.0
    assert overall["tree"]["mean_regret"] < overall["vendor"]["mean_regret"]
