"""``aks data``: list, check, merge, problems, sentinels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from aks.cli.options import OpName, Seed, split_words
from aks.core.measurement import Regime

data = typer.Typer(help="List, check and merge measurements; write their problems.", no_args_is_help=True)


@data.command("list")
def list_files(
    roots: Annotated[list[Path] | None, typer.Argument(help="Files or folders; default: data and runs.")] = None,
    op: OpName = "gemm",
) -> None:
    """List files of measurements: how many rows, of what.

    \b
    Examples:
      aks data list
      aks data list runs/h200.db data/gemm
    """
    from rich.console import Console
    from rich.table import Table

    from aks.collect.datafile import data_files, read_table
    from aks.core.errors import DataError
    from aks.ops import find_op

    known_op = find_op(op)
    files = data_files(roots or [root for root in (Path("data"), Path("runs")) if root.is_dir()])
    if not files:
        raise DataError(
            f"no file of measurements in {', '.join(map(str, roots or ['data', 'runs']))}; see 'aks collect'"
        )
    table = Table("file", "rows", "devices", "regimes", "remark")
    for path in files:
        try:
            rows = read_table(path, known_op)
        except DataError as error:
            table.add_row(str(path), "", "", "", str(error))
            continue
        values = [", ".join(sorted(set(rows.column(name).to_pylist()))) for name in ("device", "regime")]
        table.add_row(str(path), str(rows.num_rows), *values, "")
    Console().print(table)


@data.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Parquet files, or stores that 'aks collect' wrote.")],
    op: OpName = "gemm",
) -> None:
    """Check every row of files, and print what is in them: problems, families, noise.

    \b
    Examples:
      aks data check data/gemm/h200.parquet
    """
    from aks.collect.datafile import read_table
    from aks.data.check import check as check_table
    from aks.ops import find_op

    known_op = find_op(op)
    for path in files:
        print(check_table(read_table(path, known_op), known_op, path))


@data.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Stores that 'aks collect' wrote, and Parquet files.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; may be one of the sources.")],
    op: OpName = "gemm",
) -> None:
    """Merge measurements into one Parquet file to train on.

    \b
    Examples:
      aks data merge runs/h200.db --out data/gemm/h200.parquet
      aks data merge data/gemm/h200.parquet runs/more.db --out data/gemm/h200.parquet
    """
    from aks.collect.datafile import read_table
    from aks.data.merge import merge as merge_tables
    from aks.ops import find_op

    known_op = find_op(op)
    rows = merge_tables(known_op, [read_table(path, known_op) for path in sources], out)
    print(f"{rows} rows written to {out}")


@data.command()
def problems(
    files: Annotated[list[Path], typer.Argument(help="Parquet files, or stores that 'aks collect' wrote.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    families: Annotated[str, typer.Option(help="Only those of these model families, comma-separated.")] = "",
    dtypes: Annotated[str, typer.Option(help="Only those of these dtypes, comma-separated.")] = "",
    lacking: Annotated[Regime | None, typer.Option(help="Only those not measured in this regime.")] = None,
    max_flops: Annotated[float, typer.Option(help="Only those of at most so many operations, like 2e11.")] = math.inf,
    num_problems: Annotated[int | None, typer.Option(min=1, help="Draw so many of them.")] = None,
    seed: Seed = 0,
    op: OpName = "gemm",
) -> None:
    """Write which problems were measured, for 'aks collect --problems': again, elsewhere, or in another regime.

    \b
    Examples:
      aks data problems data/gemm/h200.parquet --out problems.csv
      aks data problems data/gemm/h200.parquet --lacking chain --out more.csv
      aks data problems data/gemm/h200.parquet --dtypes bf16 --max-flops 2e11 --num-problems 330 --out few.csv
    """
    import pyarrow as pa

    from aks.collect.datafile import read_table
    from aks.data.problems import problems_of, write_problems
    from aks.ops import find_op

    known_op = find_op(op)
    table = pa.concat_tables([read_table(path, known_op) for path in files])
    names = split_words(families, "family") if families else ()
    found = problems_of(
        table,
        known_op,
        families=names,
        dtypes=split_words(dtypes, "dtype", known_op.problem_type.CHOICES["dtype"]) if dtypes else (),
        lacking=lacking,
        max_flops=max_flops,
        at_most=num_problems,
        seed=seed,
    )
    write_problems(found, out)
    print(f"{found.num_rows} problems written to {out}")


@data.command()
def sentinels(
    files: Annotated[list[Path], typer.Argument(help="Parquet files of measurements that the tree was trained on.")],
    op: OpName = "gemm",
    model: Annotated[
        Path | None, typer.Option(help="Exported folder; default: the shipped tree of the files' device.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many problems.")] = 30,
) -> None:
    """Write sentinels.json beside an exported tree: problems and latencies that 'aks doctor' measures again.

    They are of the regime that the tree was trained for.

    \b
    Examples:
      aks data sentinels data/gemm/h200.parquet
      aks data sentinels data/gemm/h200.parquet --model models/chain/gemm/h200
    """
    from aks.collect.datafile import read_table
    from aks.core.device import device_slug
    from aks.data.parquet import dataset_hash
    from aks.evaluate.doctor import choose_sentinels, write_sentinels
    from aks.ops import find_op
    from aks.runtime.predictor import Predictor

    known_op = find_op(op)
    rows = [row for file in files for row in read_table(file, known_op).to_pylist()]
    device = None if model or not rows else rows[0]["device"]
    predictor = Predictor.load(known_op, device=device, path=model)
    rows = [row for row in rows if device_slug(row["device"]) == predictor.tree.device]
    datasets = {file.as_posix(): dataset_hash(file) for file in files}
    recorded = choose_sentinels(known_op, predictor, rows, datasets, count)
    path = write_sentinels(predictor, recorded)
    print(f"{len(recorded.sentinels)} sentinels of regime {recorded.regime}: {path}")
