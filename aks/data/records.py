"""Measurements in whichever of the schemas that aks reads: its own, or one that others record in."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aks.core.errors import DataError
from aks.data import autoheuristic, parquet
from aks.ops import find_op
from aks.ops.op import Op

_OP = b"aks_op"


def read_records(path: str | Path) -> tuple[Op, pa.Table]:
    """The op that a Parquet file has measurements of, and these: the columns of ``Record.to_row``.

    The file is one that ``aks data merge`` or ``aks import`` wrote, or records of PyTorch's AutoHeuristic.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged or altered, or is of neither schema.
    UnknownOpError, UnknownDeviceError
        If it is of an op or a device that aks does not know.
    """
    op = op_of_file(path)
    if _is_ours(pq.read_schema(path)):
        return op, parquet.read_table(path, op)
    return op, autoheuristic.import_records(path).table


def op_of_file(path: str | Path) -> Op:
    """The op alone, by the file's schema; raises as ``read_records`` where that says enough."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no measurement file {path}; name one that is there")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file, truncated or damaged ({error}); copy it again") from error
    if _is_ours(schema):
        return find_op(schema.metadata[_OP].decode(errors="replace"))
    missing = [name for name in autoheuristic.COLUMNS if name not in schema.names]
    if missing:
        raise DataError(
            f"{path} is of neither schema that aks reads: it has no {_OP.decode()} in its metadata, as files of "
            f"'aks data merge' do, and it lacks {', '.join(missing)}; records of AutoHeuristic have the columns "
            f"{', '.join(autoheuristic.COLUMNS)}"
        )
    return find_op("mm")


def _is_ours(schema: pa.Schema) -> bool:
    return bool((schema.metadata or {}).get(_OP))
