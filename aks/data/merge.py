"""Many tables of measurements into one file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from aks.core.errors import DataError
from aks.data.parquet import write_table
from aks.data.schema import key_columns
from aks.ops.op import Op


def merge(op: Op, tables: Iterable[pa.Table], out: str | Path) -> int:
    """Write the measurements of ``tables`` to the Parquet file ``out``; how many rows it has.

    The tables are of the columns of ``arrow_schema(op)``. Rows are sorted, and one that several tables
    have is written once. ``out`` appears whole or not at all, and may be a file that a table was read from.

    Raises
    ------
    DataError
        If there is no table; if ``out`` cannot be written.
    """
    tables = list(tables)
    if not tables:
        raise DataError("nothing to merge; name stores that 'aks collect' wrote, or Parquet files")
    key = key_columns(op)
    table = pa.concat_tables(tables)
    table = table.sort_by([(name, "ascending") for name in [*key, "measured_at"]])
    repeated = table.select(key).to_pandas().duplicated()
    table = table.filter(pa.array(~repeated.to_numpy())).combine_chunks()
    write_table(table, op, out)
    return table.num_rows
