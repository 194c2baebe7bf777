"""Damaged bundles: a clear error or a sound load, with sanitizers watching, and never a crash."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aks.core import artifact, kernel_files
from aks.core.bundle import read_bundle
from aks.core.errors import ArtifactError, DriverError
from aks.runtime import native
from tests.kernels import export_fake
from tests.native.conftest import CC, HERE, build_standin, needs_module
from tests.native.test_aks_h import CXX, NATIVE, SOURCES, build, run
from tests.native.test_products import product_leaf
from tests.selectors import random_selector

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return export_fake(tmp_path_factory.mktemp("fuzzed"), random_selector(0, levels=6))


@pytest.mark.slow
@pytest.mark.skipif(CC is None or CXX is None, reason="needs C and C++ compilers")
def test_a_sanitized_build_survives_mutated_bundles(folder: Path, tmp_path: Path):
    (tmp_path / "empty.cpp").write_text("int main() {}")
    if run(CXX, *SANITIZERS, tmp_path / "empty.cpp", "-o", tmp_path / "empty").returncode:
        pytest.skip("this compiler has no sanitizers")
    program = tmp_path / "fuzz"
    build(
        CXX, "-std=c++20", *SANITIZERS, f"-I{NATIVE / 'src'}", HERE / "fuzz.cpp", *SOURCES[:-1], "-o", program, "-ldl"
    )
    standins = build_standin(tmp_path), build_standin(tmp_path, "standin_lt.so", "standin_lt.c")
    # Trees of many configs, and of nothing but a product: its formulas are a small part of the first.
    for bundle, rounds in ((folder, 1500), (export_fake(tmp_path / "product", product_leaf()), 500)):
        files = (bundle / kernel_files.TABLE_FILE, bundle / kernel_files.CODE_FILE)
        done = run(program, *files, *standins, 1, rounds)
        assert done.returncode == 0, done.stderr[-3000:]
        loaded, refused, plans = map(int, re.findall(r"\d+", done.stdout))
        assert loaded > 50 and refused > 50
    assert plans > 500


@needs_module
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_table_that_was_changed_and_sealed_again_is_refused_or_sound(seed: int, folder: Path, standin):
    rng, (path, document) = random.Random(seed), (folder / "kernels.json", None)
    document = json.loads(path.read_text())
    place = document
    while isinstance(place, dict | list) and place:  # anywhere in the table
        parent, key = place, rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = parent[key]
        if rng.random() < 0.1:
            break
    parent[key] = rng.choice([None, -1, 2**62, "x", [], {}, [0] * 20, 10**30, 1.5, True])  # pyright: ignore
    bundle = read_bundle(folder)
    module = native.import_module("aks.runtime.native._native")
    try:
        kernels = module.Kernels(artifact.dump(document), (folder / "kernels.bin").read_bytes(), 0, str(standin.path))
    except (ArtifactError, DriverError) as error:
        assert len(str(error)) > 20
        return
    for _ in range(20):
        problem = [rng.randrange(1, 9000) for _ in range(3)] + [0, 0, 16, 1]
        chosen = kernels.select(*problem[: kernels.problem_count], *[1] * (kernels.problem_count - 7))
        assert 0 <= chosen < max(len(bundle.tree.configs), 1)


@needs_module
def test_a_table_of_another_tree_is_refused(folder: Path, tmp_path: Path, standin):
    other = export_fake(tmp_path, random_selector(3, device="h100-80gb-hbm3"))
    manifest = artifact.parse((folder / artifact.MANIFEST).read_bytes(), folder)
    table = (other / kernel_files.TABLE_FILE).read_bytes()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("tree.json", kernel_files.CODE_FILE):
        (mixed / name).write_bytes((folder / name).read_bytes())
    (mixed / kernel_files.TABLE_FILE).write_bytes(table)
    manifest["files"][kernel_files.TABLE_FILE] = {"bytes": len(table), "sha256": artifact.digest(table)}
    (mixed / artifact.MANIFEST).write_bytes(artifact.dump(artifact.seal(manifest), indent=1))
    with pytest.raises(ArtifactError, match="tree are of different exports"):
        standin.load(mixed)
