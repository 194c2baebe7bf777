"""Versions in one folder: read whole while another lands, kept when replaced, and pinned by a job."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

import pytest

from aks.core import artifact
from aks.core.bundle import read_bundle
from aks.core.errors import ArtifactError
from aks.export import bundle
from aks.runtime import Predictor
from tests.selectors import random_selector, write_selector

READERS, SECONDS = 3, 1.0
_RANDOM = random.Random(0)
PROBLEMS = [(_RANDOM.randint(1, 8192), 64 * _RANDOM.randint(1, 99), 64 * _RANDOM.randint(2, 99)) for _ in range(100)]


def selectors(folder: Path) -> list[Path]:
    """Two selectors that differ in their trees."""
    paths = []
    for seed in (3, 4):
        (folder / f"selector-{seed}").mkdir()
        paths.append(write_selector(folder / f"selector-{seed}", random_selector(seed, levels=5)))
    return paths


def decide(predictor: Predictor) -> list[str]:
    return [predictor.predict(*axes).key() for axes in PROBLEMS]


def load_often(folder: Path) -> set[tuple[str, tuple[str, ...]]]:
    """What one process saw in ``SECONDS`` of loading: versions, each with how it decided."""
    seen, end = set(), monotonic() + SECONDS
    while monotonic() < end:
        predictor = Predictor.load("gemm", path=folder)
        seen.add((predictor.version, tuple(decide(predictor))))
        bundle.load(folder)  # all four files
    return seen


def serve(folder: Path, version: str, rank: int) -> tuple[str, list[str]]:
    predictor = Predictor.load("gemm", path=folder, version=version)
    return predictor.version, decide(predictor)


def export_until(done: Iterable, paths: list[Path], folder: Path) -> None:
    """Export the selectors in turn until all futures are done."""
    while not all(future.done() for future in done):
        for path in paths:
            bundle.export(path, folder)


def test_who_loads_while_versions_land_gets_one_of_them_whole(tmp_path: Path):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    truth = {}
    for path in paths:
        bundle.export(path, folder)
        predictor = Predictor.load("gemm", path=folder)
        truth[predictor.version] = tuple(decide(predictor))
    assert len(set(truth.values())) == 2
    with ProcessPoolExecutor(READERS, mp_context=get_context("spawn")) as pool:
        readers = [pool.submit(load_often, folder) for _ in range(READERS)]
        export_until(readers, paths, folder)
        assert set().union(*(reader.result() for reader in readers)) == set(truth.items())


def test_all_ranks_of_a_job_decide_as_the_first_whatever_lands(tmp_path: Path):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    bundle.export(paths[0], folder)
    first = Predictor.load("gemm", path=folder)
    with ProcessPoolExecutor(READERS, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(serve, folder, first.version, rank) for rank in range(40)]
        export_until(ranks, paths[::-1], folder)
        bundle.export(paths[1], folder)
        late = pool.submit(serve, folder, first.version, 40)
        assert [rank.result() for rank in [*ranks, late]] == [(first.version, decide(first))] * 41
    assert Predictor.load("gemm", path=folder).version != first.version


@pytest.mark.parametrize("moved", range(1, 4))
def test_an_export_that_is_cut_off_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    manifest = bundle.export(paths[0], folder)
    moves = iter([os.replace] * moved)
    monkeypatch.setattr(os, "replace", lambda source, target: next(moves)(source, target))
    with pytest.raises(StopIteration):
        bundle.export(paths[1], folder)
    monkeypatch.undo()
    assert bundle.load(folder).manifest == manifest
    newer = bundle.export(paths[1], folder)
    assert bundle.load(folder).manifest == newer
    assert read_bundle(folder, artifact.version_of(manifest)).manifest == manifest


def test_a_version_that_is_not_there_is_refused(tmp_path: Path):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    old, new = (artifact.version_of(bundle.export(path, folder)) for path in paths)
    for wanted in ("", "0" * 12, "..", f"../versions/{old}"):
        with pytest.raises(ArtifactError, match=rf"holds version {new}.* {old}; wanted '{wanted}'; load one .*export"):
            Predictor.load("gemm", path=folder, version=wanted)


def test_a_version_is_what_it_is_called(tmp_path: Path):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    old, _ = (artifact.version_of(bundle.export(path, folder)) for path in paths)
    kept = folder / artifact.VERSIONS
    (kept / old).rename(kept / ("0" * 12))
    with pytest.raises(ArtifactError, match="wanted '000000000000'"):
        Predictor.load("gemm", path=folder, version="0" * 12)


def test_a_damaged_copy_is_refused(tmp_path: Path):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    old, _ = (artifact.version_of(bundle.export(path, folder)) for path in paths)
    (folder / artifact.VERSIONS / old / "tree.json").write_text("{}")
    with pytest.raises(ArtifactError, match=rf"{old}/tree\.json has 2 bytes"):
        Predictor.load("gemm", path=folder, version=old)


def test_only_what_is_replaced_by_something_else_is_kept(tmp_path: Path):
    paths, folder = selectors(tmp_path), tmp_path / "out"
    for path in (paths[0], paths[0]):
        bundle.export(path, folder)
    assert not (folder / artifact.VERSIONS).exists()
    (folder / "tree.json").write_text("{}")  # damaged: nobody can load it
    bundle.export(paths[1], folder)
    assert not (folder / artifact.VERSIONS).exists()
    bundle.export(paths[0], folder)
    assert [path.name for path in (folder / artifact.VERSIONS).iterdir()] == [
        artifact.version_of(bundle.export(paths[1], tmp_path / "alone"))
    ]
