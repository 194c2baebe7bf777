"""Trees that change while they are asked, and what they did not know."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aks
from aks.cli.collect import _workloads
from aks.collect.sources import problems_from_csv
from aks.core.device import find_device
from aks.core.errors import ArtifactError, InvalidProblemError
from aks.export import bundle
from aks.ops import OPS
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher, served
from aks.runtime.predictor import Predictor
from tests.selectors import random_selector, write_selector

H200 = find_device("h200")
PROBLEM = {"m": 16, "n": 4096, "k": 4096, "static_weights": True}


def exported(folder: Path, portfolio: int) -> Path:
    """A tree of one leaf, that answers the config at index ``portfolio`` of the portfolio of this seed."""
    selector = random_selector(portfolio, portfolio=8)
    legal: list[Any] = GEMM.space.legal(GEMM.problem_type.from_row(PROBLEM), H200)
    kernels = [config for config in legal if config.num_warps and config.to_row() not in selector["portfolio"]]
    selector["portfolio"][portfolio] = kernels[3 * portfolio].to_row()
    selector["support"] = {"axes": {axis: [1, 100_000] for axis in "mnk"}, "choices": {}}
    leaf = {"feature": -1, "threshold": 0.0, "left": -1, "right": -1, "ranking": [portfolio, 0]}
    leaf |= {"expected_slowdown": [1.0, 1.1], "count": 1, "abstain": False}
    selector["tree"] = {name: [value] for name, value in leaf.items()}
    folder.mkdir(parents=True, exist_ok=True)
    bundle.export(write_selector(folder, selector), folder)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Folders whose trees answer at indices 1 and 2, of other portfolios."""
    folders = exported(tmp_path / "a", 1), exported(tmp_path / "b", 2)
    configs = [Predictor.load(GEMM, path=folder).configs for folder in folders]
    assert configs[0] != configs[1]
    return folders


