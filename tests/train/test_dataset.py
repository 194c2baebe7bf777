from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aks.collect.datafile import read_table
from aks.collect.store import Store
from aks.core.device import find_device
from aks.core.errors import DataError
from aks.core.measurement import Status
from aks.data.merge import merge
from aks.train.dataset import from_frame, load, undeclared
from tests.synthetic import synthetic_records
from tests.train.conftest import write_parquet


def cell(training_set, problem_row: dict, config_row: dict) -> tuple[int, int]:
    op = training_set.op
    problem, config = op.problem_type.from_row(problem_row), op.config_type.from_row(config_row)
    return training_set.problems.index(problem), training_set.configs.index(config)


def fast_row(frame: pd.DataFrame, op) -> int:
    """Position of a row that is not the vendor's."""
    return next(i for i, row in enumerate(frame.to_dict("records")) if op.config_type.from_row(row) != op.vendor)


def test_matrices_hold_what_was_measured(training_set, frame, op):
    assert training_set.configs[0] == op.vendor
    measured = {op.config_type.from_row(row) for row in frame.to_dict("records")}
    assert training_set.latency_us.shape == training_set.legal.shape == (len(training_set), len(measured))
    assert set(training_set.configs) == measured < set(op.space.configs)
    places = [op.space.places[config] for config in training_set.configs[1:]]
    assert places == sorted(places)
    for row in frame.sample(50, random_state=0).to_dict("records"):
        p, c = cell(training_set, row, row)
        assert training_set.latency_us[p, c] == row["latency_us"]
        assert row["families"] in training_set.families[p]


def test_what_was_not_measured_is_nan_and_what_is_illegal_is_inf(frame, op):
    training_set = from_frame(frame, op, also=op.space.configs)
    assert np.isinf(training_set.latency_us[~training_set.legal]).all()
    assert np.isnan(training_set.latency_us[training_set.legal]).any()
    assert np.isfinite(training_set.baseline_us).all()
    assert (training_set.oracle_us <= training_set.baseline_us).all()


def test_legality_is_what_the_rules_say(training_set, op):
    rng = np.random.default_rng(0)
    for p in rng.choice(len(training_set), 3, replace=False):
        problem, device = training_set.problems[p], training_set.devices[p]
        legal = set(op.space.legal(problem, device))
        assert [config in legal for config in training_set.configs] == training_set.legal[p].tolist()
        plain = set(op.space.legal(undeclared(problem), device))
        assert [config in plain for config in training_set.configs] == training_set.legal_undeclared[p].tolist()
    assert (training_set.legal_undeclared <= training_set.legal).all()


def test_features_read_the_problem_and_its_device(frame, op):
    other = pd.DataFrame([r.to_row() for r in synthetic_records(configs=2, device="a100-sxm4-80gb")])
    both = from_frame(pd.concat([frame, other], ignore_index=True), op)
    from aks.core.features import evaluate

    assert {device.name for device in both.devices} == {"h200", "a100-sxm4-80gb"}
    for p in (0, len(both) - 1):
        variables = both.devices[p].variables() | both.problems[p].variables()
        assert tuple(both.features[p]) == evaluate(op.features, variables)


def test_samples_of_several_runs_are_pooled(frame, op):
    at = fast_row(frame, op)
    again = frame.iloc[[at]].assign(run_id="again", latency_us=900.0, samples_us=[[900.0] * 3])
    pooled = from_frame(pd.concat([frame, again], ignore_index=True), op)
    p, c = cell(pooled, frame.iloc[at].to_dict(), frame.iloc[at].to_dict())
    assert pooled.latency_us[p, c] == np.median([*frame.iloc[at]["samples_us"], 900.0, 900.0, 900.0])


def test_a_full_measurement_outweighs_a_raced_and_a_failed_one(frame, op):
    at = fast_row(frame, op)
    row = frame.iloc[[at]]
    raced = row.assign(run_id="raced", status=Status.RACED_OUT.value, latency_us=1.0, samples_us=[[1.0]])
    failed = row.assign(run_id="failed", status=Status.CRASHED.value, latency_us=None, samples_us=[[]])
    both = from_frame(pd.concat([failed, raced, frame, raced, failed], ignore_index=True), op)
    p, c = cell(both, frame.iloc[at].to_dict(), frame.iloc[at].to_dict())
    assert both.latency_us[p, c] == frame.iloc[at]["latency_us"]
    assert both.trusted.all()


