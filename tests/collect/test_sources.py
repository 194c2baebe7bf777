"""Problems from a file or a model: what fits is taken, what does not is told with its line."""

from __future__ import annotations

import sys

import pytest

from aks.collect.sources import configs_from_csv, problems_from_csv, problems_from_model
from aks.core.errors import DataError, InvalidProblemError
from aks.ops import OPS

OP = OPS["gemm"]


@pytest.fixture
def csv_file(tmp_path):
    def write(text: str):
        path = tmp_path / "shapes.csv"
        path.write_text(text)
        return path

    return write


def test_a_csv_gives_problems_with_defaults_for_the_rest(csv_file):
    workloads = problems_from_csv(OP, csv_file("m, n,k\n16,4096,4096\n\n1,49155,64\n16,4096,4096\n"))
    assert [workload.families for workload in workloads] == [("shapes",)] * 2
    rows = [workload.problem.to_row() for workload in workloads]
    assert [(row["m"], row["alignment"], row["static_weights"], row["dtype"]) for row in rows] == [
        (16, 16, True, "bf16"),
        (1, 2, True, "bf16"),
    ]


def test_a_csv_may_name_every_field(csv_file):
    text = "k,n,m,dtype,w_layout,alignment,static_weights\n64,128,3,FP16,kn,8,false\n64,128,3,fp16,kn,8,1\n"
    rows = [workload.problem.to_row() for workload in problems_from_csv(OP, csv_file(text))]
    first = {"m": 3, "n": 128, "k": 64, "dtype": "fp16", "w_layout": "kn", "alignment": 8, "static_weights": False}
    assert rows == [first, first | {"static_weights": True}]


def test_a_csv_may_name_families(csv_file):
    workloads = problems_from_csv(OP, csv_file("families,m,n,k\nllama-3; phi,1,64,128\n,2,64,128\n"))
    assert [workload.families for workload in workloads] == [("llama-3", "phi"), ()]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DataError, "is empty"),
        ("m,n,k\n", DataError, "no problems"),
        ("m,n,k,colour\n1,2,3,red\n", DataError, r"line 1: unknown column 'colour'.*static_weights"),
        ("m,n\n1,2\n", DataError, "line 1"),
        ("m,n,k,k\n1,2,3,3\n", DataError, "none twice"),
        ("m,n,k\n1,2,3\n4,5.5,6\n", InvalidProblemError, r"line 3: n is '5.5'.*integer"),
        ("m,n,k\n-1,2,3\n", InvalidProblemError, r"line 2: .*m=-1"),
        ("m,n,k\n0,2,3\n", InvalidProblemError, "m=0"),
        ("m,n,k\n99999999999,2,3\n", InvalidProblemError, "line 2"),
        ("m,n,k\n1,2\n", InvalidProblemError, "line 2: 2 cells"),
        ("m,n,k\n1,2,\n", InvalidProblemError, "k is ''"),
        ("m,n,k,dtype\n1,2,3,fp13\n", InvalidProblemError, r"line 2: dtype is 'fp13'.*bf16"),
        ("m,n,k,alignment\n1,2,3,32\n", InvalidProblemError, "alignment is '32'"),
    ],
)
def test_a_csv_at_fault_is_told_with_its_line(csv_file, text, error, message):
    with pytest.raises(error, match=message):
        problems_from_csv(OP, csv_file(text))


def test_a_csv_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        problems_from_csv(OP, tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"m,n,k\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot read"):
        problems_from_csv(OP, tmp_path / "binary.csv")


MODEL = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(nn.Linear(96, 288), nn.ReLU(), nn.Sequential(nn.Linear(288, 33), nn.Linear(96, 288)))

def huge():
    layer = nn.Linear(1 << 20, 1 << 20)
    assert layer.weight.is_meta
    return layer

def without_linear():
    return nn.ReLU()

def no_model():
    return 3

def broken():
    raise RuntimeError("no weights here")

number = 5
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A module in the working directory, which is not on the path of an installed command."""
    (tmp_path / "aks_test_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "aks_test_model", raising=False)
    return "aks_test_model"


def test_linear_layers_of_a_model_become_problems(model):
    workloads = problems_from_model(OP, f"{model}:tiny", iter([1, 16]), dtype="fp16")
    rows = [workload.problem.to_row() for workload in workloads]
    assert [(row["m"], row["n"], row["k"]) for row in rows] == [
        (1, 33, 288),
        (16, 33, 288),
        (1, 288, 96),
        (16, 288, 96),
    ]
    assert {workload.families for workload in workloads} == {("tiny",)}
    assert [row["alignment"] for row in rows] == [2, 2, 16, 16]
    assert {(row["static_weights"], row["dtype"]) for row in rows} == {(True, "fp16")}


def test_a_model_takes_no_memory(model):
    (workload,) = problems_from_model(OP, f"{model}:huge", [1])
    assert workload.problem.to_row()["n"] == 1 << 20


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("aks_test_model", "must be 'module:callable'"),
        ("aks_test_model:", "must be 'module:callable'"),
        ("aks_test_model:nothing", "cannot import"),
        ("no_such_module:model", "cannot import"),
        ("aks_test_model:number", "must be callable"),
        ("aks_test_model:no_model", "return an nn.Module"),
        ("aks_test_model:without_linear", "no nn.Linear"),
        ("aks_test_model:broken", "no weights here"),
    ],
)
def test_a_bad_factory_is_told(model, factory, message):
    with pytest.raises(InvalidProblemError, match=message):
        problems_from_model(OP, factory, [1])


def test_m_outside_the_problem_is_told(model):
    with pytest.raises(InvalidProblemError, match="m=-4"):
        problems_from_model(OP, f"{model}:tiny", [-4])


def test_a_plan_names_configs_by_their_keys(csv_file):
    keys = [config.key() for config in OP.space.configs[3:5]]
    path = csv_file(f"m,n,k,configs\n16,4096,4096,{keys[0]}; {keys[1]}\n1,64,128,{keys[1]}\n")
    problems = [workload.problem for workload in problems_from_csv(OP, path)]
    assert configs_from_csv(OP, path) == {
        problems[0]: list(OP.space.configs[3:5]),
        problems[1]: [OP.space.configs[4]],
    }
    assert configs_from_csv(OP, csv_file("m,n,k\n16,4096,4096\n")) is None
    with pytest.raises(DataError, match=r"line 2: 'fast' is no config of gemm.*--plan-only"):
        configs_from_csv(OP, csv_file("m,n,k,configs\n16,4096,4096,fast\n"))
