"""The walk over a bundle's kernels reaches each of them and sees what is wrong; a sanitizer's verdict is passed on."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from aks.core.bundle import Bundle, read_bundle
from aks.core.device import current_device
from aks.core.errors import ArtifactError
from aks.evaluate import kernel_walk, race_report
from aks.export import bundle as bundles
from aks.ops import OPS
from aks.ops.fused_linear.spec import FusedLinearProblem
from aks.ops.gemm.spec import GemmProblem
from aks.ops.quantize_rows.spec import QuantizeRowsProblem
from aks.ops.rms_norm import reference
from aks.ops.rms_norm.spec import RmsNormProblem
from tests.kernels import export_fake
from tests.native.conftest import needs_module
from tests.native.test_native import one_leaf, shipped_selector
from tests.selectors import random_selector, write_selector

SCRIPT = Path(__file__).parents[2] / "scripts" / "sanitize_kernels.py"
ROOT = SCRIPT.parents[1]
TMA = {"kind": "tma", "block_m": 64, "block_n": 64, "block_k": 128, "split_k": 1, "num_warps": 4, "num_stages": 4}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Callable[[str], tuple[Bundle, dict[str, Any], list[kernel_walk.Case]]]:
    """A bundle of an op's shipped tree, with made-up kernels; its table, and the cases of the walk."""

    @functools.cache
    def bundle_of(op: str) -> tuple[Bundle, dict[str, Any], list[kernel_walk.Case]]:
        selector = shipped_selector(ROOT / "models" / op / "h200/selector.json")
        bundle = read_bundle(export_fake(tmp_path_factory.mktemp(op), selector))
        table = kernel_walk.read_table(bundle)
        return bundle, table, kernel_walk.find_cases(bundle, table, bundle.device)

    return bundle_of


@needs_module
@pytest.mark.parametrize(("op", "count"), [("gemm", 500), ("fused_linear", 100), ("rms_norm", 50)])
def test_every_kernel_of_the_shipped_trees_is_launched(op: str, count: int, shipped, standin, capsys):
    bundle, table, cases = shipped(op)
    code = (bundle.folder / "kernels.bin").read_bytes()
    kernels = {(place, *kernel[:-1]) for place, row in enumerate(table["configs"]) if row for kernel in row["kernels"]}
    assert {(case.place, *case.variant) for case in cases} == kernels and len(kernels) > count
    module, seen = import_module("aks.runtime.native._native"), set()
    load = functools.partial(module.Kernels, code=code, device=0, driver=str(standin.path))
    for case, wrong in kernel_walk.walk(bundle, table, cases, load, device="cpu"):
        assert "never written" in wrong  # the stand-in computes nothing
        assert f"| {case.config.key()} {case.variant} " in standin.last()
        assert race_report.announcement(case.cubin, case.function) + "\n" == capsys.readouterr().out
        start, length, _ = table["cubins"][case.cubin]
        assert f"{case.config.key()} {case.variant} ".encode() in code[start : start + length]
        seen.add((case.place, *case.variant))
    assert seen == kernels


def test_problems_are_ragged_misaligned_and_have_every_epilogue(shipped):
    gemms = [case.problem for case in shipped("gemm")[2]]
    assert any(problem.alignment == 2 for problem in gemms) and any(problem.n % 2 for problem in gemms)
    bundle, _, fused = shipped("fused_linear")
    for kernel in {(case.place, case.variant) for case in fused}:
        epilogues = {case.problem.epilogue for case in fused if (case.place, case.variant) == kernel}
        assert epilogues == {
            name for name in bundle.tree.support["epilogue"] if name.endswith("_mul") == bool(kernel[1][1])
        }
    norms = [case.problem for case in shipped("rms_norm")[2]]
    assert {1, 3} <= {problem.m for problem in norms} and any(problem.k & (problem.k - 1) for problem in norms)


def test_an_op_without_calls_is_refused(tmp_path: Path):
    bundle = read_bundle(export_fake(tmp_path, random_selector(0, op=OPS["mm"])))
    with pytest.raises(ArtifactError, match=r"of op 'mm'; wanted one whose folder in aks\.ops has call\.py"):
        kernel_walk.op_of(bundle)


