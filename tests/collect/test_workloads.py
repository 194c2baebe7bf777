"""Problems to collect: true shapes, spread evenly, the same for the same seed."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest

from aks.collect import workloads
from aks.collect.sources import linear_problem
from aks.collect.workloads import MAX_BYTES, MAX_FLOPS, SAMPLE_FAMILY, family_shapes, known_families, workload_problems
from aks.core import formula
from aks.core.errors import InvalidProblemError
from aks.ops import OPS

OP = OPS["gemm"]
MODELS = [(family, model) for family, models in known_families().items() for model in models]


@pytest.fixture(scope="module")
def drawn():
    return workload_problems(OP, num_problems=1500, seed=1)


def axis(drawn, name: str) -> list[int]:
    return [getattr(workload.problem, name) for workload in drawn]


def test_there_are_families_enough_to_hold_some_out():
    assert len(known_families()) >= 14
    assert len({model["name"] for _, model in MODELS}) == len(MODELS)


@pytest.mark.parametrize(
    ("family", "model"), MODELS, ids=lambda value: value["name"] if isinstance(value, dict) else ""
)
def test_dimensions_of_a_model_add_up_to_its_published_size(family, model):
    known = {"name", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "gated", "linear"}
    assert set(model) <= known | {"layers", "tied", "params"}
    if "params" not in model:
        return
    hidden, heads, head_dim = model["hidden"], model["heads"], model["head_dim"]
    attention = hidden * head_dim * (2 * heads + 2 * model["kv_heads"])
    feed_forward = hidden * model["intermediate"] * (3 if model.get("gated", True) else 2)
    embeddings = model["vocab"] * hidden * (1 if model.get("tied") else 2)
    total = model["layers"] * (attention + feed_forward) + embeddings
    assert total / 1e9 == pytest.approx(model["params"], rel=0.005)


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        # qkv, o, gate and up, down, lm_head of Llama-3.1-8B on one GPU, then one of 8
        ("llama-3", [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]),
        ("llama-3", [(768, 4096), (4096, 512), (3584, 4096), (4096, 1792), (16032, 4096)]),
        ("gpt-oss", [(5120, 2880), (2880, 4096), (201088, 2880)]),
        # 2 kv heads on 8 ranks: 4 q heads and a copy of one k and one v head each
        ("glm-4", [((4 + 2) * 128, 4096)]),
        ("deepseek", [(2112, 7168), (24576 // 8, 1536), (7168, 16384 // 8)]),
        ("falcon", [(4672, 4544), (4544, 4544), (18176 // 8, 4544)]),
        ("granite", [(49155, 4096)]),
    ],
)
def test_shapes_are_those_of_the_models(family, shapes):
    assert set(shapes) <= set(family_shapes([family]))


def test_layers_that_tensor_parallelism_cannot_divide_are_left_out():
    # 71 heads, and a vocabulary that is odd
    assert set(family_shapes(["falcon"], shards=[2])).isdisjoint({(4672 // 2, 4544), (4544, 4544 // 2)})
    assert 49155 // 2 not in {n for n, _ in family_shapes(["granite"], shards=[2])}


def test_a_shape_of_several_families_has_all_of_them():
    owners = family_shapes()[4096, 4096]
    assert {"llama-2", "llama-3", "mistral", "qwen-3", "yi"} <= set(owners)
    assert owners == tuple(sorted(owners))


def test_unknown_families_are_named():
    with pytest.raises(InvalidProblemError, match=r"'lama'.*llama-2.*sample"):
        family_shapes(["lama"])


def test_the_draw_is_decided_by_the_seed(drawn):
    assert drawn == workload_problems(OP, num_problems=1500, seed=1)
    other = workload_problems(OP, num_problems=1500, seed=2)
    assert {workload.problem for workload in drawn} != {workload.problem for workload in other}


def test_problems_differ_and_are_as_many_as_asked_for(drawn):
    assert len({workload.problem for workload in drawn}) == len(drawn) == 1500


def test_every_family_has_its_share(drawn):
    counts = Counter(family for workload in drawn for family in workload.families)
    assert set(counts) == {*known_families(), SAMPLE_FAMILY}
    assert counts.pop(SAMPLE_FAMILY) == pytest.approx(300, abs=3)
    assert min(counts.values()) >= 1200 // len(known_families())


def test_every_shape_of_a_family_is_used_before_any_is_used_again():
    drawn = workload_problems(OP, families=["gpt-oss"], num_problems=100)
    counts = Counter((workload.problem.to_row()["n"], workload.problem.to_row()["k"]) for workload in drawn)
    assert set(counts) == set(family_shapes(["gpt-oss"]))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_m_is_spread_as_promised(drawn):
    m = axis(drawn, "m")
    share = len(m) / 100
    assert (min(m), max(m) > 12000) == (1, True)
    assert 12 <= sum(value == 1 for value in m) / share <= 18
    assert 42 <= sum(value <= 16 for value in m) / share <= 48
    assert 27 <= sum(17 <= value <= 256 for value in m) / share <= 33
    assert sum(value % 2 for value in m) / share >= 30
    small = sorted({value for value in m if value <= 128})
    assert max(after - before for before, after in pairwise(small)) <= 4
    assert set(range(1, 33)) <= set(small)


def test_every_family_sees_small_and_large_m(drawn):
    for family in known_families():
        m = [workload.problem.to_row()["m"] for workload in drawn if family in workload.families]
        assert min(m) == 1, family
        assert sum(value > 256 for value in m) >= 0.1 * len(m), family


def test_alignment_is_that_of_contiguous_rows(drawn):
    for workload in drawn:
        row = workload.problem.to_row()
        assert row["alignment"] == max(a for a in (2, 4, 8, 16) if 2 * row["n"] % a == 0 and 2 * row["k"] % a == 0)
        assert row["static_weights"] is True
    sample = [workload.problem.to_row() for workload in drawn if workload.families == (SAMPLE_FAMILY,)]
    assert {row["alignment"] for row in sample} == {2, 4, 8, 16}
    assert sum(row["k"] % 64 != 0 or row["n"] % 64 != 0 for row in sample) > len(sample) / 4


def test_memory_and_work_stay_affordable(drawn):
    for workload in drawn:
        variables = workload.problem.variables()
        assert formula.compile_python(OP.bytes_moved)(variables) <= MAX_BYTES
        assert formula.compile_python(OP.flops)(variables) <= MAX_FLOPS


def test_dtypes_take_turns():
    drawn = workload_problems(OP, dtypes=("bf16", "fp16"), num_problems=200)
    assert Counter(workload.problem.to_row()["dtype"] for workload in drawn) == {"bf16": 100, "fp16": 100}
    with pytest.raises(InvalidProblemError, match="fp13"):
        workload_problems(OP, dtypes=("fp13",), num_problems=2)


def test_the_sample_alone():
    drawn = workload_problems(OP, families=[SAMPLE_FAMILY], num_problems=50)
    assert {workload.families for workload in drawn} == {(SAMPLE_FAMILY,)}
    assert all(64 <= side <= 32768 for name in ("n", "k") for side in axis(drawn, name))


def test_more_problems_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(workloads, "_M_STRATA", ((1.0, 1, 2),))
    with pytest.raises(InvalidProblemError, match="fewer problems or more families"):
        workload_problems(OP, families=["gpt-oss"], num_problems=1000)


def test_a_linear_layer_has_static_weights_and_its_own_alignment():
    problem = linear_problem(OP, 3, 49155, 4096, "fp16")
    assert problem.to_row() == {
        "m": 3,
        "n": 49155,
        "k": 4096,
        "dtype": "fp16",
        "w_layout": "nk",
        "alignment": 2,
        "static_weights": True,
    }
    assert math.gcd(16, 2 * 49155) == 2
