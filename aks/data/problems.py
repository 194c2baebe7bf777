"""Which problems a table of measurements has, as rows of a CSV file that can be collected again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
from pyarrow.csv import write_csv

from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.core.record import split_families
from aks.ops.op import Op


def problems_of(table: pa.Table, op: Op, *, families: Collection[str] = (), lacking: Regime | None = None) -> pa.Table:
    """The distinct problems of ``table``: a column a field, and ``families``; sorted.

    families: only problems that have one of these model families (empty: all). lacking: only those
    that ``table`` has nothing of in this regime.

    Raises
    ------
    DataError
        If no problem is left.
    """
    names = [field.name for field in fields(op.problem_type)]
    found = table.group_by(names).aggregate([("families", "distinct"), ("regime", "distinct")])
    owners = [set(split_families(";".join(texts))) for texts in found["families_distinct"].to_pylist()]
    regimes = found["regime_distinct"].to_pylist()
    keep = [
        (not families or not owned.isdisjoint(families)) and lacking not in measured
        for owned, measured in zip(owners, regimes, strict=True)
    ]
    problems = found.select(names).append_column("families", pa.array([";".join(sorted(owned)) for owned in owners]))
    problems = problems.filter(pa.array(keep)).sort_by([(name, "ascending") for name in names])
    if not problems.num_rows:
        raise DataError(
            f"no such problem among {found.num_rows}; families there: {', '.join(sorted(set().union(*owners)))}"
        )
    return problems


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
