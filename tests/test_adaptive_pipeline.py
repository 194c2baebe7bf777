"""A user's own kernel from a CSV file of problems to a launch, through the commands and stages that ops of aks take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from aks.cli import main
from aks.collect.runner import collect
from aks.collect.sources import problems_from_csv
from aks.collect.workloads import workload_problems
from aks.core.device import find_device
from aks.core.errors import DataError, InvalidProblemError
from aks.core.measurement import Regime
from aks.data.parquet import read_frame
from aks.ops import find_op
from aks.runtime.predictor import Predictor
from aks.train.selector import train
from tests.collect.scene import ENVIRONMENT
from tests.integrations.own_kernels import latency_us
from tests.train.conftest import OPTIONS

OWN = "tests.integrations.own_kernels:scale"
OP: Any = find_op(OWN)
H200 = find_device("h200")
FAMILIES = {"alpha": (128, 300), "beta": (768, 1024), "gamma": (2048, 4096), "delta": (5120, 8192)}
ROWS = (1, 3, 16, 64, 256, 300, 1024, 4096)


@pytest.fixture(scope="module")
def aks(tmp_path_factory) -> Any:
    """A call of ``aks`` that must go well."""

    def call(*words: str | Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["aks", *map(str, words)])
            with pytest.raises(SystemExit) as caught:
                main()
        assert not caught.value.code

    return call


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """What a worker process measured on the made-up GPU."""
    folder = tmp_path_factory.mktemp("own")
    lines = [f"{rows},{columns},bf16,{family}" for family in FAMILIES for columns in FAMILIES[family] for rows in ROWS]
    (folder / "shapes.csv").write_text("\n".join(["rows,columns,dtype,families", *lines]))
    summary = collect(
        OP,
        problems_from_csv(OP, folder / "shapes.csv"),
        out=folder / "own.db",
        device=H200,
        environment=ENVIRONMENT,
        regimes=[Regime.COLD, Regime.WARM],
        measure="tests.integrations.own_kernels:measure",
        quiet=True,
    )
    assert summary.statuses.keys() == {"ok"} and summary.races == 2 * len(lines)
    return folder / "own.db"


@pytest.fixture(scope="module")
def model(store, aks) -> Path:
    """The exported tree."""
    folder = store.parent
    aks("data", "merge", store, "--out", folder / "own.parquet", "--op", OWN)
    result = train(
        OP,
        folder / "own.parquet",
        folder / "trained",
        held_out=["gamma"],
        options=OPTIONS,
        track=False,
        command="aks train",
    )
    assert result.metrics["mean_regret"] < result.scores["vendor"]["mean_regret"]
    aks("export", result.selector_path, "--op", OWN, "--out", folder / "models" / "scale" / "h200")
    return folder / "models" / "scale" / "h200"


def test_measurements_have_the_schema_of_all_ops(store, model) -> None:
    frame = read_frame(store.parent / "own.parquet", OP)
    assert {"rows", "columns", "dtype", "BLOCK", "num_warps", "latency_us", "sm_count", "triton"} <= {*frame.columns}
    assert set(frame["op"]) == {"scale"} and set(frame["regime"]) == {"cold", "warm"}
    row = frame[(frame["rows"] == 3) & (frame["BLOCK"] == 256) & (frame["num_warps"] == 4)].iloc[0]
    problem = OP.problem_type.from_row(row.to_dict())
    assert row["latency_us"] == pytest.approx(latency_us(problem, OP.vendor), rel=0.01)


def test_collecting_goes_on_where_it_ended(store) -> None:
    summary = collect(
        OP,
        problems_from_csv(OP, store.parent / "shapes.csv"),
        out=store,
        device=H200,
        environment=ENVIRONMENT,
        measure="tests.collect.fakes:always_raises",
        quiet=True,
    )
    assert summary.races == 0


def test_the_tree_chooses_better_than_the_default_on_unseen_families(model) -> None:
    predict = Predictor.load(OP, path=model).predict
    chosen, default = 0.0, 0.0
    for columns in FAMILIES["gamma"]:
        for rows in ROWS:
            problem = OP.problem_type(rows, columns)
            chosen += latency_us(problem, predict(rows, columns))
            default += latency_us(problem, OP.vendor)
    assert chosen < 0.95 * default


def test_evaluate_and_explain_take_a_users_op(store, model, aks, capsys) -> None:
    aks("evaluate", "--op", OWN, "--data", store.parent / "own.parquet", "--model", model, "--no-ladder")
    assert "held out: gamma" in capsys.readouterr().out
    aks("explain", OWN, "rows=16", "columns=4096", "--model", model)
    assert "scale on h200: rows=16 columns=4096 dtype=bf16" in capsys.readouterr().out
    aks("data", "problems", store.parent / "own.parquet", "--out", store.parent / "again.csv", "--op", OWN)
    assert len(problems_from_csv(OP, store.parent / "again.csv")) == len(ROWS) * 8


def test_a_users_op_has_no_chain_and_no_layers_of_models() -> None:
    with pytest.raises(InvalidProblemError, match="scale cannot be measured in regime chain; choose of cold, warm"):
        collect(OP, [], out="none.db", device=H200, environment=ENVIRONMENT, regimes=[Regime.CHAIN])
    with pytest.raises(InvalidProblemError, match="which linear layers of models do not; name its problems in a CSV"):
        workload_problems(OP, num_problems=4)
    with pytest.raises(DataError, match="has aks_op gemm"):
        read_frame("data/gemm/h200.parquet", OP)