def test_a_kernel_that_no_small_problem_leads_to_is_an_error(tmp_path: Path):
    bundle = read_bundle(export_fake(tmp_path, one_leaf(TMA)))
    table = kernel_walk.read_table(bundle)
    [row] = [row for row in table["configs"] if row and row["kernels"]]
    row["kernels"][0][0] = 7  # a dtype that is none
    with pytest.raises(ArtifactError, match="no small problem leads to its kernels"):
        kernel_walk.find_cases(bundle, table, bundle.device)


@pytest.mark.parametrize(
    "problem",
    [
        GemmProblem(3, 64, 72, alignment=4),
        FusedLinearProblem(3, 64, 72, epilogue="residual", alignment=4),
        FusedLinearProblem(3, 64, 72, epilogue="gelu", alignment=4),
        RmsNormProblem(3, 72, alignment=4),
        RmsNormProblem(3, 72, residual=True, alignment=4),
    ],
    ids=lambda problem: problem.key(),
)
def test_wrong_results_and_touched_padding_are_seen(problem):
    op = OPS[problem.OP]
    made = op.reference.make_inputs(problem, device="cpu")
    expected = op.reference.reference(problem, made.x, made.w[0])
    x, w, out = kernel_walk.exact_copies((made.x, made.w[0], made.out), "cpu")
    assert op.call.call_for(problem, x, w, out).problem() == problem
    torch.testing.assert_close(op.reference.reference(problem, x, w), expected)
    assert kernel_walk.check_result(op, problem, out, expected)
    out.copy_(expected)
    assert kernel_walk.check_result(op, problem, out, expected) == ""
    out[-1, -1] += 1
    assert kernel_walk.check_result(op, problem, out, expected)
    out.copy_(expected)
    out.as_strided((1,), (1,), 0)[0] = 0  # before the first row
    assert "before the rows" in kernel_walk.check_result(op, problem, out, expected)
    for tensor in (x, out):
        assert tensor.untyped_storage().nbytes() == 2 * kernel_walk._end(tensor)


@pytest.mark.parametrize(("out_dtype", "group"), [("fp8", 0), ("int8", 0), ("fp8", 128)])
def test_wrong_results_of_8_bits_are_seen(out_dtype: str, group: int):
    problem = QuantizeRowsProblem(3, 72, out_dtype=out_dtype, group=group, alignment=4)
    op = OPS[problem.OP]
    made = op.reference.make_inputs(problem, device="cpu")
    expected = op.reference.reference(problem, made.x, made.w[0])
    x, w, out = kernel_walk.exact_copies((made.x, made.w[0], made.out), "cpu")
    assert op.call.call_for(problem, x, w, out).problem() == problem
    assert "3 scales are wrong" in kernel_walk.check_result(op, problem, out, expected)
    op.reference.vendor(problem, x, w, out)()
    assert kernel_walk.check_result(op, problem, out, expected) == ""
    op.reference.vendor(problem, x, w, out)()
    out.as_strided((1,), (1,), 0)[0] = 0
    assert "before the rows" in kernel_walk.check_result(op, problem, out, expected)


def test_operands_that_share_memory_do_so_again():
    made = reference.make_inputs(RmsNormProblem(3, 72, residual=True), device="cpu")
    w, out = kernel_walk.exact_copies((made.w[0], made.out), "cpu")
    assert w.total.data_ptr() == out[3:].data_ptr() and w.eps == made.w[0].eps and type(w) is type(made.w[0])
    assert out.data_ptr() != made.out.data_ptr()


