"""The benchmark runs and gives positive figures; how large they are is no business of a test."""

from __future__ import annotations

import random
import shutil

import pytest

from aks.evaluate import bench
from aks.runtime.predictor import Predictor
from tests.evaluate.stand_in import write_models


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "_PYTHON_CALLS", 14)
    monkeypatch.setattr(bench, "_C_ROUNDS", 2)


def test_bench_measures_python_and_c_where_there_is_a_compiler(tmp_path, quick):
    result = bench.bench_predict(write_models(tmp_path))
    assert set(result) == ({"Python", "C"} if shutil.which("cc") else {"Python"})
    assert all(0 < value < 1e9 for value in result.values())


def test_bench_without_a_compiler_measures_python_alone(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    assert set(bench.bench_predict(write_models(tmp_path))) == {"Python"}


def test_drawn_problems_lie_in_the_support(tmp_path):
    tree = Predictor.load("gemm", path=write_models(tmp_path)).tree
    rng = random.Random(0)
    drawn = [bench.draw_problem(tree, rng) for _ in range(200)]
    assert not any(tree.outside(problem) for problem in drawn)
    assert min(problem["m"] for problem in drawn) < 8 and max(problem["m"] for problem in drawn) > 512
