"""Which problems a table of measurements has, and with which configs, so that they can be collected again."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
from pyarrow.csv import write_csv

from aks.core import formula
from aks.core.config import Config
from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.core.problem import Problem
from aks.core.record import split_families
from aks.ops.op import Op


def problems_of(
    table: pa.Table,
    op: Op,
    *,
    families: Collection[str] = (),
    dtypes: Collection[str] = (),
    lacking: Regime | None = None,
    max_flops: float = math.inf,
    at_most: int | None = None,
    seed: int = 0,
) -> pa.Table:
    """The distinct problems of ``table``: a column a field, and ``families``; sorted.

    Parameters
    ----------
    families, dtypes
        Only problems of one of these; empty: all.
    lacking
        Only those that ``table`` has nothing of in this regime.
    max_flops
        Only those of at most so many operations.
    at_most
        Draw so many of what is left, the same ones for the same ``seed``.

    Raises
    ------
    DataError
        If no problem is left.
    """
    names = [field.name for field in fields(op.problem_type)]
    found = table.group_by(names).aggregate([("families", "distinct"), ("regime", "distinct")])
    found = found.sort_by([(name, "ascending") for name in names])
    flops = formula.compile_python(op.flops)
    owners = [set(split_families(";".join(texts))) for texts in found["families_distinct"].to_pylist()]
    rows = [
        index
        for index, row in enumerate(found.to_pylist())
        if (not families or not owners[index].isdisjoint(families))
        and (not dtypes or row["dtype"] in dtypes)
        and lacking not in row["regime_distinct"]
        and flops(op.problem_type.from_row(row).variables()) <= max_flops
    ]
    if not rows:
        raise DataError(
            f"no such problem among {found.num_rows}; families there: {', '.join(sorted(set().union(*owners)))}"
        )
    if at_most is not None and at_most < len(rows):
        rows = sorted(random.Random(seed).sample(rows, at_most))
    named = found.select(names).append_column("families", pa.array([";".join(sorted(owned)) for owned in owners]))
    return named.take(rows)


def configs_of(table: pa.Table, op: Op) -> dict[Problem, list[Config]]:
    """For each problem of ``table``: the configs that it has there, on whichever devices and however they fared."""
    problem, config = ([field.name for field in fields(kind)] for kind in (op.problem_type, op.config_type))
    found: dict[Problem, list[Config]] = {}
    for row in table.group_by([*problem, *config], use_threads=False).aggregate([]).to_pylist():
        found.setdefault(op.problem_type.from_row(row), []).append(op.config_type.from_row(row))
    return found


def write_problems(problems: pa.Table, out: Path) -> None:
    """Write what ``problems_of`` gave as CSV.

    Raises
    ------
    DataError
        If ``out`` cannot be written.
    """
    try:
        write_csv(problems, out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error}; name a file in a folder that exists") from error
