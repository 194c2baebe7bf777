"""A small data file."""

from __future__ import annotations

from pathlib import Path

import pytest

from aks.core.measurement import Status
from aks.core.record import Record
from aks.data.merge import merge
from tests.collect.scene import OP, race
from tests.data.tables import failed, table_of


@pytest.fixture
def records() -> list[Record]:
    """Two problems, one of them with a failure."""
    records = [*race(1), *race(2)]
    records[-1] = failed(records[-1], Status.CRASHED)
    return records


@pytest.fixture
def parquet(tmp_path: Path, records: list[Record]) -> Path:
    """The file of ``records``, alone in its folder."""
    path = tmp_path / "data" / "a.parquet"
    assert merge(OP, [table_of(records)], path) == len(records)
    return path
