"""A measurement's status and samples agree, and a record survives its row."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aks.core.errors import AksError, DataError
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import Record
from aks.ops import OPS
from tests.core.test_problem import some_problem
from tests.synthetic import synthetic_records

OP = next(iter(OPS.values()))
PROBLEM, CONFIG = some_problem(OP), OP.vendor
RECORD = synthetic_records(configs=1)[0]


@pytest.mark.parametrize("status", [status for status in Status if status.timed])
@pytest.mark.parametrize("samples", [(), (1.0, 0.0), (-1.0,), (float("nan"),), (float("inf"),), (1e9,)])
def test_a_timed_status_needs_positive_microseconds(status, samples):
    with pytest.raises(DataError, match="positive microseconds"):
        Measurement(PROBLEM, CONFIG, Regime.COLD, status, samples)


@pytest.mark.parametrize("status", [status for status in Status if not status.timed])
def test_a_failure_has_no_latency(status):
    failed = Measurement(PROBLEM, CONFIG, Regime.COLD, status, detail="why")
    assert failed.latency_us is None
    with pytest.raises(DataError, match="must not have samples"):
        replace(failed, samples_us=(1.0,))


def test_latency_is_the_median():
    assert Measurement(PROBLEM, CONFIG, Regime.COLD, Status.OK, (9.0, 1.0, 2.0)).latency_us == 2.0
    assert Measurement(PROBLEM, CONFIG, Regime.COLD, Status.OK, (4.0, 1.0)).latency_us == 2.5


def test_a_record_survives_its_row_and_json():
    assert Record.from_row(RECORD.to_row(), OP) == RECORD
    assert Record.from_row(json.loads(json.dumps(RECORD.to_row())), OP) == RECORD


def test_a_failed_record_survives_its_row():
    failed = replace(
        RECORD,
        measurement=Measurement(PROBLEM, CONFIG, Regime.CHAIN, Status.CRASHED, detail="worker died: SIGSEGV"),
        families=("llama-3", "qwen-3"),
    )
    assert Record.from_row(failed.to_row(), OP) == failed


def test_every_column_of_a_row_is_needed_or_has_a_default():
    defaults = {"detail"} | set(OP.config_type.__dataclass_fields__) | set(OP.problem_type.__dataclass_fields__)
    defaults |= {"registers_per_sm", "max_threads_per_block", "gpu_sm_count", "latency_us"}
    for column in set(RECORD.to_row()) - defaults:
        row = RECORD.to_row()
        del row[column]
        with pytest.raises(AksError):
            Record.from_row(row, OP)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("schema_version", 99, "schema_version 99"),
        ("op", "conv", "op 'conv'"),
        ("regime", "tepid", "tepid"),
        ("status", "fine", "fine"),
        ("samples_us", [], "positive microseconds"),
        ("samples_us", ["fast"], "cannot be read"),
        ("m", 0, "m=0"),
        ("kind", "steam", "kind='steam'"),
        ("sm_count", 0, "sm_count=0"),
    ],
)
def test_a_row_with_a_bad_value_is_refused(column, value, message):
    with pytest.raises(AksError, match=message):
        Record.from_row(RECORD.to_row() | {column: value}, OP)
