"""From stores to the Parquet file that is shipped and trained on, and back into a frame. Needs the ``train`` extra.

One row a measurement, the columns of ``Record.to_row``. The file's metadata says its schema version,
op and config space, and carries a digest of the contents, so that what was edited by hand is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from aks.collect.schema import is_store
from aks.collect.store import Store
from aks.core.device import known_devices
from aks.core.errors import DataError
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import SCHEMA_VERSION, Environment, Record
from aks.ops.op import Op

SAMPLES = "samples_us"
DATA_SUFFIXES = (".parquet", ".db")
_BATCH_ROWS = 20_000
_DIGEST = b"aks_content_sha256"


def merge(op: Op, sources: Iterable[str | Path], out: str | Path) -> int:
    """Write the measurements of ``sources`` (stores, Parquet files) to the Parquet file ``out``; how many rows it has.

    Rows are sorted, and one that several sources have is written once. ``out`` appears whole or not at
    all, and may be one of the sources.

    Raises
    ------
    DataError
        If there is no source, or one cannot be read or is of another schema, op or config space than
        ``op`` has now; if ``out`` cannot be written.
    """
    tables = [read_table(path, op) for path in sources]
    if not tables:
        raise DataError("nothing to merge; name stores that 'aks collect' wrote, or Parquet files")
    key = key_columns(op)
    table = pa.concat_tables(tables)
    table = table.sort_by([(name, "ascending") for name in [*key, "measured_at"]])
    repeated = table.select(key).to_pandas().duplicated()
    table = table.filter(pa.array(~repeated.to_numpy())).combine_chunks()
    _write(table.replace_schema_metadata(_metadata(op) | {_DIGEST: content_digest(table)}), Path(out))
    return table.num_rows


def key_columns(op: Op) -> list[str]:
    """Columns that together name one measurement."""
    problem = [field.name for field in fields(op.problem_type)]
    config = [field.name for field in fields(op.config_type)]
    return ["device", *problem, "regime", *config, "run_id"]


def read_frame(path: str | Path, op: Op) -> pd.DataFrame:
    """The measurements in a Parquet file (or a store): one row each, the columns of ``Record.to_row``.

    latency_us is float64 with nan where a config was not timed; samples_us holds float32 arrays.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated or altered, or is of another schema, op or config space.
    """
    return read_table(path, op).to_pandas()


def read_table(path: str | Path, op: Op) -> pa.Table:
    """As ``read_frame``, as an Arrow table without file metadata."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no measurement file {path}; 'aks collect' makes one")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; copy it again, or collect again")
    table = _read_store(path, op) if is_store(path) else _read_parquet(path, op)
    if table.num_rows == 0:
        raise DataError(f"{path} has no measurements; 'aks collect' adds some")
    return table


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


def _read_parquet(path: Path, op: Op) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            _check_metadata(path, metadata, op)
            _check_columns(path, file.schema_arrow, arrow_schema(op))
            table = file.read()
        digest = content_digest(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no Parquet file, truncated or damaged ({error}); copy it again") from error
    if metadata[_DIGEST] != digest:
        raise DataError(f"{path} was altered after 'aks data merge' wrote it; copy it again, or merge again")
    return table.replace_schema_metadata(None)


def _check_metadata(path: Path, found: dict[bytes, bytes], op: Op) -> None:
    for name, wanted in _metadata(op).items():
        if found.get(name) != wanted:
            was = found[name].decode(errors="replace") if name in found else "missing"
            raise DataError(
                f"{path} has {name.decode()} {was}; this version of aks wants {wanted.decode()}: "
                "measure again with 'aks collect', or use the version of aks that wrote the file"
            )
    if _DIGEST not in found:
        raise DataError(f"{path} has no {_DIGEST.decode()}: 'aks data merge' did not write it; merge its sources again")


def _check_columns(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    faults = [f"lacks {name}" for name in wanted.names if name not in found.names]
    faults += [f"has an unknown {name}" for name in found.names if name not in wanted.names]
    for field in found:
        if field.name in wanted.names and field.type != wanted.field(field.name).type:
            faults.append(f"has {field.name} as {field.type}, not {wanted.field(field.name).type}")
    if not faults and found.names != wanted.names:
        faults.append("has its columns twice or in another order")
    if faults:
        raise DataError(f"{path} {', '.join(faults)}: 'aks data merge' did not write it; merge its sources again")


@cache
def arrow_schema(op: Op) -> pa.Schema:
    """Names and types of the columns: those of any record's row."""
    problem = op.problem_type.from_row(dict.fromkeys(op.problem_type.AXES, 1))
    example = Record(
        measurement=Measurement(problem, op.vendor, Regime.COLD, Status.OK, (1.0,)),
        device=next(iter(known_devices().values())),
        environment=Environment("", "", "", "", "", ""),
        space_fingerprint="",
        families=(),
        run_id="",
        measured_at="",
    )
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    columns = example.to_row() | {SAMPLES: None}
    samples = pa.list_(pa.field("element", pa.float32()))
    return pa.schema([(name, samples if name == SAMPLES else types[type(value)]) for name, value in columns.items()])


def _metadata(op: Op) -> dict[bytes, bytes]:
    return {
        b"aks_schema_version": str(SCHEMA_VERSION).encode(),
        b"aks_op": op.name.encode(),
        b"aks_space_fingerprint": op.space.fingerprint.encode(),
    }


def content_digest(table: pa.Table) -> bytes:
    """SHA-256 in hex over the values of all columns, whatever way the file lays them out."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        digest.update(f"{name} {len(column)} {column.null_count};".encode())
        if name == SAMPLES:
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update("\0".join(value or "" for value in column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()


def _write(table: pa.Table, out: Path) -> None:
    """Write next to ``out``, then rename: nobody ever sees half a file."""
    # Latencies hardly repeat, so a dictionary does not help them; splitting their bytes does.
    measured = {"latency_us": "latency_us", SAMPLES: f"{SAMPLES}.list.element"}
    layout: dict[str, Any] = {
        "use_dictionary": [name for name in table.column_names if name not in measured],
        "use_byte_stream_split": list(measured.values()),
    }
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", compression_level=9, write_page_checksum=True, **layout)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise DataError(f"cannot write {out}: {error}; make room, or name another file") from error


def dataset_hash(path: str | Path) -> str:
    """SHA-256 of the file, in hex: what manifests name a dataset by.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def data_files(roots: Sequence[str | Path]) -> list[Path]:
    """Parquet files and stores under folders (or named themselves), sorted."""
    found: set[Path] = set()
    for root in map(Path, roots):
        found.update([root] if root.is_file() else (path for path in root.rglob("*") if path.suffix in DATA_SUFFIXES))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a data file says of itself; its rows are not checked."""

    path: Path
    op: str
    space_fingerprint: str
    rows: int
    devices: tuple[str, ...]


def describe(path: str | Path) -> FileFacts:
    """What the Parquet file or store at ``path`` says of itself, whatever op and config space it is of.

    Raises
    ------
    DataError
        If it is neither, or damaged.
    """
    path = Path(path)
    try:
        if is_store(path):
            with Store.open(path) as store:
                facts = store.facts
                return FileFacts(path, facts.op, facts.space_fingerprint, len(store), (facts.device.name,))
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            devices = file.read(["device"]).column("device").unique().to_pylist()
            op, fingerprint = (metadata[name].decode() for name in (b"aks_op", b"aks_space_fingerprint"))
            return FileFacts(path, op, fingerprint, file.metadata.num_rows, tuple(sorted(devices)))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} is no data file of aks, or is damaged ({error})") from error
