"""Which of racecheck's warnings a kernel's own code explains. Standard library and core only.

An mbarrier is initialised by one elected lane of the first warp, through the uniform datapath (``SYNCS.EXCH``).
racecheck cannot tell which thread such an instruction belongs to, so it reports a race with the arrival
(``SYNCS.ARRIVE``) that Triton has the same warp's first thread make later in its program, without a barrier between. A
warning that these two instructions write and read the same address is therefore explained, and nothing else is. That
one thread makes both, we know of Triton: here only instructions, their order and the expression of their address are
compared. Other threads wait for the barrier with another instruction (``SYNCS.PHASECHK``): a race with that stays one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from aks.core import artifact, kernel_files
from aks.core.bundle import read_bundle

Disassemble = Callable[[int, str], Mapping[int, str]]
"""Instructions of a bundle's cubin (by its place in ``kernels.json``) and function, by their offsets in bytes."""

_LAUNCH = re.compile(r"launching cubin (\d+) (\S+)\n?")
_TOOL = "========="
_HEADER = re.compile(r"COMPUTE-SANITIZER|RACECHECK SUMMARY: .*")
_WRITE = re.compile(r"Warning: Race reported between Write access at (\S+)\+(0x[0-9a-f]+)")
_READ = re.compile(r"and Read access at (\S+)\+(0x[0-9a-f]+) \[\d+ hazards?\]")
_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_ADDRESS = re.compile(r"\[[^\]]+\]")
_INIT, _ARRIVE = re.compile(r"\bSYNCS\.EXCH\b"), re.compile(r"\bSYNCS\.ARRIVE\b")


def announcement(cubin: int, function: str) -> str:
    """The line to print before a launch, for ``judge`` to know which kernel a report is about."""
    return f"launching cubin {cubin} {function}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many reports are explained, and the text of whatever is not: reports, and lines of the tool of any kind."""

    explained: int
    unexplained: tuple[str, ...]


def judge(lines: Iterable[str], disassemble: Disassemble | None) -> Verdict:
    """What of racecheck's output is explained.

    Parameters
    ----------
    lines : iterable of str
        What tool and program printed, in order. A report belongs to the kernel that was announced last: launches are
        waited for, and the tool reports as a launch ends.
    disassemble : callable, optional
        None explains nothing.
    """
    explained, unexplained = 0, []
    for launch, report in _reports(lines):
        if disassemble and launch and _is_explained(report, launch, disassemble):
            explained += 1
        else:
            unexplained.append(" ".join(report))
    return Verdict(explained, tuple(unexplained))


def _reports(lines: Iterable[str]) -> Iterable[tuple[tuple[int, str] | None, list[str]]]:
    """What the tool said, a paragraph at a time, each with the launch that it came after."""
    launch, report = None, []
    for line in lines:
        said = line.removeprefix(_TOOL).strip() if line.startswith(_TOOL) else ""
        if said and not _HEADER.fullmatch(said):
            if report and not said.startswith("and "):
                yield launch, report
                report = []
            report.append(said)
            continue
        if report:
            yield launch, report
            report = []
        if match := _LAUNCH.fullmatch(line):
            launch = int(match[1]), match[2]
    if report:
        yield launch, report


def _is_explained(report: list[str], launch: tuple[int, str], disassemble: Disassemble) -> bool:
    write, reads = _WRITE.fullmatch(report[0]), [_READ.fullmatch(line) for line in report[1:]]
    accesses = [write, *reads]
    if not reads or not all(access and access[1] == launch[1] for access in accesses):
        return False
    code = disassemble(*launch)
    first, *others = [int(access[2], 16) for access in accesses if access]
    init, arrivals = code.get(first, ""), [code.get(place, "") for place in others]
    address = _ADDRESS.search(init)
    if address is None or not _INIT.search(init) or min(others) < first:
        return False
    return all(_ARRIVE.search(text) and _ADDRESS.findall(text)[:1] == [address[0]] for text in arrivals)


def disassembler(folder: Path) -> Disassemble | None:
    """Reads the kernels of a bundle, each once; None if there is no nvdisasm."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        return None

    @cache
    def instructions(cubin: int, function: str) -> dict[int, str]:
        bundle = read_bundle(folder)
        table, code = (
            artifact.read_member(folder, bundle.manifest, name)
            for name in (kernel_files.TABLE_FILE, kernel_files.CODE_FILE)
        )
        start, length, _ = json.loads(table)["cubins"][cubin]
        return disassemble(code[start : start + length], function, nvdisasm)

    return instructions


def find_nvdisasm() -> str | None:
    """The disassembler: the CUDA toolkit's, or Triton's; None if there is neither."""
    if found := shutil.which("nvdisasm"):
        return found
    spec = find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "backends", "nvidia", "bin", "nvdisasm")
        if path.is_file():
            return str(path)
    return None


def disassemble(cubin: bytes, function: str, nvdisasm: str) -> dict[int, str]:
    """Instructions of a function by their offsets in bytes; none if nvdisasm cannot read the cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True)
    found: dict[int, str] = {}
    current = ""
    for line in done.stdout.splitlines():
        if heading := _FUNCTION.match(line.strip()):
            current = heading[1]
        elif current == function and (instruction := _INSTRUCTION.search(line)):
            found[int(instruction[1], 16)] = instruction[2]
    return found
