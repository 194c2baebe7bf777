"""Measurements in files, be it a store or the Parquet file made of stores. Needs the ``train`` extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from aks.collect.schema import is_store
from aks.collect.store import Store
from aks.core.record import Record
from aks.data import parquet
from aks.data.parquet import FileFacts, nonempty
from aks.data.schema import arrow_schema
from aks.ops.op import Op

DATA_SUFFIXES = (".parquet", ".db")
_BATCH_ROWS = 20_000


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
    with Store.open(path) as store:
        batches = [
            pa.RecordBatch.from_pylist([record.to_row() for record in records], schema=schema)
            for records in _batches(store.records(op))
        ]
    return pa.Table.from_batches(batches, schema=schema)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, _BATCH_ROWS)):
        yield batch


def data_files(roots: Sequence[str | Path]) -> list[Path]:
    """Parquet files and stores under folders (or named themselves), sorted."""
    found: set[Path] = set()
    for root in map(Path, roots):
        found.update([root] if root.is_file() else (path for path in root.rglob("*") if path.suffix in DATA_SUFFIXES))
    return sorted(found)


def describe(path: str | Path) -> FileFacts:
    """What the Parquet file or store at ``path`` says of itself, whatever op and config space it is of.

    Raises
    ------
    DataError
        If it is neither, or damaged.
    """
    path = Path(path)
    if not _holds_store(path):
        return parquet.describe(path)
    with Store.open(path) as store:
        facts = store.facts
        return FileFacts(path, facts.op, facts.space_fingerprint, len(store), (facts.device.name,))
