"""racecheck's warnings are explained by instructions of the kernel that they are about, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from aks.evaluate import race_report
from aks.evaluate.race_report import judge
from aks.ops.gemm.launch import VARIANTS, make_variant
from aks.ops.gemm.spec import GemmConfig

# As compute-sanitizer printed it on an H200, with the lines of the walk.
RECORDED = """\
========= COMPUTE-SANITIZER
launching cubin 3 gemv_kernel
launching cubin 0 tma_kernel
========= Warning: Race reported between Write access at tma_kernel+0xb40
=========     and Read access at tma_kernel+0xd80 [24 hazards]
=========\x20
========= Warning: Race reported between Write access at tma_kernel+0xb40
=========     and Read access at tma_kernel+0xd80 [24 hazards]
=========\x20
4 kernels (gemv, tma), 5 launches, 0 wrong
========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)
"""
CODE = {
    0xA00: "@P1 SYNCS.ARRIVE.TRANS64 RZ, [UR7+0x28000], R2",
    0xB40: "@UP0 SYNCS.EXCH.64 URZ, [UR7+0x28000], UR12",
    0xC00: "@UP0 SYNCS.EXCH.64 URZ, [UR7+0x28008], UR12",
    0xD80: "@P1 SYNCS.ARRIVE.TRANS64 RZ, [UR7+0x28000], R2",
    0xE00: "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR7+0x28000], R4",
    0xE10: "STS [UR7+0x28000], R4",
    0xE20: "LDS R4, [UR7+0x28000]",
}


def instructions(cubin: int, function: str) -> Mapping[int, str]:
    assert function in ("tma_kernel", "gemv_kernel")
    return CODE if (cubin, function) == (0, "tma_kernel") else {}


def judged(text: str, disassemble: race_report.Disassemble | None = instructions) -> tuple[int, int]:
    verdict = judge(text.splitlines(keepends=True), disassemble)
    return verdict.explained, len(verdict.unexplained)


def test_an_arrival_after_the_initialisation_is_explained() -> None:
    assert judged(RECORDED) == (2, 0)
    assert judged(RECORDED.replace("launching", "now launching")) == (0, 2)  # which kernel is not known
    assert judged(RECORDED, None) == (0, 2)
    assert race_report.announcement(0, "tma_kernel") in RECORDED
    both = RECORDED.replace(
        "0xd80 [24 hazards]\n", "0xd80 [1 hazard]\n=========     and Read access at tma_kernel+0xd80 [2 hazards]\n"
    )
    assert judged(both) == (2, 0)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("Warning: Race", "Error: Race"),
        ("+0xb40", "+0xe10"),
        ("+0xd80", "+0xe20"),
        ("+0xd80", "+0xe00"),
        ("+0xb40", "+0xc00"),
        ("+0xb40", "+0xb50"),
        ("+0xd80", "+0xa00"),
        ("tma_kernel+0xd80", "gemv_kernel+0xd80"),
        ("and Read", "and Write"),
        ("cubin 0 tma", "cubin 1 tma"),
        ("[24 hazards]\n", "[24 hazards]\n=========     and Read access at tma_kernel+0xe20 [1 hazard]\n"),
        ("[24 hazards]\n", "[24 hazards]\n=========     and something that no one knows\n"),
    ],
    ids=[
        "an error", "an ordinary write", "an ordinary read", "a wait", "another barrier", "no instruction",
        "an arrival before",
        "another kernel", "a write", "another cubin", "a second read", "what is not known",
    ],
)  # fmt: skip
def test_nothing_else_is(was: str, becomes: str) -> None:
    assert was in RECORDED
    assert judged(RECORDED.replace(was, becomes)) == (0, 2)


def test_whatever_else_the_tool_says_is_not_explained() -> None:
    verdict = judge([*RECORDED.splitlines(), "========= Target application returned an error"], instructions)
    assert verdict.explained == 2 and verdict.unexplained == ("Target application returned an error",)


def test_a_kernel_of_triton_is_disassembled() -> None:
    nvdisasm = race_report.find_nvdisasm()
    if nvdisasm is None:
        pytest.skip("needs nvdisasm")
    config = GemmConfig("tma", 16, 64, 128, 1, 4, 4, 1)
    binary = VARIANTS.compile_binary(make_variant(config, (0, 0, 0, 1, 0, 0)), 90)
    code = race_report.disassemble(binary.cubin, binary.function, nvdisasm)
    assert list(code) == [16 * place for place in range(len(code))]
    assert race_report.disassemble(binary.cubin, "no_such_function", nvdisasm) == {}
    assert race_report.disassemble(b"", binary.function, nvdisasm) == {}
    init, arrive = (next(at for at, text in code.items() if name in text) for name in ("SYNCS.EXCH", "SYNCS.ARRIVE"))
    wait = next(at for at, text in code.items() if "SYNCS.PHASECHK" in text)
    recorded = RECORDED.replace("0xb40", hex(init))
    assert judged(recorded.replace("0xd80", hex(arrive)), lambda *kernel: code) == (2, 0)
    assert judged(recorded.replace("0xd80", hex(wait)), lambda *kernel: code) == (0, 2)


def test_without_nvdisasm_there_is_no_disassembler(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(race_report, "find_nvdisasm", lambda: None)
    assert race_report.disassembler(tmp_path) is None
