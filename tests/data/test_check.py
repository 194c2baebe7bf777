"""Checking: what is in a table, and which rows cannot be true."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from aks.core.errors import DataError
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import Record
from aks.data.check import check
from tests.collect.scene import CONFIGS, DEVICE, OP, race
from tests.data.tables import failed, table_of, with_column


def test_check_says_what_is_in_a_table(records):
    summary = check(table_of(records), OP, "a.parquet")
    assert (summary.rows, summary.problems, summary.configs) == (2 * len(CONFIGS), 2, len(CONFIGS))
    assert summary.statuses == {"ok": 2 * len(CONFIGS) - 1, "crashed": 1}
    assert summary.families == {"alpha": 2}
    assert summary.regimes == {"cold": 2}
    assert summary.devices == (DEVICE.name,)
    assert summary.noise == pytest.approx(1 / 10.5)
    assert (summary.vendorless, summary.repeated) == (0, 0)
    assert "driver 580.1" in str(summary)
    assert "noise: 9.52% median" in str(summary)


def test_check_counts_races_without_the_vendor():
    records = [
        failed(record, Status.TIMEOUT) if record.measurement.config == OP.vendor else record for record in race(1)
    ]
    assert check(table_of(records), OP, "a.db").vendorless == 1


def test_check_measures_how_runs_differ():
    def later(record: Record) -> Record:
        slower = tuple(1.1 * sample for sample in record.measurement.samples_us)
        return replace(record, run_id="b", measurement=replace(record.measurement, samples_us=slower))

    both = table_of([*race(1), *(later(record) for record in race(1))])
    summary = check(both, OP, "a.parquet")
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
def test_check_finds_rows_that_cannot_be_true(records, change, message):
    with pytest.raises(DataError, match=message):
        check(change(table_of(records)), OP, "a.parquet")


def test_check_accepts_what_collecting_can_write():
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
    assert check(table_of([*records, *raced]), OP, "a.db").statuses["raced_out"] == len(raced)
