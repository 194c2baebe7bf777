"""The predictor: found, isolated, safe in threads, abstaining, and never naming an illegal config."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aks
from aks.core.config import Config
from aks.core.device import find_device
from aks.core.errors import ArtifactError, InvalidProblemError, UnknownDeviceError, UnknownOpError
from aks.export import bundle
from aks.ops import OPS
from aks.ops.op import Op
from aks.runtime import Predictor
from aks.runtime.predictor import ILLEGAL_FAVOURITE, MAX_MISSED, UNSAFE_LEAF
from tests.selectors import random_problems, random_selector, write_selector

GEMM = OPS["gemm"]
H200 = find_device("h200")
ROOT = Path(aks.__file__).resolve().parents[1]


PROBLEM = {"m": 48, "n": 4096, "k": 4096}


def config_row(*, legal: dict[str, Any], illegal: dict[str, Any] | None = None) -> dict[str, Any]:
    """The first config that the rules allow for one variation of ``PROBLEM`` and forbid for another."""
    allowed, forbidden = (GEMM.problem_type.from_row(PROBLEM | (change or {})) for change in (legal, illegal))
    for config in GEMM.space.configs[1:]:
        if not GEMM.space.broken_rules(config, allowed, H200) and (
            illegal is None or GEMM.space.broken_rules(config, forbidden, H200)
        ):
            return config.to_row()
    raise LookupError(f"the space has no config that is legal for {legal} and not for {illegal}")


def selector(ranking: list[int], *, abstain: bool = False) -> dict[str, Any]:
    """Portfolio: vendor, a config that needs static weights, one that needs 16-byte alignment, one for anything."""
    made = random_selector(0)
    made["portfolio"] = [
        GEMM.vendor.to_row(),
        config_row(legal={"static_weights": True}, illegal={"static_weights": False}),
        config_row(legal={"alignment": 16}, illegal={"alignment": 8}),
        config_row(legal={"alignment": 2}),
    ]
    made["support"] = {
        "axes": {"m": [1, 8192], "n": [64, 16384], "k": [128, 16384]},
        "choices": {"dtype": ["bf16"], "w_layout": ["nk"]},
    }
    made["tree"] = {
        "feature": [next(i for i, row in enumerate(made["features"]) if row["formula"] == "m"), -1, -1],
        "threshold": [32.5, 0.0, 0.0],
        "left": [1, -1, -1],
        "right": [2, -1, -1],
        "ranking": [None, [0], ranking],
        "expected_slowdown": [None, [1.5], [1.1] * len(ranking)],
        "count": [2, 1, 1],
        "abstain": [False, False, abstain],
    }
    return made


def load(tmp_path: Path, made: dict[str, Any], **kwargs: Any) -> Predictor:
    bundle.export(write_selector(tmp_path, made), tmp_path / "out")
    return Predictor.load("gemm", path=tmp_path / "out", **kwargs)


def test_predicts_a_config(tmp_path: Path):
    predictor = load(tmp_path, selector([3, 0]))
    config = predictor.predict(m=48, n=4096, k=4096)
    assert isinstance(config, Config)
    assert config.to_row() == selector([3, 0])["portfolio"][3]
    assert config.kind != "torch_mm" and config.block_k > 0  # type: ignore[attr-defined]
    assert predictor.select(48, 4096, 4096) == 3
    assert predictor.counts() == {} and predictor.missed() == []


@pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))
def test_an_op_gives_its_own_configs(op: Op, tmp_path: Path):
    bundle.export(write_selector(tmp_path, random_selector(2, op=op)), tmp_path / "out")
    predictor = Predictor.load(op, device="h200", path=tmp_path / "out")
    assert predictor.configs[0] == op.vendor
    assert {type(config) for config in predictor.configs} == {op.config_type}


@pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))
@settings(max_examples=20)
@given(seed=st.integers(0, 10), problem_seed=st.integers(0, 1000))
def test_no_rule_forbids_what_is_predicted(op: Op, seed: int, problem_seed: int, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"legal-{op.name}-{seed}"
    if not folder.exists():
        folder.mkdir()
        bundle.export(write_selector(folder, random_selector(seed, op=op, levels=5)), folder)
    predictor = Predictor.load(op, path=folder)
    for row in problem_rows(op, problem_seed):
        problem = op.problem_type.from_row(row)
        assert not op.space.broken_rules(predictor.predict(**row), problem, predictor.bundle.device)


def problem_rows(op: Op, seed: int) -> list[dict[str, Any]]:
    columns = random_problems(op, 30, np.random.default_rng(seed))
    rows = []
    for index in range(30):
        row = {name: int(column[index]) for name, column in columns.items()}
        for name, choices in op.problem_type.CHOICES.items():
            row[name] = choices[row[name]] if isinstance(choices[0], str) else type(choices[0])(row[name])
        with suppress(InvalidProblemError):  # choices that exclude each other
            op.problem_type.from_row(row)
            rows.append(row)
    return rows


def test_an_illegal_favourite_has_a_successor(tmp_path: Path):
    predictor = load(tmp_path, selector([1, 2, 3, 0]))
    problem = PROBLEM
    assert predictor.select(**problem, static_weights=True) == 1
    assert predictor.counts() == {}
    assert predictor.select(**problem) == 2
    assert predictor.select(**problem, alignment=8) == 3
    assert predictor.predict(**problem, alignment=8) is predictor.configs[3]
    assert predictor.counts() == {ILLEGAL_FAVOURITE: 3}


def test_the_vendor_runs_where_nothing_else_is_legal(tmp_path: Path):
    predictor = load(tmp_path, selector([1, 2, 0]))
    assert predictor.select(**PROBLEM, alignment=4) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"m": 8193}, "outside m"),
        ({"n": 63}, "outside n"),
        ({"k": 2**31 - 1}, "outside k"),
        ({"dtype": "fp16"}, "outside dtype"),
        ({"w_layout": "kn"}, "outside w_layout"),
        ({"m": 8193, "n": 63}, "outside m"),
    ],
)
def test_abstains_outside_the_support(tmp_path: Path, change: dict[str, Any], reason: str):
    predictor = load(tmp_path, selector([3, 0]))
    problem = PROBLEM | change
    assert predictor.predict(**problem) is predictor.configs[0]
    assert predictor.select(**problem) == 0
    assert predictor.counts() == {reason: 2}
    [(missed, count)] = predictor.missed()
    assert count == 2 and {name: missed[name] for name in problem} == problem


def test_abstains_in_an_unsafe_leaf(tmp_path: Path):
    predictor = load(tmp_path, selector([3, 0], abstain=True))
    assert predictor.predict(**PROBLEM).kind == "torch_mm"  # type: ignore[attr-defined]
    assert predictor.counts() == {UNSAFE_LEAF: 1}
    assert predictor.missed()[0][0]["m"] == 48


def test_memory_for_missed_problems_is_bounded(tmp_path: Path):
    predictor = load(tmp_path, selector([3, 0]))
    for m in range(10_000, 10_000 + 2 * MAX_MISSED):
        predictor.predict(m, 64, 128)
    assert len(predictor.missed()) == MAX_MISSED
    assert predictor.counts() == {"outside m": 2 * MAX_MISSED}


@pytest.mark.parametrize("call", ["predict", "select"])
@pytest.mark.parametrize(
    "change",
    [
        {"m": 0},
        {"m": -1},
        {"n": 2**31},
        {"k": "4096"},
        {"k": None},
        {"k": float("nan")},
        {"dtype": "fp8"},
        {"dtype": None},
        {"dtype": ["bf16"]},
        {"alignment": 3},
        {"static_weights": "no"},
    ],
)
def test_what_is_no_problem_is_refused(tmp_path: Path, change: dict[str, Any], call: str):
    predictor = load(tmp_path, selector([3, 0]))
    [(name, value)] = change.items()
    problem = PROBLEM | change
    with pytest.raises((InvalidProblemError, TypeError)) as caught:
        getattr(predictor, call)(**problem)
    if call == "predict":
        assert isinstance(caught.value, InvalidProblemError) and f"{name}={value!r}" in str(caught.value)
    assert predictor.counts() == {}


@pytest.mark.parametrize("value", [True, 16.0, 16.5])
def test_predict_takes_integers_alone(tmp_path: Path, value: Any):
    with pytest.raises(InvalidProblemError, match="must be an integer"):
        load(tmp_path, selector([3, 0])).predict(m=value, n=4096, k=4096)


def test_integers_of_numpy_are_integers(tmp_path: Path):
    predictor = load(tmp_path, selector([3, 0]))
    assert predictor.predict(np.int32(48), np.int64(4096), np.int32(4096)) is predictor.configs[3]
    assert predictor.predict(np.int32(9000), np.int64(4096), np.int32(4096)) is predictor.configs[0]
    assert predictor.counts() == {"outside m": 1}


def test_unknown_arguments_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="layout"):
        load(tmp_path, selector([3, 0])).predict(m=1, n=64, k=128, layout="nk")


def test_threads_agree_and_count_exactly(tmp_path: Path):
    predictor = load(tmp_path, random_selector(4, levels=6))
    rows = problem_rows(GEMM, 0) * 20
    alone = load(tmp_path, random_selector(4, levels=6))
    wanted = [alone.select(**row) for row in rows]
    answers: list[list[int]] = []

    def work() -> None:
        answers.append([predictor.select(**row) for row in rows])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [wanted] * 8
    expected = {reason: 8 * count for reason, count in alone.counts().items() if reason != ILLEGAL_FAVOURITE}
    assert expected
    assert {reason: count for reason, count in predictor.counts().items() if reason != ILLEGAL_FAVOURITE} == expected


ISOLATED = """
import sys
sys.path.insert(0, {root!r})
before = set(sys.modules)
from aks.runtime import Predictor
config = Predictor.load("gemm", device="h200", path={path!r}).predict(m=48, n=4096, k=4096)
assert config.kind != "torch_mm", config
loaded = {{name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names}}
ours = {{name for name in loaded if name in ("aks", "aks.runtime", "aks.runtime.predictor")}}
extra = {{name for name in loaded - ours if not name.startswith("aks.core")}}
assert not extra, extra
print("alone")
"""


def test_needs_the_standard_library_alone(tmp_path: Path):
    load(tmp_path, selector([3, 0]))
    # tree.py and tree.h are for others to include: the predictor never opens, let alone runs, them.
    (tmp_path / "out" / "tree.py").write_text("raise SystemExit('code from an artifact folder ran')")
    (tmp_path / "out" / "tree.h").unlink()
    code = ISOLATED.format(root=str(ROOT), path=str(tmp_path / "out"))
    # -S leaves site-packages out: nothing that is not in the standard library could be imported.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout == "alone\n", done.stderr


def test_finds_models_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load(tmp_path, selector([3, 0]))
    shutil.copytree(tmp_path / "out", tmp_path / "models" / "gemm" / "h200")
    monkeypatch.setenv("AKS_MODELS", str(tmp_path / "models"))
    for device in ("h200", "NVIDIA H200", H200):
        assert Predictor.load("gemm", device=device).bundle.folder == tmp_path / "models" / "gemm" / "h200"


def test_unknown_devices_and_ops_say_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load(tmp_path, selector([3, 0]))
    shutil.copytree(tmp_path / "out", tmp_path / "models" / "gemm" / "h200")
    monkeypatch.setenv("AKS_MODELS", str(tmp_path / "models"))
    with pytest.raises(
        UnknownDeviceError, match=r"(?s)'b300'; there are: .*h200.*aks collect.*aks train --device, aks export"
    ):
        Predictor.load("gemm", device="b300")
    with pytest.raises(UnknownDeviceError, match="not named"):
        Predictor.load("gemm")
    for op in ("conv", "", "../gemm", "*"):
        with pytest.raises(UnknownOpError, match=r"there are trees for: .*fused_linear, gemm"):
            Predictor.load(op, device="h200")


def test_a_tree_in_the_wrong_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load(tmp_path, selector([3, 0]))
    shutil.copytree(tmp_path / "out", tmp_path / "models" / "gemm" / "b300")
    monkeypatch.setenv("AKS_MODELS", str(tmp_path / "models"))
    with pytest.raises(ArtifactError, match=r"is for device .*h200"):
        Predictor.load("gemm", device="b300")


def test_a_partition_of_the_device_is_another_device(tmp_path: Path):
    partition = dataclasses.replace(H200, sm_count=32)
    with pytest.raises(ArtifactError, match="is for device"):
        load(tmp_path, selector([3, 0]), device=partition)


def test_a_partition_has_a_tree_of_its_own(tmp_path: Path, monkeypatch):
    for name in ("h200", "h200-64sm"):
        made = write_selector(tmp_path, random_selector(1, device=find_device(name)))
        bundle.export(made, tmp_path / "models" / "gemm" / name)
    monkeypatch.setenv("AKS_MODELS", str(tmp_path / "models"))
    assert Predictor.load("gemm", device="h200", sm_count=64).bundle.device == find_device("h200-64sm")
    assert Predictor.load("gemm", device=find_device("h200"), sm_count=64).tree.device == "h200-64sm"
    assert Predictor.load("gemm", device="h200", sm_count=132).tree.device == "h200"
    with pytest.raises(UnknownDeviceError, match=r"no exported gemm tree for device 'h200-40sm'.*h200-64sm.*--device"):
        Predictor.load("gemm", device="h200", sm_count=40)
    with pytest.raises(UnknownDeviceError, match="no partition of 133 SMs"):
        Predictor.load("gemm", device="h200", sm_count=133)
    with pytest.raises(UnknownDeviceError, match="part of which GPU"):
        Predictor.load("gemm", sm_count=64)
