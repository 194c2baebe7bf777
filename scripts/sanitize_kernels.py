"""Every kernel of a bundle under compute-sanitizer: ``python scripts/sanitize_kernels.py bundles/gemm/h200``."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_CAVEAT = re.compile(r"not supported|unsupported|internal sanitizer|unable to|failed to", re.IGNORECASE)


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder that 'aks export --bundle' wrote for this GPU.")],
    tool: Annotated[list[str] | None, typer.Option(help=f"May be repeated: {', '.join(TOOLS)}.")] = None,
    shard: Annotated[str, typer.Option(help="Part of the kernels: 2/4 is the second of four.")] = "1/1",
    kind: Annotated[str, typer.Option(help="Kernels of this kind of config alone: gemv, stream, tiled, tma, ...")] = "",
    sanitizer: Annotated[str, typer.Option(help="The program.")] = "compute-sanitizer",
) -> None:
    """Launch every kernel of a bundle on small, ragged and misaligned problems, watched by memcheck and racecheck.

    Fails if a tool reports anything, if it does not get to its summary, or if a result is wrong. What a tool says
    that it cannot look at is printed at the end.

    \b
    Examples:
      python scripts/sanitize_kernels.py bundles/gemm/h200
      python scripts/sanitize_kernels.py bundles/gemm/h200 --tool racecheck --kind tma --shard 1/4
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
    clean = [_is_clean([sanitizer, "--tool", name, "--error-exitcode", "9", *walk], name) for name in chosen]
    raise typer.Exit(0 if all(clean) else 1)


def _is_clean(command: list[str], tool: str) -> bool:
    """Run, passing on what is printed, and say what came of it."""
    # An allocation of its own for each tensor: past its end is then past what the tool knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found, caveats = None, set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            if summary := _SUMMARY.search(line):
                found = int(summary[1] or summary[2])
            if _CAVEAT.search(line):
                caveats.add(line.strip())
    said = "it gave no summary" if found is None else f"{found} reported"
    is_clean = found == 0 and run.returncode == 0
    print(f"{tool}: {'clean' if is_clean else f'NOT clean: {said}, exit status {run.returncode}'}")
    for caveat in sorted(caveats):
        print(f"{tool} says: {caveat}")
    return is_clean


if __name__ == "__main__":
    typer.run(main)
