"""What the tests of files share: tables of records, and changes that somebody might make to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pyarrow as pa

from aks.core.measurement import Measurement, Status
from aks.core.record import Record
from aks.data.schema import arrow_schema
from tests.collect.scene import OP


def table_of(records: Iterable[Record]) -> pa.Table:
    """The records' rows."""
    return pa.Table.from_pylist([record.to_row() for record in records], schema=arrow_schema(OP))


def failed(record: Record, status: Status) -> Record:
    """The record, had its config failed."""
    one = record.measurement
    return replace(record, measurement=Measurement(one.problem, one.config, one.regime, status, detail="why"))


def with_column(name: str, values: Callable[[list], list]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column, from its values to others of the same type."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).to_pylist()
        made = pa.array(values(column), type=table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), table.schema.field(name), made)

    return change
