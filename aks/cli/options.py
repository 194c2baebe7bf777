"""Options that several commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.ops import OPS

OPS_HELP = f"One of: {', '.join(OPS)}; or a kernel of your own that has @aks.adaptive, as module:kernel."
OpName = Annotated[str, typer.Option("--op", help=OPS_HELP)]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="Parquet file; may be repeated. Default: data/<op>, or of it the scored tree's device."),
]
TreeDevice = Annotated[str, typer.Option("--device", help="Device whose shipped tree is meant.")]
Model = Annotated[Path | None, typer.Option(help="Exported folder, instead of a shipped tree.")]
TrackingUri = Annotated[str, typer.Option(help="Where; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.")]
RegimeName = Annotated[Regime, typer.Option(help="State of the GPU that latencies are of.")]


def split_words(text: str, what: str, allowed: Iterable[object] = ()) -> list[str]:
    """The comma-separated words of an option.

    Raises
    ------
    typer.BadParameter
        If there is none, or one is not in ``allowed`` (empty: anything goes).
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = [str(value) for value in allowed]
    if not words or (known and not set(words) <= set(known)):
        wanted = f"one or more of {', '.join(known)}" if known else "one or more"
        raise typer.BadParameter(f"{what} is {text!r}; write {wanted}, comma-separated")
    return words


def split_integers(text: str, what: str) -> list[int]:
    """The comma-separated integers of an option.

    Raises
    ------
    typer.BadParameter
        If there is none, or one is no integer.
    """
    words = split_words(text, what)
    if not all(word.isdecimal() for word in words):
        raise typer.BadParameter(f"{what} is {text!r}; write positive integers, comma-separated")
    return [int(word) for word in words]


def data_paths(op: str, given: list[Path] | None) -> list[Path]:
    """The files that were given, or else those of the checkout.

    Raises
    ------
    DataError
        If there are none, or one is missing.
    """
    folder = Path("data", op)
    paths = given or sorted(folder.glob("*.parquet"))
    if not paths:
        raise DataError(f"no measurements: {folder.absolute()} has no Parquet file; name one with --data")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"no measurement file {', '.join(missing)}; 'aks data merge' writes them")
    return paths


def command_line() -> str:
    """What was typed, for the files that it leads to."""
    return shlex.join(["aks", *sys.argv[1:]])
