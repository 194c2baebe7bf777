"""Parquet files: what was measured comes back, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aks.core.errors import DataError
from aks.core.record import Record
from aks.data.parquet import dataset_hash, read_frame, read_table, write_table
from tests.collect.scene import OP, race
from tests.data.tables import table_of, with_column


def rewrite(path: Path, change, *, metadata=None) -> Path:
    """The file with ``change`` applied to its table, by someone who knows how to keep the metadata."""
    table = pq.read_table(path)
    kept = {**table.schema.metadata, **(metadata or {})}
    changed = change(table)
    out = path.with_name("changed.parquet")
    pq.write_table(changed.replace_schema_metadata(kept), out)
    return out


def test_rows_come_back_as_records(parquet, records):
    frame = read_frame(parquet, OP)
    assert {Record.from_row(row, OP) for row in frame.to_dict("records")} == set(records)
    assert len(frame) == len(records)
    assert list(frame.columns) == list(records[0].to_row())
    assert str(frame["latency_us"].dtype) == "float64"
    assert sum(frame["latency_us"].isna()) == 1


def test_a_place_that_cannot_be_written_is_told(tmp_path, parquet, records):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        write_table(table_of(records), OP, tmp_path / "file" / "out.parquet")


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no measurement file"):
        read_frame(tmp_path / "none.parquet", OP)
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(DataError, match="is empty"):
        read_frame(tmp_path / "empty.parquet", OP)
    (tmp_path / "text.parquet").write_text("m,n,k\n1,2,3\n")
    with pytest.raises(DataError, match="no Parquet file"):
        read_frame(tmp_path / "text.parquet", OP)
    pd.DataFrame({"m": [1]}).to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(DataError, match="aks_schema_version missing"):
        read_frame(tmp_path / "foreign.parquet", OP)
    write_table(table_of([]), OP, tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="no measurements"):
        read_frame(tmp_path / "bare.parquet", OP)


def test_truncated_files_are_refused(parquet):
    whole = parquet.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        parquet.write_bytes(whole[:size])
        with pytest.raises(DataError):
            read_frame(parquet, OP)


def test_any_flipped_byte_of_the_contents_is_found(parquet):
    whole = parquet.read_bytes()
    original = read_frame(parquet, OP)
    positions = range(4, len(whole), max(1, len(whole) // 120))
    refused = 0
    for position in positions:
        parquet.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            frame = read_frame(parquet, OP)
        except DataError:
            refused += 1
        else:
            # Some bytes, of statistics say, decide nothing: what is read must then be what was written.
            pd.testing.assert_frame_equal(frame, original)
    assert refused > len(positions) / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["latency_us"]), "lacks latency_us"),
        (lambda table: table.append_column("extra", pa.array([1] * len(table))), "unknown extra"),
        (lambda table: table.append_column("op", table.column("op")), "twice"),
        (lambda table: table.select(table.column_names[::-1]), "another order"),
        (lambda table: table.slice(0, 3), "altered"),
        (lambda table: table.slice(0, 0), "altered|no measurements"),
        (lambda table: pa.concat_tables([table, table]), "altered"),
        (with_column("latency_us", lambda values: [0.1, *values[1:]]), "altered"),
        (with_column("status", lambda values: ["ok"] * len(values)), "altered"),
        (with_column("samples_us", lambda values: [[1.0], *values[1:]]), "altered"),
        (
            lambda table: table.set_column(2, "m", table.column("m").cast(pa.float64())),
            "has m as double, not int64",
        ),
    ],
)
def test_altered_files_are_refused(parquet, change, message):
    with pytest.raises(DataError, match=message):
        read_frame(rewrite(parquet, change), OP)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({b"aks_schema_version": b"99"}, "aks_schema_version 99"),
        ({b"aks_op": b"conv"}, "aks_op conv"),
        ({b"aks_space_fingerprint": b"0" * 16}, "aks_space_fingerprint 0000"),
    ],
)
def test_other_schemas_ops_and_spaces_are_refused(parquet, metadata, message):
    with pytest.raises(DataError, match=message):
        read_frame(rewrite(parquet, lambda table: table, metadata=metadata), OP)


def test_a_file_without_a_digest_is_refused(parquet):
    table = pq.read_table(parquet)
    kept = {name: value for name, value in table.schema.metadata.items() if name != b"aks_content_sha256"}
    pq.write_table(table.replace_schema_metadata(kept), parquet)
    with pytest.raises(DataError, match="no aks_content_sha256"):
        read_frame(parquet, OP)


def test_a_file_that_is_not_there_has_no_hash(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        dataset_hash(tmp_path / "none.parquet")


def test_files_from_before_partitions_are_read_as_of_whole_gpus(tmp_path):
    table = table_of(race(1))
    old = table.drop_columns(["gpu_sm_count"])
    write_table(old, OP, tmp_path / "old.parquet")
    assert read_table(tmp_path / "old.parquet", OP) == table