@pytest.mark.parametrize("status", [Status.WRONG_RESULT, Status.NONDETERMINISTIC])
def test_a_config_that_was_wrong_once_is_distrusted(frame, op, status):
    at = fast_row(frame, op)
    # In another regime and on another device: it does not matter where.
    bad = frame.iloc[[at]].assign(status=status.value, regime="warm", latency_us=None, samples_us=[[]])
    found = from_frame(pd.concat([frame, bad], ignore_index=True), op)
    config = op.config_type.from_row(frame.iloc[at].to_dict())
    assert [found.configs[c] for c in np.flatnonzero(~found.trusted)] == [config]
    best = np.where(found.trusted & np.isfinite(found.latency_us), found.latency_us, np.inf).min(axis=1)
    assert np.array_equal(found.oracle_us, best)


def test_a_problem_without_the_vendor_is_skipped_and_counted(frame, op, training_set):
    keep = [not (row["kind"] == op.vendor.kind and row["m"] == 13) for row in frame.to_dict("records")]
    found = from_frame(frame[keep], op)
    skipped = sum(problem.m == 13 for problem in training_set.problems)
    assert (len(found), found.source.skipped) == (len(training_set) - skipped, skipped)


def test_a_file_is_read_as_its_frame(data_file: Path, training_set, op):
    found = load(data_file, op)
    assert found.problems == training_set.problems
    assert np.array_equal(found.latency_us, training_set.latency_us, equal_nan=True)
    assert len(found.source.sha256) == 64


def test_collect_writes_what_train_reads(op, tmp_path):
    records = synthetic_records(configs=1)
    with Store.create(tmp_path / "runs.db", op=op, device=find_device("h200")) as store:
        store.add(records)
    merge(op, [read_table(tmp_path / "runs.db", op)], tmp_path / "h200.parquet")
    expected = from_frame(pd.DataFrame([record.to_row() for record in records]), op)
    assert set(load(tmp_path / "h200.parquet", op).problems) == set(expected.problems)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"aks_op": "conv"}, "aks_op conv"),
        ({"aks_schema_version": "0"}, "aks_schema_version 0"),
        ({"aks_space_fingerprint": "beef"}, "aks_space_fingerprint beef"),
        ({"aks_content_sha256": "beef"}, "altered"),
    ],
)
def test_a_foreign_or_altered_file_is_refused(frame, op, tmp_path, changed, said):
    path = write_parquet(frame.head(3), tmp_path / "x.parquet", op, **changed)
    with pytest.raises(DataError, match=said):
        load(path, op)


def test_a_missing_a_truncated_and_a_plain_file_are_refused(data_file, op, tmp_path, frame):
    with pytest.raises(DataError, match="no measurement file"):
        load(tmp_path / "none.parquet", op)
    (tmp_path / "cut.parquet").write_bytes(data_file.read_bytes()[:5000])
    with pytest.raises(DataError, match="truncated or damaged"):
        load(tmp_path / "cut.parquet", op)
    frame.to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="aks_schema_version missing"):
        load(tmp_path / "plain.parquet", op)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda frame: frame.head(0), "no rows"),
        (lambda frame: frame.drop(columns=["samples_us", "driver"]), "lacks the columns driver, samples_us"),
        (lambda frame: frame.assign(space_fingerprint="beef"), "beef"),
        (lambda frame: frame.assign(regime="warm"), "no rows of regime 'cold'"),
        (lambda frame: frame[frame["kind"] != "torch_mm"], "vendor's call"),
    ],
)
def test_a_frame_that_cannot_be_trained_on_is_refused(frame, op, broken, said):
    with pytest.raises(DataError, match=said):
        from_frame(broken(frame), op)


def test_configs_that_are_asked_for_get_a_column_in_every_regime(frame, op, training_set):
    asked = [config for config in op.space.configs if config not in training_set.configs][:3]
    warm = frame.head(1).assign(regime="warm", **op.vendor.to_row())
    both = pd.concat([frame, warm], ignore_index=True)
    for regime in ("cold", "warm"):
        found = from_frame(both, op, regime=regime, also=[*asked, op.vendor])
        assert set(found.configs) == {*training_set.configs, *asked}
        assert not np.isfinite(found.latency_us[:, [found.configs.index(config) for config in asked]]).any()


def test_promises_are_the_true_or_false_attributes(op):
    problem = op.problem_type(m=1, n=2, k=3, dtype="fp16", static_weights=True)
    assert undeclared(problem) == replace(problem, static_weights=False)


def test_subset_keeps_rows_together(training_set):
    some = training_set.subset([5, 2])
    assert some.problems == (training_set.problems[5], training_set.problems[2])
    assert np.array_equal(some.features, training_set.features[[5, 2]])
    assert find_device("h200") in some.devices
