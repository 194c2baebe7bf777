"""What a table of measurements looks like: one row a measurement, the columns of ``Record.to_row``."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from functools import cache

import pyarrow as pa

from aks.core.device import known_devices
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import SCHEMA_VERSION, Environment, Record
from aks.ops.op import Op

SAMPLES = "samples_us"
DIGEST = b"aks_content_sha256"
"""Where a file's metadata has the digest of its contents."""


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


def key_columns(op: Op) -> list[str]:
    """Columns that together name one measurement."""
    problem = [field.name for field in fields(op.problem_type)]
    config = [field.name for field in fields(op.config_type)]
    return ["device", *problem, "regime", *config, "run_id"]


def file_metadata(op: Op) -> dict[bytes, bytes]:
    """What a file says of itself beside its digest: the schema, op and config space that its rows are of."""
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
