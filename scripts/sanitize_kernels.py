"""Every kernel of a bundle under compute-sanitizer: ``python scripts/sanitize_kernels.py bundles/gemm/h200``."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from aks.evaluate import race_report

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_CAVEAT = re.compile(r"not supported|unsupported|internal sanitizer|unable to|failed to", re.IGNORECASE)
_WALKED = re.compile(r"\d+ kernels .*, \d+ launches, 0 wrong")
_FOUND_STATUS = 9  # of a tool that has something to report


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder that 'aks export --bundle' wrote for this GPU.")],
    tool: Annotated[list[str] | None, typer.Option(help=f"May be repeated: {', '.join(TOOLS)}.")] = None,
    shard: Annotated[str, typer.Option(help="Part of the kernels: 2/4 is the second of four.")] = "1/1",
    kind: Annotated[str, typer.Option(help="Kernels of this kind of config alone: gemv, stream, tiled, tma, ...")] = "",
    sanitizer: Annotated[str, typer.Option(help="The program.")] = "compute-sanitizer",
) -> None:
    """Launch every kernel of a bundle on small, ragged and misaligned problems, watched by memcheck and racecheck.

    Fails if a tool reports anything, if it does not get to its summary, or if a result is wrong. Of racecheck's
    warnings those are passed over that the kernels' own code explains (aks.evaluate.race_report; needs nvdisasm,
    which the CUDA toolkit and Triton have). What a tool says that it cannot look at is printed at the end.

    \b
    Examples:
      python scripts/sanitize_kernels.py bundles/gemm/h200
      python scripts/sanitize_kernels.py bundles/fused_linear/h200 --tool racecheck --kind tma --shard 1/4
    """
    chosen = tool or ["memcheck", "racecheck"]
    if unknown := set(chosen) - set(TOOLS):
        raise typer.BadParameter(f"{sorted(unknown)} is no tool; choose of {', '.join(TOOLS)}")
    if not re.fullmatch(r"[1-9]\d*/[1-9]\d*", shard) or int(shard.split("/")[0]) > int(shard.split("/")[1]):
        raise typer.BadParameter(f"shard is {shard!r}; write the number of the part and how many there are, as 2/4")
    if shutil.which(sanitizer) is None:
        raise typer.BadParameter(
            f"{sanitizer} is not there; it comes with the CUDA toolkit: install it, or name its path"
        )
    walk = [sys.executable, "-m", "aks.evaluate.kernel_walk", str(bundle), "--shard", shard, "--kind", kind]
    # By default it stops printing at 100: what is not printed cannot be judged.
    watched = [sanitizer, "--error-exitcode", str(_FOUND_STATUS), "--print-limit", "1000000", "--tool"]
    clean = [_is_clean([*watched, name, *walk], name, bundle) for name in chosen]
    raise typer.Exit(0 if all(clean) else 1)


def _is_clean(command: list[str], tool: str, bundle: Path) -> bool:
    """Run, passing on what is printed, and say what came of it."""
    # An allocation of its own for each tensor: past its end is then past what the tool knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    summaries = [int(match[1] or match[2]) for match in map(_SUMMARY.search, lines) if match]
    found = summaries[-1] if summaries else None
    is_clean = found == 0 and run.returncode == 0
    if tool == "racecheck" and found and run.returncode == _FOUND_STATUS:
        is_clean = _is_explained(lines, found, bundle)
    said = "it gave no summary" if found is None else f"{found} reported"
    print(f"{tool}: {'clean' if is_clean else f'NOT clean: {said}, exit status {run.returncode}'}")
    for caveat in sorted({line.strip() for line in lines if _CAVEAT.search(line)}):
        print(f"{tool} says: {caveat}")
    return is_clean


def _is_explained(lines: list[str], found: int, bundle: Path) -> bool:
    """Whether the walk came to its end with all results right, and each of the tool's reports is explained; says so."""
    disassemble = race_report.disassembler(bundle)
    verdict = race_report.judge(lines, disassemble)
    if disassemble is None:
        print("racecheck: nvdisasm is not there, so no report is explained; it comes with the CUDA toolkit and Triton")
    print(
        f"racecheck: {verdict.explained} of {found} reports explained: warnings of a race between an mbarrier's "
        "initialisation (SYNCS.EXCH) and its arrival (SYNCS.ARRIVE), which one thread does in this order"
    )
    for report in verdict.unexplained:
        print(f"racecheck, not explained: {report}")
    is_whole = any(_WALKED.fullmatch(line.strip()) for line in lines)
    return is_whole and not verdict.unexplained and verdict.explained == found


if __name__ == "__main__":
    typer.run(main)