def test_answers_of_threads_are_of_one_tree(two) -> None:
    predictor = Predictor.load(GEMM, path=two[0])
    answers = {Predictor.load(GEMM, path=folder).predict(**PROBLEM) for folder in two}
    assert len(answers) == 2
    known = {Predictor.load(GEMM, path=folder).configs for folder in two}
    stop, wrong, count = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            now = predictor.current
            if now.configs not in known or now.configs[now.select(**PROBLEM)] is not now.predict(**PROBLEM):
                wrong.append(now)
            if predictor.predict(**PROBLEM) not in answers:
                wrong.append(predictor.version)
            count[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    versions = set()
    for turn in range(60):
        assert predictor.reload(two[(turn + 1) % 2])
        versions.add(predictor.version)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and count[0] > 60 and len(versions) == 2


def test_the_same_version_is_nothing_new_and_counts_go_on(two) -> None:
    predictor = Predictor.load(GEMM, path=two[0])
    predictor.predict(m=200_000, n=64, k=64)
    assert not predictor.reload() and predictor.newer() is None
    assert predictor.reload(two[1])
    predictor.predict(m=200_000, n=64, k=64)
    assert predictor.counts() == {"outside m": 2}
    assert [count for _, count in predictor.missed()] == [2]


def test_a_bad_folder_leaves_the_old_tree(two, tmp_path: Path) -> None:
    predictor = Predictor.load(GEMM, path=two[0])
    before = predictor.current
    broken = shutil.copytree(two[1], tmp_path / "broken")
    (broken / "tree.json").write_text((broken / "tree.json").read_text()[:-20])
    with pytest.raises(ArtifactError):
        predictor.reload(broken)
    other = tmp_path / "mm"
    other.mkdir()
    bundle.export(write_selector(other, random_selector(0, op=OPS["mm"])), other)
    with pytest.raises(ArtifactError, match="wanted 'gemm'"):
        predictor.reload(other)
    h100 = tmp_path / "h100"
    h100.mkdir()
    bundle.export(write_selector(h100, random_selector(0, device="h100-sxm5-80gb")), h100)
    with pytest.raises(ArtifactError, match="is for device"):
        predictor.reload(h100)
    assert predictor.current is before and predictor.configs is before.configs


@pytest.fixture
def serving(two, monkeypatch):
    """A dispatcher of this process for a folder that is ``two[0]`` now, whose kernels are fakes of its tree."""
    folder = two[0]

    def kernels_of(loaded: Any, index: int) -> Any:
        choices = Predictor(loaded, GEMM.config_type).current

        def launch(*call: int) -> int:
            return -1 - choices.select(*PROBLEM.values())

        return SimpleNamespace(launch=launch, take_misses=lambda: ([], []), version=loaded.version)

    monkeypatch.setattr(served, "_loaded", {})
    monkeypatch.setattr(served, "_retired", [])
    monkeypatch.setattr(served, "current_device", lambda index: H200)
    monkeypatch.setattr(served, "kernels_of", kernels_of)
    monkeypatch.setattr(dispatcher.native, "linear_of", lambda kernels, kind: None)
    monkeypatch.setattr(
        served.Predictor, "load", lambda op, device: Predictor(bundle.read_bundle(folder), GEMM.config_type)
    )
    return SimpleNamespace(folder=folder, other=two[1])


def test_a_dispatcher_is_replaced_whole_and_the_old_one_goes_on(serving) -> None:
    old = dispatcher.dispatcher_of(0)
    assert old is not None and dispatcher.dispatcher_of(0) is old and not aks.reload()
    exported(serving.folder, 2)
    assert list(aks.reload()) == ["gemm cuda:0"]
    new = dispatcher.dispatcher_of(0)
    assert new is not None and new is not old and new.predictor is old.predictor
    assert new.kernels.version == new.predictor.version != old.kernels.version  # type: ignore[union-attr]
    # Whoever is inside the old one reads its kernels' answers by its own configs.
    assert old._config(1) != new._config(1) and new._config(1) == new.predictor.configs[1]
    assert new._lock is old._lock and new._spare is old._spare
    assert served._retired == [old] and not aks.reload()


def test_a_predictor_that_was_reloaded_alone_is_caught_up_with(serving) -> None:
    old = dispatcher.dispatcher_of(0)
    assert old is not None
    exported(serving.folder, 2)
    assert old.predictor.reload() and old.version != old.predictor.version
    assert list(aks.reload()) == ["gemm cuda:0"]
    new = dispatcher.dispatcher_of(0)
    assert new is not None and new.version == new.predictor.version


def test_kernels_are_not_given_up(serving, monkeypatch) -> None:
    old = dispatcher.dispatcher_of(0)
    exported(serving.folder, 2)
    monkeypatch.setattr(served, "kernels_of", lambda loaded, index: None)
    with pytest.raises(ArtifactError, match="export it with --bundle"):
        aks.reload()
    assert old is not None and dispatcher.dispatcher_of(0) is old


def test_who_had_no_kernels_goes_on_without(serving, monkeypatch) -> None:
    def broken(loaded: Any, index: int) -> Any:
        raise ArtifactError("the driver is too old")

    monkeypatch.setattr(served, "kernels_of", broken)
    with pytest.warns(UserWarning, match="too old"):
        old = dispatcher.dispatcher_of(0)
    assert old is not None and old.kernels is None
    exported(serving.folder, 2)
    assert list(aks.reload()) == ["gemm cuda:0"]


def test_what_does_not_load_leaves_the_dispatcher(serving, monkeypatch) -> None:
    old = dispatcher.dispatcher_of(0)
    assert old is not None
    exported(serving.folder, 2)
    version = old.predictor.version

    def broken(loaded: Any, index: int) -> Any:
        raise ArtifactError("kernels.bin is truncated")

    monkeypatch.setattr(served, "kernels_of", broken)
    with pytest.raises(ArtifactError, match=r"gemm cuda:0: kernels.bin is truncated. The old trees .* go on"):
        aks.reload()
    assert dispatcher.dispatcher_of(0) is old and old.predictor.version == version


def test_misses_are_written_and_collected(serving, tmp_path: Path) -> None:
    assert aks.write_missed(tmp_path / "missed") == []
    made = dispatcher.dispatcher_of(0)
    assert made is not None and aks.write_missed(tmp_path / "missed") == []
    for m, times in ((200_000, 1), (300_000, 3), (400_000, 2)):
        for _ in range(times):
            made.predictor.predict(m, 64, 128, "fp16", static_weights=True)
    [path] = aks.write_missed(tmp_path / "missed")
    assert path.name == f"gemm-h200-{os.getpid()}-0.csv" and [entry.name for entry in path.parent.iterdir()] == [
        path.name
    ]
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")  # of another process, say
    workloads = _workloads(GEMM, "", path, "", "", "", 10, 0)
    assert workloads[0].problem.to_row()["m"] == 300_000
    assert {workload.problem.to_row()["m"]: workload.count for workload in workloads} == {
        300_000: 3, 400_000: 2, 200_000: 2,
    }  # fmt: skip
    problems = [workload.problem for workload in workloads]
    assert {(p.to_row()["dtype"], p.to_row()["static_weights"], p.to_row()["n"]) for p in problems} == {
        ("fp16", True, 64)
    }
    path.write_text(path.read_text().replace(",3,missed", ",often,missed"))
    with pytest.raises(InvalidProblemError, match="count is 'often'"):
        problems_from_csv(GEMM, path)


@pytest.mark.gpu
def test_a_reload_under_load_on_the_gpu(tmp_path: Path, monkeypatch) -> None:
    """Threads multiply without pause while the tree changes; every result is right."""
    device = aks.current_device()
    folder = tmp_path / "gemm" / device.name
    shutil.copytree(Path(aks.__file__).parents[1] / "models/gemm/h200", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["device"] != device.to_row():
        pytest.skip("the shipped tree is for another GPU")
    monkeypatch.setenv("AKS_MODELS", str(tmp_path))
    served.forget()
    x = torch.randn(8, 2048, device="cuda").bfloat16()
    w = torch.randn(1024, 2048, device="cuda").bfloat16()
    wanted = torch.nn.functional.linear(x, w)
    stop, wrong = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            y = aks.linear(x, w)
            torch.cuda.current_stream().synchronize()
            if not torch.allclose(y, wanted, rtol=5e-2, atol=1.0):
                wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in range(4):
        selector = json.loads((Path(aks.__file__).parents[1] / "models/gemm/h200/selector.json").read_text())
        selector["seed"] = seed
        (tmp_path / "selector.json").write_text(json.dumps(selector))
        bundle.export(write_selector(tmp_path, selector), folder)
        assert list(aks.reload()) == ["gemm cuda:0"]
    stop.set()
    for thread in threads:
        thread.join()
    served.forget()
    assert not wrong
