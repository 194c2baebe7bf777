"""Merging: every measurement once, whatever tables it comes in."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from aks.core.errors import DataError
from aks.data.check import check
from aks.data.merge import merge
from aks.data.parquet import dataset_hash, read_table
from tests.collect.scene import CONFIGS, OP, race
from tests.data.tables import table_of


def test_merging_keeps_one_of_each_measurement_and_all_runs(parquet):
    same, repeat = table_of(race(1)), table_of(race(1, run_id="tuesday"))
    rows = merge(OP, [read_table(parquet, OP), same, repeat], parquet)
    merged = read_table(parquet, OP)
    assert rows == 3 * len(CONFIGS) == merged.num_rows
    assert check(merged, OP, parquet).repeated == len(CONFIGS)


def test_the_same_tables_give_the_same_file_in_any_order(tmp_path):
    one, two = table_of(race(1)), table_of(race(2))
    merge(OP, [one, two], tmp_path / "a.parquet")
    merge(OP, [two, one], tmp_path / "b.parquet")
    assert dataset_hash(tmp_path / "a.parquet") == dataset_hash(tmp_path / "b.parquet")


def test_nothing_to_merge_is_told_and_the_old_file_stays(parquet):
    before = parquet.read_bytes()
    with pytest.raises(DataError, match="nothing to merge"):
        merge(OP, [], parquet)
    assert parquet.read_bytes() == before
    assert [path.name for path in parquet.parent.iterdir()] == [parquet.name]


def test_a_hundred_thousand_rows_take_a_few_megabytes(tmp_path):
    rng = random.Random(0)
    records = []
    for record in (record for m in range(1, 401) for record in race(m)):
        base = rng.uniform(3, 300)
        samples = tuple(base * rng.gauss(1, 0.01) for _ in range(9))
        measurement = replace(record.measurement, samples_us=samples)
        records.append(replace(record, measurement=measurement))
    merge(OP, [table_of(records)], tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size * 100_000 / len(records) < 5e6
