"""The Parquet file of measurements that is shipped and trained on: written whole, and checked before a value is used.

The file's metadata says its schema version, op and config space, and carries a digest of the contents,
so that what was edited by hand is refused.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from aks.core.errors import DataError
from aks.data.schema import DIGEST, SAMPLES, arrow_schema, content_digest, file_metadata
from aks.ops.op import Op

GPU_SM_COUNT = "gpu_sm_count"
"""Files from before partitions were measured lack this column: their devices are whole GPUs."""


def read_frame(path: str | Path, op: Op) -> pd.DataFrame:
    """The measurements in the file: one row each, the columns of ``Record.to_row``.

    latency_us is float64 with nan where a config was not timed; samples_us holds float32 arrays.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated, damaged or altered, or is of another schema, op or
        config space.
    """
    return read_table(path, op).to_pandas()


def read_table(path: str | Path, op: Op) -> pa.Table:
    """As ``read_frame``, as an Arrow table without file metadata."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no measurement file {path}; collect one with 'aks collect', or name another file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; copy it again, or collect again")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            _check_metadata(path, metadata, op)
            wanted = arrow_schema(op)
            whole = GPU_SM_COUNT not in file.schema_arrow.names
            _check_columns(path, file.schema_arrow, _without_gpu_sm_count(wanted) if whole else wanted)
            table = file.read()
        digest = content_digest(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no Parquet file, truncated or damaged ({error}); copy it again") from error
    if metadata[DIGEST] != digest:
        raise DataError(f"{path} was altered after 'aks data merge' wrote it; copy it again, or merge again")
    if whole:
        table = table.append_column(wanted.field(GPU_SM_COUNT), table["sm_count"]).select(wanted.names)
    return nonempty(table.replace_schema_metadata(None), path)


def _without_gpu_sm_count(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index(GPU_SM_COUNT))


def nonempty(table: pa.Table, path: Path) -> pa.Table:
    """``table``, which was read from ``path``.

    Raises
    ------
    DataError
        If it has no rows.
    """
    if table.num_rows == 0:
        raise DataError(f"{path} has no measurements; 'aks collect' adds some")
    return table


def _check_metadata(path: Path, found: dict[bytes, bytes], op: Op) -> None:
    for name, wanted in file_metadata(op).items():
        if found.get(name) != wanted:
            was = found[name].decode(errors="replace") if name in found else "missing"
            raise DataError(
                f"{path} has {name.decode()} {was}; this version of aks wants {wanted.decode()}: "
                "measure again with 'aks collect', or use the version of aks that wrote the file"
            )
    if DIGEST not in found:
        raise DataError(f"{path} has no {DIGEST.decode()}: 'aks data merge' did not write it; merge its sources again")


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


def write_table(table: pa.Table, op: Op, out: str | Path) -> None:
    """Write ``table``, of the columns of ``arrow_schema(op)``, to ``out``: whole, or not at all.

    Raises
    ------
    DataError
        If ``out`` cannot be written; what was there stays.
    """
    out = Path(out)
    sealed = table.replace_schema_metadata(file_metadata(op) | {DIGEST: content_digest(table)})
    # Latencies hardly repeat, so a dictionary does not help them; splitting their bytes does.
    measured = {"latency_us": "latency_us", SAMPLES: f"{SAMPLES}.list.element"}
    layout: dict[str, Any] = {
        "use_dictionary": [name for name in table.column_names if name not in measured],
        "use_byte_stream_split": list(measured.values()),
    }
    # Next to ``out``, then renamed: nobody ever sees half a file.
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            pq.write_table(sealed, file, compression="zstd", compression_level=9, write_page_checksum=True, **layout)
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
