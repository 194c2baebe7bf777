"""``aks import``: what others measured, as measurements of an op of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

imports = typer.Typer(help="Convert what others measured into a file of measurements.", no_args_is_help=True)


@imports.callback()
def _formats() -> None:
    """A command a format; without this, typer would take the only one for the whole."""


@imports.command()
def autoheuristic(
    file: Annotated[Path, typer.Argument(help="Parquet file of records.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("runs/records.parquet"),
) -> None:
    """Records of PyTorch's AutoHeuristic: times of Inductor's Triton configs, and of aten, for torch.mm.

    They become measurements of the op 'mm'. A record's time is a median whose samples are gone: it is the
    one sample. An infinite time is a config that ran out of resources. Software versions are unknown, and
    so is which part a device like 'a100' was: 'aks devices' lists whose facts stand for it. Records that
    differ in padding alone are pooled by their median.

    \b
    Examples:
      aks import autoheuristic mm_a100_h100.parquet --out runs/records.parquet
      aks train --op mm --data runs/records.parquet
      aks collect --same-as runs/records.parquet
    """
    from aks.data.autoheuristic import import_records
    from aks.data.merge import merge
    from aks.ops import find_op

    found = import_records(file)
    merge(find_op("mm"), [found.table], out)
    print(f"{found}\nwritten to {out}")
