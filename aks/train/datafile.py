"""Reading the Parquet file of measurements that ``aks data merge`` writes; every check before any value is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from aks.core.errors import DataError
from aks.core.record import SCHEMA_VERSION
from aks.ops.op import Op

_DIGEST = b"aks_content_sha256"


def read_frame(path: Path, op: Op) -> pd.DataFrame:
    """The rows of the file, the columns of ``Record.to_row``.

    Raises
    ------
    DataError
        If the file is missing, truncated, damaged or altered, or of another op, schema version or
        config space.
    """
    if not path.is_file():
        raise DataError(f"no measurement file {path}; collect one with 'aks collect', or name another with --data")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            _check_metadata(path, metadata, op)
            table = file.read()
        digest = content_digest(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no Parquet file, truncated or damaged ({error}); copy it again") from error
    if metadata.get(_DIGEST) != digest:
        raise DataError(f"{path} was altered after 'aks data merge' wrote it; copy it again, or merge again")
    return table.to_pandas()


def _check_metadata(path: Path, found: dict[bytes, bytes], op: Op) -> None:
    wanted = {
        b"aks_schema_version": str(SCHEMA_VERSION),
        b"aks_op": op.name,
        b"aks_space_fingerprint": op.space.fingerprint,
    }
    for key, value in wanted.items():
        if found.get(key) != value.encode():
            was = found[key].decode(errors="replace") if key in found else "missing"
            raise DataError(
                f"{path} has {key.decode()} {was}; this version of aks wants {value}: "
                "measure again with 'aks collect', or use the version of aks that wrote the file"
            )


def content_digest(table: pa.Table) -> bytes:
    """SHA-256 in hex over all values, as ``aks.collect.datafile`` defines it for the file's metadata."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        digest.update(f"{name} {len(column)} {column.null_count};".encode())
        if pa.types.is_list(column.type):
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update("\0".join(value or "" for value in column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()
