"""Sentinels: which they are, what is refused, and when a tree is said not to fit."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import aks
from aks.cli import main
from aks.collect.outcome import WorkerPoisonedError
from aks.core.errors import ArtifactError
from aks.core.measurement import Regime
from aks.core.record import Environment
from aks.evaluate.doctor import (
    SENTINELS_FILE,
    Recorded,
    carry_sentinels,
    choose_sentinels,
    examine,
    read_sentinels,
    regime_of,
    write_sentinels,
)
from aks.ops import OPS
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.runtime.predictor import Predictor
from tests.kernels import export_fake

MODELS = Path(aks.__file__).parents[1] / "models"
DATASETS = {"data/gemm/h200.parquet": "1f" * 32}
NOW = Environment("1", "13.0", "13.1", "2.11", "3.6", "3.12")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "gemm/h200", tmp_path / "tree"))


def rows(predictor: Predictor) -> list[dict]:
    """Measurements of 60 problems: of each the tree's choice at 10 us and the vendor's call at 12."""
    found = []
    for m in range(1, 61):
        problem = GemmProblem(m, 4096, 4096, static_weights=True)
        for config, latency in ((predictor.predict(**problem.to_row()), 10.0), (GEMM.vendor, 12.0)):
            row = {**problem.to_row(), **config.to_row(), "status": "ok", "latency_us": latency, "measured_at": "2026"}
            found.append(row | asdict(NOW) | {"regime": "cold"})
            found.append(found[-1] | {"regime": "chain", "latency_us": 2 * latency, "measured_at": "2027"})
    return found


def sentinels(predictor: Predictor, count: int = 30) -> Recorded:
    return choose_sentinels(GEMM, predictor, rows(predictor), DATASETS, count)


def test_sentinels_are_spread_over_what_the_tree_chooses_itself(folder: Path) -> None:
    predictor = Predictor.load(GEMM, path=folder)
    recorded = sentinels(predictor, 10)
    chosen = recorded.sentinels
    sizes = [one.problem.to_row()["m"] for one in chosen]
    own = [m for m in range(1, 61) if predictor.predict(m, 4096, 4096, static_weights=True) != GEMM.vendor]
    assert len(chosen) == 10 and sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (own[0], own[-1])
    assert all(one.config != GEMM.vendor and (one.config_us, one.vendor_us) == (10.0, 12.0) for one in chosen)
    assert (recorded.environment, recorded.regime, recorded.datasets) == (NOW, Regime.COLD, DATASETS)
    with pytest.raises(ArtifactError, match="chooses nothing of its own"):
        choose_sentinels(GEMM, predictor, [row | {"status": "raced_out"} for row in rows(predictor)], DATASETS)


def test_sentinels_are_of_the_regime_that_the_tree_was_trained_for(folder: Path) -> None:
    shutil.copytree(MODELS / "chain/gemm/h200", folder, dirs_exist_ok=True)
    predictor = Predictor.load(GEMM, path=folder)
    recorded = sentinels(predictor)
    assert recorded.regime == Regime.CHAIN
    assert {(one.config_us, one.vendor_us) for one in recorded.sentinels} == {(20.0, 24.0)}
    with pytest.raises(ArtifactError, match="in regime 'chain', for which it was trained"):
        choose_sentinels(GEMM, predictor, [row for row in rows(predictor) if row["regime"] == "cold"], DATASETS)
    write_sentinels(predictor, recorded)
    assert read_sentinels(GEMM, folder) == recorded
    regimes = set()

    def measure(problem, configs, regime):
        regimes.add(regime)
        return dict(zip(configs, (24.0, 20.0), strict=True))

    assert examine(GEMM, recorded, NOW, measure).is_fit and regimes == {Regime.CHAIN}


def test_a_manifest_without_a_regime_is_refused(folder: Path) -> None:
    predictor = Predictor.load(GEMM, path=folder)
    predictor.bundle.manifest["regime"] = "tepid"
    with pytest.raises(ArtifactError, match="is of regime 'tepid'; known: cold, warm, chain"):
        regime_of(predictor)


def test_they_are_read_as_written_for_this_tree_alone(folder: Path) -> None:
    predictor = Predictor.load(GEMM, path=folder)
    recorded = sentinels(predictor)
    path = write_sentinels(predictor, recorded)
    assert read_sentinels(GEMM, folder) == recorded
    text = path.read_text()
    for broken in (
        text[:-30],
        text.replace('"config_us"', '"us"'),
        text.replace("aks-sentinels", "other"),
        text.replace('"regime": "cold"', '"regime": "chain"'),
        text.replace('"version": 2', '"version": 1'),
        text.replace('"config_us": 10.0', '"config_us": 30.0'),
    ):
        path.write_text(broken)
        with pytest.raises(ArtifactError, match="aks data sentinels"):
            read_sentinels(GEMM, folder)
    path.write_text(text)
    assert carry_sentinels(folder, Path(shutil.copytree(MODELS / "gemm/h200", folder.parent / "same")))
    assert read_sentinels(GEMM, folder.parent / "same") == recorded
    assert not carry_sentinels(folder, MODELS / "rms_norm/h200")
    path.write_text("[")
    assert not carry_sentinels(folder, folder)
    path.write_text(text)
    (folder / "tree.json").write_text("{}")
    with pytest.raises(ArtifactError, match="of another tree"):
        read_sentinels(GEMM, folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"has no {SENTINELS_FILE}"):
        read_sentinels(GEMM, folder)


@pytest.mark.parametrize(
    ("op", "name", "regime"),
    [
        ("gemm", "gemm/h200", Regime.COLD),
        ("fused_linear", "fused_linear/h200", Regime.COLD),
        ("rms_norm", "rms_norm/h200", Regime.COLD),
        ("gemm", "chain/gemm/h200", Regime.CHAIN),
    ],
)
def test_shipped_trees_have_theirs(op: str, name: str, regime: Regime) -> None:
    predictor = Predictor.load(OPS[op], device="h200", path=MODELS / name)
    recorded = read_sentinels(OPS[op], MODELS / name)
    assert len(recorded.sentinels) == 30 and recorded.environment.driver and recorded.regime == regime
    assert all(predictor.predict(**one.problem.to_row()) == one.config for one in recorded.sentinels)
    dataset = predictor.bundle.manifest["dataset"]
    assert recorded.datasets == {dataset["path"]: dataset["sha256"]}


def examined(folder: Path, config_us, vendor_us=lambda place: 12.0, present: Environment = NOW):
    """A checkup where the sentinel at ``place`` takes so long."""
    chosen = sentinels(Predictor.load(GEMM, path=folder))
    place = iter(range(len(chosen.sentinels)))

    def measure(problem, configs, regime):
        at = next(place)
        return dict(zip(configs, (vendor_us(at), config_us(at)), strict=True))

    return examine(GEMM, chosen, present, measure)


def test_noise_is_no_drift(folder: Path) -> None:
    found = examined(folder, lambda at: 10.0 + 0.3 * (at % 3 - 1), lambda at: 12.0 + 0.3 * (at % 2))
    assert found.is_fit and not found.remarks and found.slower == 0
    assert found.latency_ratio == 1.0 and len(found.findings) == 30


def test_versions_are_told_but_no_fault(folder: Path) -> None:
    found = examined(folder, lambda at: 10.0, present=replace(NOW, driver="2"))
    assert found.is_fit and found.remarks == ["driver was 1, is 2"]


@pytest.mark.parametrize(
    ("config_us", "vendor_us", "fault"),
    [
        (lambda at: 12.0, lambda at: 14.4, "choices take 1.20 times"),
        (lambda at: 10.0, lambda at: 10.5, "the gain over the vendor's calls is 0.875"),
        (lambda at: 13.0 if at % 5 == 0 else 10.0, lambda at: 12.0, "choices are more than 5% slower"),
        (lambda at: "wrong result: NaN" if at == 3 else 10.0, lambda at: 12.0, "wrong result: NaN"),
        (lambda at: "failed", lambda at: 12.0, "failed"),
        (lambda at: 11.8 if at % 5 == 0 else 10.0, lambda at: 12.0, "6 of 30 choices lost more than 10%"),
    ],
    ids=["slower GPU", "faster vendor", "some lose", "one is wrong", "none runs", "some lose their gain"],
)
def test_what_does_not_fit_is_said(folder: Path, config_us, vendor_us, fault: str) -> None:
    found = examined(folder, config_us, vendor_us)
    assert not found.is_fit and any(fault in one for one in found.faults), found.faults


def test_what_faults_is_a_finding_and_what_was_measured_is_kept(folder: Path) -> None:
    def measure(problem, configs, regime):
        if problem.to_row()["m"] > 20:
            raise WorkerPoisonedError("illegal memory access")
        return dict(zip(configs, (12.0, 10.0), strict=True))

    found = examine(GEMM, sentinels(Predictor.load(GEMM, path=folder)), NOW, measure)
    assert not found.is_fit and "illegal memory access" in found.faults[0]
    assert any(one.config_us == 10.0 for one in found.findings)


def test_one_loser_is_noise(folder: Path) -> None:
    found = examined(folder, lambda at: 13.0 if at == 4 else 10.0)
    assert found.is_fit and found.slower == 1


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_the_command_says_and_exits_by_what_it_found(monkeypatch, capsys, tmp_path: Path, factor: float) -> None:
    recorded = {
        (one.problem, config): latency
        for one in read_sentinels(GEMM, MODELS / "gemm/h200").sentinels
        for config, latency in ((one.config, one.config_us), (GEMM.vendor, one.vendor_us))
    }

    def timed(op, device):
        return lambda problem, configs, regime: {config: factor * recorded[problem, config] for config in configs}

    monkeypatch.setattr(sys.modules["aks.cli.doctor"], "_timed", timed)
    monkeypatch.setattr("aks.core.device.current_device", lambda: aks.find_device("h200"))
    monkeypatch.setattr("aks.collect.environment.current_environment", lambda: NOW)
    monkeypatch.setattr(sys, "argv", ["aks", "doctor", "--json", str(tmp_path / "doctor.json")])
    with pytest.raises(SystemExit) as caught:
        main()
    out = capsys.readouterr().out
    assert bool(caught.value.code) == (factor > 1)
    assert ("\nfits" in out) == (factor == 1) and f"choices {factor:.3f}, vendor {factor:.3f}" in out
    assert "note: torch was 2.11.0+cu130, is 2.11" in out and "the folder has no kernels" in out
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert len(document["findings"]) == 30 and bool(document["faults"]) == (factor > 1)


def test_a_bundle_without_the_native_module_is_a_fault_that_says_what_it_costs(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    bundle = export_fake(tmp_path, json.loads((MODELS / "gemm/h200/selector.json").read_text()))
    assert carry_sentinels(MODELS / "gemm/h200", bundle)
    recorded = read_sentinels(GEMM, bundle)
    latencies = {(one.problem, one.config): one.config_us for one in recorded.sentinels}
    vendor = {one.problem: one.vendor_us for one in recorded.sentinels}

    def timed(op, device):
        return lambda problem, configs, regime: {
            config: latencies.get((problem, config), vendor[problem]) for config in configs
        }

    monkeypatch.setattr(sys.modules["aks.cli.doctor"], "_timed", timed)
    monkeypatch.setattr("aks.core.device.current_device", lambda: aks.find_device("h200"))
    monkeypatch.setattr("aks.collect.environment.current_environment", lambda: recorded.environment)
    monkeypatch.setattr("aks.runtime.native.is_built", lambda: False)
    monkeypatch.setattr(sys, "argv", ["aks", "doctor", "--model", str(bundle), "--json", str(tmp_path / "doctor.json")])
    with pytest.raises(SystemExit) as caught:
        main()
    out = capsys.readouterr().out
    assert caught.value.code == 1 and "the tree fits, its kernels are not launched as exported" in out
    assert "fault: the native module is not built" in out and "us more a call" in out and "measure again" not in out
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert len(document["faults"]) == 1 and not document["fits"]
    assert (document["regime"], document["datasets"]) == ("cold", recorded.datasets)


@pytest.mark.gpu
def test_the_command_on_the_gpu(monkeypatch, capsys, tmp_path: Path) -> None:
    if aks.current_device().name != "h200":
        pytest.skip("the shipped tree is for another GPU")
    monkeypatch.setattr(sys, "argv", ["aks", "doctor", "--json", str(tmp_path / "doctor.json")])
    with pytest.raises(SystemExit) as caught:
        main()
    out = capsys.readouterr().out
    assert ("\nfits" in out) == (not caught.value.code)
    assert "medians of now over recorded" in out
    assert len(json.loads((tmp_path / "doctor.json").read_text())["findings"]) == 30
