"""Measurements in files, be it a store or the Parquet file made of stores. Needs the ``train`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aks.collect.schema import StoreFacts, explained, is_store
from aks.collect.store import Store
from aks.core.errors import DataError
from aks.core.record import SCHEMA_VERSION
from aks.data import parquet
from aks.data.check import Samples, outcome_faults
from aks.data.parquet import nonempty
from aks.data.schema import SAMPLES, arrow_schema
from aks.ops.op import Op

DATA_SUFFIXES = (".parquet", ".db")


def read_table(path: str | Path, op: Op) -> pa.Table:
    """The measurements in a store or a Parquet file: the columns of ``Record.to_row``.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated or altered, or is of another schema, op or config space.
    """
    path = Path(path)
    return nonempty(_read_store(path, op), path) if _holds_store(path) else parquet.read_table(path, op)


def _holds_store(path: Path) -> bool:
    try:
        return is_store(path)
    except OSError:
        return False  # what cannot be opened is no store; reading it as Parquet says what is wrong


def _read_store(path: Path, op: Op) -> pa.Table:
    schema = arrow_schema(op)
    with Store.open(path) as store, explained(path):
        parts = store.parts(op)
        batches = [_batch(columns, parts, store.facts, schema) for columns in store.batches()]
    table = pa.Table.from_batches(batches, schema=schema)
    # No row was made a ``Measurement``, which checks the same.
    if faults := outcome_faults(table):
        raise DataError(f"{path} is damaged: {'; '.join(faults)}; copy it again, or collect into another file")
    return table


def _batch(
    columns: dict[str, tuple[Any, ...]],
    parts: dict[str, dict[int, dict[str, Any]]],
    facts: StoreFacts,
    schema: pa.Schema,
) -> pa.RecordBatch:
    """Rows of ``Record.to_row``, made by column."""
    common = {
        "schema_version": SCHEMA_VERSION,
        "op": facts.op,
        "space_fingerprint": facts.space_fingerprint,
        **facts.device.to_row(),
    }
    made = _looked_up({0: common}, (0,) * len(columns["status"]), schema)
    for name, part in parts.items():
        made |= _looked_up(part, columns[name], schema)
    made[SAMPLES] = pa.array([np.frombuffer(blob, np.float32) for blob in columns[SAMPLES]], schema.field(SAMPLES).type)
    made["latency_us"] = pa.array(Samples(made[SAMPLES]).median, from_pandas=True)
    made |= {field.name: pa.array(columns[field.name], field.type) for field in schema if field.name not in made}
    return pa.RecordBatch.from_arrays([made[name] for name in schema.names], schema=schema)


def _looked_up(part: dict[int, dict[str, Any]], ids: Sequence[int], schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of the rows in ``part``, for each of ``ids``."""
    place = {row_id: position for position, row_id in enumerate(part)}
    places = pa.array([place[row_id] for row_id in ids])
    names = next(iter(part.values()))
    return {
        name: pa.array([row[name] for row in part.values()], schema.field(name).type).take(places) for name in names
    }


def data_files(roots: Sequence[str | Path]) -> list[Path]:
    """Parquet files and stores under folders (or named themselves), sorted."""
    found: set[Path] = set()
    for root in map(Path, roots):
        found.update([root] if root.is_file() else (path for path in root.rglob("*") if path.suffix in DATA_SUFFIXES))
    return sorted(found)
