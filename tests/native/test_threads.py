"""Threads that launch, take misses and load at once, with a sanitizer that sees races."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aks.core import kernel_files
from tests.kernels import export_fake
from tests.native.conftest import CC, HERE, build_standin
from tests.native.test_aks_h import CXX, NATIVE, SOURCES, build, run
from tests.native.test_native import GEMM_SELECTOR, shipped_selector

SANITIZER = ["-fsanitize=thread", "-g", "-O1"]


@pytest.mark.slow
@pytest.mark.skipif(CC is None or CXX is None, reason="needs C and C++ compilers")
def test_threads_do_not_race(tmp_path: Path):
    (tmp_path / "empty.cpp").write_text("int main() {}")
    built = run(CXX, *SANITIZER, tmp_path / "empty.cpp", "-o", tmp_path / "empty").returncode == 0
    if not built or run(tmp_path / "empty").returncode:
        pytest.skip("this compiler has no thread sanitizer, or this kernel does not let it run")
    program = tmp_path / "threads"
    build(
        CXX, "-std=c++20", *SANITIZER, f"-I{NATIVE / 'src'}", HERE / "threads.cpp", *SOURCES[:-1], "-o", program, "-ldl"
    )
    bundle = export_fake(tmp_path / "bundle", shipped_selector(GEMM_SELECTOR))
    files = (bundle / kernel_files.TABLE_FILE, bundle / kernel_files.CODE_FILE)
    standins = build_standin(tmp_path), build_standin(tmp_path, "standin_lt.so", "standin_lt.c")
    done = run(program, *files, *standins, 4, 5, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    launched, missed, wrong = map(int, re.findall(r"\d+", done.stdout)[:3])
    assert launched > 1000 and missed > 1000 and wrong == 0
