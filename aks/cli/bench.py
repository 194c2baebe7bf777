"""``aks bench``: what serving costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(help="Measure what serving costs on this machine.", no_args_is_help=True)


@bench.command()
def dispatch(
    bundle: Annotated[Path, typer.Option(help="Folder that 'aks export --bundle' wrote for this GPU.")],
    calls: Annotated[int, typer.Option(help="Calls that are timed, of each way and shape.")] = 5000,
    problems: Annotated[
        int, typer.Option(help="Random problems that are launched while nothing may be loaded.")
    ] = 10_000,
) -> None:
    """Time the host's part of a call: native dispatcher, aks.linear, PyTorch, the bare driver call.

    Then launch random problems and say what was compiled, loaded or allocated meanwhile: nothing.

    \b
    Examples:
      aks bench dispatch --bundle bundles/gemm/h200
    """
    from aks.evaluate.dispatch import bench_dispatch, check_steady

    print(f"{'shape':>16}  {'way':<40}{'median us':>10}{'p99 us':>10}")
    for row in bench_dispatch(bundle, calls=calls):
        p99 = "" if row["p99_us"] is None else f"{row['p99_us']:.2f}"
        memory = f"   {row['device_mib']:.0f} MiB of the GPU's memory" if "device_mib" in row else ""
        print(f"{row['shape']:>16}  {row['way']:<40}{row['median_us']:>10.2f}{p99:>10}{memory}")
    steady = check_steady(bundle, problems=problems)
    print(
        f"{steady['problems']} random problems, {steady['left_to_libraries']} of them left to the vendor's libraries:"
    )
    for name, value in steady["after"].items():
        print(f"  {name:<26}{steady['before'][name]:>8} -> {value}")