def sanitize(tmp_path: Path, says: str, *options: str, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The script with a sanitizer that runs nothing: it says its tool, and then ``says``."""
    fake = tmp_path / "sanitizer"
    fake.write_text(f'#!/bin/sh\necho "tool $6 caching $PYTORCH_NO_CUDA_MEMORY_CACHING $@"\n{says}\n')
    fake.chmod(0o755)
    command = [sys.executable, SCRIPT, bundle or tmp_path, "--sanitizer", fake, *options]
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


@pytest.fixture(scope="module")
def tma_bundle(tmp_path_factory) -> Path:
    """Compiled kernels of one config that loads through descriptors."""
    folder = tmp_path_factory.mktemp("tma")
    selector = one_leaf(TMA)
    selector["support"]["choices"] = {"dtype": ["bf16"], "w_layout": ["nk"], "alignment": [16]}
    bundles.export(write_selector(folder, selector), folder / "out", kernels=True)
    return folder / "out"


@pytest.mark.parametrize(
    ("read", "walked", "status", "explained", "is_clean"),
    [
        ("SYNCS.ARRIVE", "1 kernels (tma), 2 launches, 0 wrong", 9, 2, True),
        ("SYNCS.PHASECHK", "1 kernels (tma), 2 launches, 0 wrong", 9, 0, False),
        ("SYNCS.ARRIVE", "1 kernels (tma), 2 launches, 1 wrong", 9, 2, False),
        ("SYNCS.ARRIVE", "", 9, 2, False),
        ("SYNCS.ARRIVE", "1 kernels (tma), 2 launches, 0 wrong", 139, 0, False),
    ],
    ids=["explained", "a race with a wait", "a wrong result", "cut short", "crashed"],
)
def test_races_that_the_code_explains_are_passed_over(
    read: str, walked: str, status: int, explained: int, is_clean: bool, tmp_path: Path, tma_bundle: Path
):
    disassemble = race_report.disassembler(tma_bundle)
    if disassemble is None:
        pytest.skip("needs nvdisasm")
    code = disassemble(0, "tma_kernel")
    init, other = (next(at for at, text in code.items() if name in text) for name in ("SYNCS.EXCH", read))
    recorded = [race_report.announcement(0, "tma_kernel")]
    recorded += 2 * [
        f"========= Warning: Race reported between Write access at tma_kernel+{init:#x}",
        f"=========     and Read access at tma_kernel+{other:#x} [24 hazards]",
        "========= ",
    ]
    recorded += [walked, "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)"]
    (tmp_path / "recorded").write_text("\n".join(recorded) + "\n")
    done = sanitize(tmp_path, f"cat {tmp_path}/recorded; exit {status}", "--tool", "racecheck", bundle=tma_bundle)
    assert done.returncode == (not is_clean), done.stdout + done.stderr
    assert ("racecheck: clean" in done.stdout) == is_clean
    assert (f"{explained} of 2 reports explained" in done.stdout) == (status == 9)
    assert ("not explained: Warning: Race" in done.stdout) == (status == 9 and explained == 0)


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
@pytest.mark.parametrize("op", ["gemm", "fused_linear", "rms_norm"])
def test_a_part_of_the_kernels_is_clean_on_this_gpu(op: str, tool: str, gpu_bundles):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer")
    command = [sys.executable, SCRIPT, gpu_bundles(op), "--tool", tool, "--shard", "1/40"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def gpu_bundles(tmp_path_factory) -> Callable[[str], Path]:
    """The bundle of an op for this GPU: the folder that AKS_BUNDLE names, if it is of that op, else exported here."""

    @functools.cache
    def bundle_of(op: str) -> Path:
        given = os.environ.get("AKS_BUNDLE")
        if given and read_bundle(Path(given)).tree.op == op:
            return Path(given)
        out = tmp_path_factory.mktemp("bundle")
        bundles.export(ROOT / "models" / op / "h200/selector.json", out, device=current_device(), kernels=True)
        return out

    return bundle_of


@pytest.mark.gpu
@needs_module
@pytest.mark.parametrize("op", ["gemm", "fused_linear", "rms_norm"])
def test_every_kernel_is_right_on_this_gpu(op: str, gpu_bundles):
    bundle = read_bundle(gpu_bundles(op))
    table, code = kernel_walk.read_table(bundle), (bundle.folder / "kernels.bin").read_bytes()
    cases = kernel_walk.find_cases(bundle, table, bundle.device)
    load = functools.partial(import_module("aks.runtime.native._native").Kernels, code=code, device=0)
    torch.cuda.init()
    assert [wrong for _, wrong in kernel_walk.walk(bundle, table, cases, load) if wrong] == []
