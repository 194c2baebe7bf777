"""Explanations: the same answer as the predictor's, with the path and the reasons."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aks.core.errors import ArtifactError
from aks.ops import OPS
from aks.runtime.explain import explain
from tests.runtime.test_predictor import PROBLEM, load, problem_rows, selector
from tests.selectors import random_selector

GEMM = OPS["gemm"]


def test_explanation_agrees_with_the_predictor_and_counts_nothing(tmp_path: Path):
    predictor = load(tmp_path, random_selector(4, levels=6))
    rows = problem_rows(GEMM, 1)
    explained = [explain(predictor, GEMM, GEMM.problem_type.from_row(row)) for row in rows]
    assert predictor.counts() == {}
    assert [e.chosen.to_row() for e in explained] == [predictor.predict(**row).to_row() for row in rows]
    for e in explained:
        legal = [candidate.config for candidate in e.candidates if candidate.legal]
        assert e.chosen == (GEMM.vendor if e.outside else legal[0])


def test_explains_path_ranking_and_what_is_illegal(tmp_path: Path):
    predictor = load(tmp_path, selector([1, 2, 3, 0]))
    e = explain(predictor, GEMM, GEMM.problem_type.from_row(PROBLEM | {"alignment": 8}))
    [step] = e.path
    assert (step.feature.name, step.value, step.threshold, step.left) == ("m", 48, 32, False)
    assert [candidate.legal for candidate in e.candidates] == [False, False, True, True]
    assert e.expected_slowdown == 1.1 and e.count == 1 and not e.outside
    text = str(e)
    for part in ("m = 48 >  32", "must be static", "16-byte", "inside", "expected 1.100x"):
        assert part in text


def test_says_what_a_feature_is_unless_the_op_now_computes_another(tmp_path: Path):
    made = selector([3, 0])
    made["tree"]["feature"][0] = [row["name"] for row in made["features"]].index("weight_l2_percent")
    predictor = load(tmp_path, made)
    assert predictor.tree.features[0].doc == ""
    problem = GEMM.problem_type.from_row(PROBLEM)
    assert "(weight bytes as a share of L2)" in str(explain(predictor, GEMM, problem))
    features = tuple(dataclasses.replace(feature, formula="m + 1") for feature in GEMM.features)
    assert "weight bytes" not in str(explain(predictor, dataclasses.replace(GEMM, features=features), problem))


def test_explains_what_lies_outside(tmp_path: Path):
    predictor = load(tmp_path, selector([3, 0]))
    e = explain(predictor, GEMM, GEMM.problem_type.from_row(PROBLEM | {"m": 9000, "dtype": "fp16"}))
    assert e.chosen == GEMM.vendor and e.expected_slowdown is None
    assert e.outside == ("m=9000 is outside 1..8192", "dtype=fp16 is outside bf16")
    assert "outside, so the vendor runs" in str(e)


def test_explains_an_unsafe_leaf(tmp_path: Path):
    predictor = load(tmp_path, selector([3, 0], abstain=True))
    e = explain(predictor, GEMM, GEMM.problem_type.from_row(PROBLEM))
    assert e.abstain and e.chosen == GEMM.vendor and "abstains" in str(e)


def test_another_space_is_refused(tmp_path: Path):
    changed = dataclasses.replace(GEMM, space=dataclasses.replace(GEMM.space, revision=GEMM.space.revision + 1))
    with pytest.raises(ArtifactError, match="config space"):
        explain(load(tmp_path, selector([3, 0])), changed, GEMM.problem_type.from_row({"m": 1, "n": 64, "k": 128}))
