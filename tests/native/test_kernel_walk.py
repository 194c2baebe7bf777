"""The walk over a bundle's kernels reaches each of them and sees what is wrong; a sanitizer's verdict is passed on."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from aks.core.bundle import read_bundle
from aks.core.device import current_device
from aks.core.errors import ArtifactError
from aks.evaluate import kernel_walk
from aks.export import bundle as bundles
from aks.ops.gemm import reference
from aks.ops.gemm.spec import GemmProblem
from tests.kernels import export_fake
from tests.native.conftest import needs_module
from tests.native.test_native import GEMM_SELECTOR, one_leaf, shipped_selector

SCRIPT = Path(__file__).parents[2] / "scripts" / "sanitize_kernels.py"
ROOT = SCRIPT.parents[1]
TMA = {"kind": "tma", "block_m": 64, "block_n": 64, "block_k": 128, "split_k": 1, "num_warps": 4, "num_stages": 4}


@needs_module
def test_every_kernel_of_the_shipped_tree_is_launched(tmp_path: Path, standin):
    bundle = read_bundle(export_fake(tmp_path, shipped_selector(GEMM_SELECTOR)))
    table, code = kernel_walk.read_table(bundle), (bundle.folder / "kernels.bin").read_bytes()
    cases = kernel_walk.find_cases(bundle, table, bundle.device)
    kernels = {(place, *kernel[:-1]) for place, row in enumerate(table["configs"]) if row for kernel in row["kernels"]}
    assert {(case.place, *case.variant) for case in cases} == kernels and len(kernels) > 500
    problems = [case.problem for case in cases]
    assert any(problem.alignment == 2 for problem in problems) and any(problem.n % 2 for problem in problems)
    module, seen = import_module("aks.runtime.native._native"), set()
    for place in {case.place for case in cases}:
        mine = [case for case in cases if case.place == place]
        cut = kernel_walk.cut(table, place, [case.variant for case in mine])
        loaded = module.Kernels(cut, code, 0, str(standin.path))
        for case in mine:
            wrong = kernel_walk.run_case(loaded, case, device="cpu")
            assert wrong  # the stand-in computes nothing
            assert f"| {case.config.key()} {case.variant} " in standin.last()
            seen.add((case.place, *case.variant))
    assert seen == kernels


def test_a_kernel_that_no_small_problem_leads_to_is_an_error(tmp_path: Path):
    bundle = read_bundle(export_fake(tmp_path, one_leaf(TMA)))
    table = kernel_walk.read_table(bundle)
    [row] = [row for row in table["configs"] if row and row["kernels"]]
    row["kernels"][0][0] = 7  # a dtype that is none
    with pytest.raises(ArtifactError, match="no small problem leads to its kernels"):
        kernel_walk.find_cases(bundle, table, bundle.device)


def test_wrong_results_and_touched_padding_are_seen():
    problem = GemmProblem(3, 64, 72, alignment=4)
    made = reference.make_inputs(problem, device="cpu")
    expected = reference.reference(problem, made.x, made.w[0])
    out = kernel_walk._exact(made.out, "cpu")
    assert kernel_walk.check_result(problem, out, expected)
    out.copy_(expected)
    assert kernel_walk.check_result(problem, out, expected) == ""
    out[2, 63] += 1
    assert kernel_walk.check_result(problem, out, expected)
    out.copy_(expected)
    out.as_strided((1,), (1,), 0)[0] = 0  # before the first row
    assert "before the rows" in kernel_walk.check_result(problem, out, expected)
    assert out.untyped_storage().nbytes() == 2 * kernel_walk._end(out)


def sanitize(tmp_path: Path, says: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The script with a sanitizer that runs nothing: it says its tool, and then ``says``."""
    fake = tmp_path / "sanitizer"
    fake.write_text(f'#!/bin/sh\necho "tool $2 caching $PYTORCH_NO_CUDA_MEMORY_CACHING $@"\n{says}\n')
    fake.chmod(0o755)
    command = [sys.executable, SCRIPT, tmp_path, "--sanitizer", fake, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("says", "status", "what"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", 0, "memcheck: clean"),
        ("echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'", 0, "memcheck: clean"),
        ("echo '========= ERROR SUMMARY: 2 errors'; exit 9", 1, "2 reported, exit status 9"),
        ("echo '========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warnings)'", 1, "1 reported"),
        ("echo '========= ERROR SUMMARY: 0 errors'; exit 1", 1, "0 reported, exit status 1"),
        ("echo done", 1, "it gave no summary"),
        ("echo 'TMA is not supported'; echo 'ERROR SUMMARY: 0 errors'", 0, "memcheck says: TMA is not supported"),
    ],
)
def test_the_sanitizers_verdict_is_passed_on(says: str, status: int, what: str, tmp_path: Path):
    done = sanitize(tmp_path, says, "--tool", "memcheck", "--shard", "2/4", "--kind", "tma")
    assert done.returncode == status and what in done.stdout, done.stdout + done.stderr
    assert "tool memcheck caching 1" in done.stdout and "--shard 2/4 --kind tma" in done.stdout


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--tool", "valgrind"], "is no tool"),
        (["--shard", "3/2"], "how many there are"),
        (["--sanitizer", "none-such"], "comes with the CUDA toolkit"),
    ],
)
def test_what_cannot_be_run_is_said(options: list[str], what: str, tmp_path: Path):
    done = sanitize(tmp_path, "", *options)
    assert done.returncode == 2 and what in " ".join(done.stderr.split())


@pytest.mark.gpu
@needs_module
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_a_part_of_the_kernels_is_clean_on_this_gpu(tool: str, tmp_path: Path, gpu_bundle: Path):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer")
    command = [sys.executable, SCRIPT, gpu_bundle, "--tool", tool, "--shard", "1/40"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def gpu_bundle(tmp_path_factory) -> Path:
    if given := os.environ.get("AKS_BUNDLE"):
        return Path(given)
    out = tmp_path_factory.mktemp("bundle")
    bundles.export(ROOT / "models/gemm/h200/selector.json", out, device=current_device(), kernels=True)
    return out


@pytest.mark.gpu
@needs_module
def test_every_kernel_is_right_on_this_gpu(gpu_bundle: Path):
    bundle = read_bundle(gpu_bundle)
    table, code = kernel_walk.read_table(bundle), (bundle.folder / "kernels.bin").read_bytes()
    cases = kernel_walk.find_cases(bundle, table, bundle.device)
    load = functools.partial(import_module("aks.runtime.native._native").Kernels, code=code, device=0)
    torch.cuda.init()
    assert [wrong for _, wrong in kernel_walk.walk(bundle, table, cases, load) if wrong] == []
