"""Stores and Parquet files alike: both read as the same table, and neither is believed unread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pyarrow as pa
import pytest

from aks.collect.datafile import data_files, read_table
from aks.collect.store import Store
from aks.core.errors import DataError
from aks.core.measurement import Regime, Status
from aks.core.record import Record
from aks.data.check import check
from aks.data.merge import merge
from tests.collect.scene import CONFIGS, DEVICE, ENVIRONMENT, OP, race
from tests.data.tables import failed, table_of

OTHER_SPACE = replace(OP, space=replace(OP.space, revision=OP.space.revision + 1))


def store_of(path: Path, records: list[Record], op=OP) -> Path:
    with Store.create(path, op=op, device=DEVICE) as store:
        store.add(records)
    return path


def merge_files(sources: list[Path], out: Path) -> int:
    """As ``aks data merge``."""
    return merge(OP, [read_table(path, OP) for path in sources], out)


@pytest.fixture
def records() -> list[Record]:
    """Two problems; what can differ in one store does."""
    first, second = race(1, families=("alpha", "beta")), race(2, regime=Regime.CHAIN, run_id="tuesday")
    second[0] = replace(second[0], environment=replace(ENVIRONMENT, driver="999"), sm_clock_mhz=0)
    uneven = replace(second[1].measurement, status=Status.RACED_OUT, samples_us=(7.1, 9.2))
    second[1] = replace(second[1], measurement=uneven, num_launches=3, measured_at="2026-02-02T00:00:00+00:00")
    return [*first, *second[:-1], failed(second[-1], Status.CRASHED)]


@pytest.fixture
def store(tmp_path, records) -> Path:
    return store_of(tmp_path / "a.db", records)


@pytest.fixture
def parquet(tmp_path, store) -> Path:
    """The file made of ``store``, alone in its folder."""
    assert merge_files([store], tmp_path / "data" / "a.parquet") == 2 * len(CONFIGS)
    return tmp_path / "data" / "a.parquet"


def in_order(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("m", "kind", "algo")])


def test_a_store_reads_as_the_rows_of_its_records(store, records):
    written = in_order(table_of(records))
    # The store keeps samples as float32, so latencies are medians of these.
    medians = [median(samples) if samples else None for samples in written.column("samples_us").to_pylist()]
    place = written.schema.get_field_index("latency_us")
    expected = written.set_column(place, written.schema.field(place), [medians])
    assert in_order(read_table(store, OP)).equals(expected)


def test_a_store_reads_like_the_parquet_file_made_of_it(store, parquet):
    assert in_order(read_table(store, OP)).equals(in_order(read_table(parquet, OP)))


def test_a_large_store_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("aks.collect.store._BATCH_ROWS", 7)
    records = [record for m in range(1, 6) for record in race(m)]
    read = read_table(store_of(tmp_path / "a.db", records), OP)
    assert in_order(read).equals(in_order(table_of(records)))


def test_merging_keeps_one_of_each_measurement_and_all_runs(tmp_path, parquet):
    same = store_of(tmp_path / "same.db", race(1))
    repeat = store_of(tmp_path / "repeat.db", race(1, run_id="tuesday"))
    rows = merge_files([parquet, same, repeat], parquet)
    merged = read_table(parquet, OP)
    assert rows == 3 * len(CONFIGS) == merged.num_rows
    assert check(merged, OP, parquet).repeated == len(CONFIGS)


def test_merging_another_space_is_refused_and_the_old_file_stays(tmp_path, parquet):
    records = [replace(record, space_fingerprint=OTHER_SPACE.space.fingerprint) for record in race(3)]
    stale = store_of(tmp_path / "stale.db", records, OTHER_SPACE)
    before = parquet.read_bytes()
    with pytest.raises(DataError, match="space_fingerprint"):
        merge_files([parquet, stale], parquet)
    assert parquet.read_bytes() == before
    assert [path.name for path in parquet.parent.iterdir()] == [parquet.name]


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no measurement file"):
        read_table(tmp_path / "none.db", OP)
    with pytest.raises(DataError, match="no measurement file"):
        read_table(tmp_path, OP)
    (tmp_path / "empty.db").touch()
    with pytest.raises(DataError, match="is empty"):
        read_table(tmp_path / "empty.db", OP)
    (tmp_path / "text.db").write_text("m,n,k\n1,2,3\n")
    with pytest.raises(DataError, match="no Parquet file"):
        read_table(tmp_path / "text.db", OP)
    with Store.create(tmp_path / "bare.db", op=OP, device=DEVICE):
        pass
    with pytest.raises(DataError, match="no measurements"):
        read_table(tmp_path / "bare.db", OP)


def test_files_are_listed(tmp_path, store, parquet):
    (tmp_path / "notes.txt").touch()
    assert data_files([tmp_path]) == sorted([store, parquet])
