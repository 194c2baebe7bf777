"""Parquet files: what was measured comes back, and nothing else is believed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aks.collect.datacheck import check
from aks.collect.datafile import data_files, dataset_hash, describe, merge, read_frame
from aks.collect.store import Store
from aks.core.errors import DataError
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import Record
from tests.collect.scene import CONFIGS, DEVICE, OP, race

OTHER_SPACE = replace(OP, space=replace(OP.space, revision=OP.space.revision + 1))


def store_of(path: Path, records: list[Record], op=OP) -> Path:
    with Store.create(path, op=op, device=DEVICE) as store:
        store.add(records)
    return path


def failed(record: Record, status: Status) -> Record:
    one = record.measurement
    return replace(record, measurement=Measurement(one.problem, one.config, one.regime, status, detail="why"))


@pytest.fixture
def parquet(tmp_path) -> Path:
    """Two problems, one of them with a failure."""
    records = [*race(1), *race(2)]
    records[-1] = failed(records[-1], Status.CRASHED)
    store = store_of(tmp_path / "a.db", records)
    assert merge(OP, [store], tmp_path / "data" / "a.parquet") == len(records)
    return tmp_path / "data" / "a.parquet"


def rewrite(path: Path, change, *, metadata=None) -> Path:
    """The file with ``change`` applied to its table, by someone who knows how to keep the metadata."""
    table = pq.read_table(path)
    kept = {**table.schema.metadata, **(metadata or {})}
    changed = change(table)
    out = path.with_name("changed.parquet")
    pq.write_table(changed.replace_schema_metadata(kept), out)
    return out


def with_column(name: str, values):
    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).to_pylist()
        made = pa.array(values(column), type=table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), table.schema.field(name), made)

    return change


def resealed(path: Path, change) -> Path:
    """As ``rewrite``, with the digest made right: only ``check`` can find out."""
    from aks.collect.datafile import content_digest

    changed = rewrite(path, change)
    table = pq.read_table(changed)
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"aks_content_sha256": content_digest(table)}), changed
    )
    return changed


def test_rows_come_back_as_records(parquet):
    frame = read_frame(parquet, OP)
    records = [Record.from_row(row, OP) for row in frame.to_dict("records")]
    expected = [*race(1), *race(2)]
    expected[-1] = failed(expected[-1], Status.CRASHED)
    assert set(records) == set(expected)
    assert list(frame.columns) == list(expected[0].to_row())
    assert str(frame["latency_us"].dtype) == "float64"
    assert sum(frame["latency_us"].isna()) == 1


def test_a_store_reads_like_the_parquet_file_made_of_it(parquet, tmp_path):
    by_key = ["m", "kind", "algo"]
    of_store = read_frame(tmp_path / "a.db", OP).sort_values(by_key, ignore_index=True)
    of_parquet = read_frame(parquet, OP).sort_values(by_key, ignore_index=True)
    pd.testing.assert_frame_equal(of_store, of_parquet)


def test_merging_keeps_one_of_each_measurement_and_all_runs(tmp_path, parquet):
    same = store_of(tmp_path / "same.db", race(1))
    repeat = store_of(tmp_path / "repeat.db", race(1, run_id="tuesday"))
    rows = merge(OP, [parquet, same, repeat], parquet)
    assert rows == 3 * len(CONFIGS) == len(read_frame(parquet, OP))
    assert check(parquet, OP).repeated == len(CONFIGS)


def test_the_same_sources_give_the_same_file_in_any_order(tmp_path):
    one, two = store_of(tmp_path / "1.db", race(1)), store_of(tmp_path / "2.db", race(2))
    merge(OP, [one, two], tmp_path / "a.parquet")
    merge(OP, [two, one], tmp_path / "b.parquet")
    assert dataset_hash(tmp_path / "a.parquet") == dataset_hash(tmp_path / "b.parquet")


def test_merging_another_space_is_refused_and_the_old_file_stays(tmp_path, parquet):
    records = [replace(record, space_fingerprint=OTHER_SPACE.space.fingerprint) for record in race(3)]
    stale = store_of(tmp_path / "stale.db", records, OTHER_SPACE)
    before = parquet.read_bytes()
    with pytest.raises(DataError, match="space_fingerprint"):
        merge(OP, [parquet, stale], parquet)
    with pytest.raises(DataError, match="nothing to merge"):
        merge(OP, [], parquet)
    assert parquet.read_bytes() == before
    assert [path.name for path in parquet.parent.iterdir()] == [parquet.name]


def test_a_place_that_cannot_be_written_is_told(tmp_path, parquet):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        merge(OP, [parquet], tmp_path / "file" / "out.parquet")


def test_a_hundred_thousand_rows_take_a_few_megabytes(tmp_path):
    rng = random.Random(0)
    records = []
    for record in (record for m in range(1, 401) for record in race(m)):
        base = rng.uniform(3, 300)
        samples = tuple(base * rng.gauss(1, 0.01) for _ in range(9))
        measurement = replace(record.measurement, samples_us=samples)
        records.append(replace(record, measurement=measurement))
    merge(OP, [store_of(tmp_path / "a.db", records)], tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size * 100_000 / len(records) < 5e6


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
    with Store.create(tmp_path / "bare.db", op=OP, device=DEVICE):
        pass
    with pytest.raises(DataError, match="no measurements"):
        read_frame(tmp_path / "bare.db", OP)


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


def test_check_says_what_is_in_a_file(parquet):
    summary = check(parquet, OP)
    assert (summary.rows, summary.problems, summary.configs) == (2 * len(CONFIGS), 2, len(CONFIGS))
    assert summary.statuses == {"ok": 2 * len(CONFIGS) - 1, "crashed": 1}
    assert summary.families == {"alpha": 2}
    assert summary.regimes == {"cold": 2}
    assert summary.devices == (DEVICE.name,)
    assert summary.noise == pytest.approx(1 / 10.5)
    assert (summary.vendorless, summary.repeated) == (0, 0)
    assert "driver 580.1" in str(summary)
    assert "noise: 9.52% median" in str(summary)


def test_check_counts_races_without_the_vendor(tmp_path):
    records = [
        failed(record, Status.TIMEOUT) if record.measurement.config == OP.vendor else record for record in race(1)
    ]
    assert check(store_of(tmp_path / "a.db", records), OP).vendorless == 1


def test_check_measures_how_runs_differ(tmp_path):
    def later(record: Record) -> Record:
        slower = tuple(1.1 * sample for sample in record.measurement.samples_us)
        return replace(record, run_id="b", measurement=replace(record.measurement, samples_us=slower))

    merge(
        OP,
        [store_of(tmp_path / "a.db", race(1)), store_of(tmp_path / "b.db", [later(record) for record in race(1)])],
        tmp_path / "a.parquet",
    )
    summary = check(tmp_path / "a.parquet", OP)
    assert summary.repeated == len(CONFIGS)
    assert summary.repeat_noise == pytest.approx(0.1, rel=1e-3)
    assert "between runs: 10.00%" in str(summary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_column("samples_us", lambda values: [[-1.0], *values[1:]]), "no positive microseconds"),
        (with_column("samples_us", lambda values: [[], *values[1:]]), "timed but have no samples"),
        (with_column("status", lambda values: ["crashed", *values[1:]]), "not timed but have samples"),
        (with_column("status", lambda values: ["splendid", *values[1:]]), "unknown status"),
        (with_column("regime", lambda values: ["tepid", *values[1:]]), "unknown regime"),
        (with_column("latency_us", lambda values: [3.0, *values[1:]]), "not the median"),
        (with_column("latency_us", lambda values: [None, *values[1:]]), "not the median"),
        (lambda table: pa.concat_tables([table, table.slice(0, 2)]), "2 rows are there twice"),
        (with_column("alignment", lambda values: [2] * len(values)), "illegal for the problem"),
        (with_column("algo", lambda values: [77] * len(values)), "not in the space"),
    ],
)
def test_check_finds_rows_that_cannot_be_true(parquet, change, message):
    with pytest.raises(DataError, match=message):
        check(resealed(parquet, change), OP)


def test_check_accepts_what_collecting_can_write(tmp_path):
    records = [failed(record, status) for record, status in zip(race(5), list(Status)[2:], strict=False)]
    warm = race(5, regime=Regime.WARM)
    raced = [
        replace(
            record,
            measurement=Measurement(
                record.measurement.problem, record.measurement.config, Regime.WARM, Status.RACED_OUT, (7.0, 8.0)
            ),
        )
        for record in warm
    ]
    assert check(store_of(tmp_path / "a.db", [*records, *raced]), OP).statuses["raced_out"] == len(raced)


def test_describe_and_list_whatever_is_there(tmp_path, parquet):
    facts = describe(parquet)
    assert (facts.op, facts.rows, facts.devices) == ("gemm", 2 * len(CONFIGS), ("h200",))
    assert facts.space_fingerprint == OP.space.fingerprint
    assert describe(tmp_path / "a.db").rows == facts.rows
    assert data_files([tmp_path]) == sorted([tmp_path / "a.db", parquet])
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no data file"):
        describe(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="cannot read"):
        dataset_hash(tmp_path / "none.parquet")
