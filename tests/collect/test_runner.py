"""Collecting with fake measuring functions: faults cost a worker, never the run or what it measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from aks.collect import runner
from aks.collect import store as store_module
from aks.core.errors import CollectError, DataError
from aks.core.measurement import Regime, Status
from tests.collect import fakes
from tests.collect.scene import CONFIGS, DEVICE, ENVIRONMENT, OP, run, stored, workloads

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "log.txt"
    path.touch()
    monkeypatch.setenv(fakes.LOG, str(path))
    return path


def by_algo(path: Path, m: int) -> dict[str, Status]:
    return {
        record.measurement.config.key(): record.measurement.status
        for record in stored(path)
        if getattr(record.measurement.problem, "m") == m  # noqa: B009
    }


def cells(path: Path) -> Counter:
    return Counter(
        (r.measurement.problem.key(), r.measurement.config.key(), r.measurement.regime) for r in stored(path)
    )


def test_collects_every_config_in_every_regime_with_all_that_is_known(tmp_path):
    summary = run("good", tmp_path / "a.db", regimes=[Regime.COLD, Regime.WARM], run_id="first")
    records = stored(tmp_path / "a.db")
    assert len(records) == 2 * 2 * len(CONFIGS) == summary.candidates
    assert summary.problems == 2
    assert summary.statuses == {"ok": len(records)}
    assert summary.stopped_by == "finished"
    assert summary.candidates_per_second > 0
    one = records[0]
    assert (one.device, one.environment, one.run_id, one.families) == (DEVICE, ENVIRONMENT, "first", ("alpha",))
    assert (one.num_launches, one.sm_clock_mhz) == (8, 1980)
    assert one.space_fingerprint == OP.space.fingerprint


def test_only_legal_configs_are_measured(tmp_path):
    run("good", tmp_path / "a.db", problems=1, configs=None)
    measured = {record.measurement.config for record in stored(tmp_path / "a.db")}
    problem = stored(tmp_path / "a.db")[0].measurement.problem
    assert measured == set(OP.space.legal(problem, DEVICE)) < set(OP.space.configs)


def test_each_problem_can_have_its_own_configs(tmp_path):
    first, second = (workload.problem for workload in workloads(2))
    foreign = OP.config_type.from_row({"kind": "cublaslt", "algo": 77})
    run("good", tmp_path / "a.db", problems=3, configs={first: CONFIGS[1:3], second: [CONFIGS[4], foreign]})
    measured = {m: set(by_algo(tmp_path / "a.db", m)) for m in (1, 2, 3)}
    keys = [config.key() for config in CONFIGS]
    # The vendor's call is always one; what is not in the space is not measured.
    assert measured == {1: set(keys[:3]), 2: {keys[0], keys[4]}, 3: {keys[0]}}


def test_the_same_command_goes_on_and_repeats_nothing(tmp_path, log):
    out = tmp_path / "a.db"
    assert run("good", out, problems=2).candidates == 2 * len(CONFIGS)
    assert run("good", out, problems=3).candidates == len(CONFIGS)
    assert run("good", out, problems=3).candidates == 0
    assert log.read_text().split("\n")[:-1] == ["1 cold", "2 cold", "3 cold"]
    assert set(cells(out).values()) == {1}


def test_a_run_group_measures_the_same_problems_again(tmp_path):
    out = tmp_path / "a.db"
    run("good", out, run_id="monday")
    assert run("good", out, run_id="tuesday", run_group="repeat").candidates == 2 * len(CONFIGS)
    assert set(cells(out).values()) == {2}


@pytest.mark.parametrize(
    ("measure", "status", "detail"),
    [
        ("exits", Status.CRASHED, "exit code 3"),
        ("segfaults", Status.CRASHED, "SIGSEGV"),
        ("poisons", Status.CRASHED, "illegal memory access"),
        ("hangs", Status.TIMEOUT, "nothing happened for 1 s"),
    ],
)
def test_a_fault_is_blamed_on_the_config_that_ran_and_the_rest_is_measured(tmp_path, measure, status, detail):
    out = tmp_path / "a.db"
    summary = run(measure, out, problems=1, hang_seconds=1.0 if measure == "hangs" else 60.0)
    statuses = by_algo(out, 1)
    assert statuses.pop("cublaslt algo=2") is status
    assert statuses.pop("cublaslt algo=1") is Status.WRONG_RESULT
    assert len(statuses) == len(CONFIGS) - 2
    assert set(statuses.values()) == {Status.OK}
    assert summary.races_given_up == 0
    assert any(detail in record.measurement.detail for record in stored(out))
    assert set(cells(out).values()) == {1}


def test_an_exception_of_the_measuring_code_gives_the_race_up_and_records_nothing_false(tmp_path):
    out = tmp_path / "a.db"
    summary = run("raises", out, problems=4)
    assert {getattr(record.measurement.problem, "m") for record in stored(out)} == {2, 4}  # noqa: B009
    assert summary.races_given_up == 2
    assert "2 races given up" in str(summary)
    assert run("good", out, problems=4).candidates == 2 * len(CONFIGS)


def test_a_worker_that_dies_before_any_config_is_tried_twice_then_the_race_is_given_up(tmp_path, log):
    summary = run("dies_before_starting", tmp_path / "a.db", problems=2)
    assert log.read_text().count("1 cold") == 2
    assert summary.races_given_up == 1
    assert len(stored(tmp_path / "a.db")) == len(CONFIGS)


def test_a_race_that_kills_worker_after_worker_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MAX_FAULTS", 2)
    summary = run("all_die", tmp_path / "a.db", problems=1, configs=OP.space.configs[:20])
    assert summary.statuses == {"crashed": 3}
    assert summary.races_given_up == 1


@pytest.mark.parametrize("measure", ["always_raises", "vendor_dies"])
def test_races_that_bring_nothing_stop_the_run_and_blame_no_config(tmp_path, measure, monkeypatch):
    monkeypatch.setattr(runner, "MAX_FRUITLESS_RACES", 2)
    with pytest.raises(CollectError, match="2 races in a row"):
        run(measure, tmp_path / "a.db", problems=9)
    assert stored(tmp_path / "a.db") == []


def test_a_measuring_function_that_leaves_a_config_out_is_refused(tmp_path):
    with pytest.raises(CollectError, match="one for each config"):
        run("forgets_one", tmp_path / "a.db", problems=1)
    assert stored(tmp_path / "a.db") == []


def test_a_measuring_function_that_does_not_exist_is_an_error_at_once(tmp_path):
    with pytest.raises(CollectError, match=r"does not start.*no_such_thing"):
        run("no_such_thing", tmp_path / "a.db")


def test_a_budget_that_is_used_up_stops_before_the_next_race(tmp_path):
    summary = run("good", tmp_path / "a.db", problems=3, minutes=0.0)
    assert (summary.stopped_by, summary.candidates, summary.races_left) == ("minutes", 0, 3)
    assert "the same command goes on" in str(summary)
    assert run("good", tmp_path / "a.db", problems=3).candidates == 3 * len(CONFIGS)


def test_kernels_are_compiled_ahead_once_and_failures_are_not_fatal(tmp_path, log):
    summary = run("good", tmp_path / "a.db", compiler="tests.collect.fakes", workers=1)
    assert summary.candidates == 2 * len(CONFIGS)
    compiled = [line for line in log.read_text().splitlines() if line.startswith("compile")]
    assert {"compile 0", "compile 1", "compile 2"} <= set(compiled)
    assert max(Counter(compiled).values()) == 1


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "a.db"
    connect = store_module.connect

    def small_disk(path, mode):
        connection = connect(path, mode)
        connection.execute("PRAGMA max_page_count = 14")
        return connection

    monkeypatch.setattr(store_module, "connect", small_disk)
    with pytest.raises(DataError, match=r"full.*run the same command again"):
        run("good", out, problems=50)
    monkeypatch.undo()
    before = cells(out)
    assert len(before) % len(CONFIGS) == 0
    assert 0 < len(before) < 50 * len(CONFIGS)
    summary = run("good", out, problems=50)
    assert summary.candidates == 50 * len(CONFIGS) - len(before)
    assert set(cells(out).values()) == {1}


COMMAND = """
import signal
import sys
from pathlib import Path
# Whatever a shell that started the tests in the background has made of it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.collect.scene import run
print(run("slow", Path(sys.argv[1]), problems=20, quiet=False).stopped_by)
"""


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"the run ended early: {process.communicate()}")
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def races_in(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if not line.startswith("pid")]


def test_a_run_killed_again_and_again_ends_complete_and_without_repeats(tmp_path, log):
    out = tmp_path / "a.db"
    for progress in (1, 8, 15):
        process = start(out)
        wait_for(lambda progress=progress: len(races_in(log)) >= progress, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = cells(out)
        assert len(before) % len(CONFIGS) == 0, "a race is in the store in part"
    last = start(out)
    stdout, stderr = last.communicate(timeout=60)
    assert stdout.endswith("finished\n"), stderr
    after = cells(out)
    assert len(after) == 20 * len(CONFIGS)
    assert set(after.values()) == {1}
    # A race may be measured twice only if the kill came between its end and its commit.
    assert len(races_in(log)) <= 20 + 3
    assert set(races_in(log)) == {f"{m} cold" for m in range(1, 21)}


def test_the_worker_does_not_outlive_a_killed_run(tmp_path, log):
    process = start(tmp_path / "a.db")
    wait_for(lambda: races_in(log), process)
    worker = int(log.read_text().split()[1])
    assert is_running(worker)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for _ in range(1000):
        if not is_running(worker):
            return
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker still runs 10 s after its parent was killed")


def test_ctrl_c_ends_the_run_with_a_summary_and_what_was_measured(tmp_path, log):
    process = start(tmp_path / "a.db")
    wait_for(lambda: len(races_in(log)) >= 3, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.endswith("interrupt\n"), stderr
    assert "the same command goes on from here" in stdout
    assert "Traceback" not in stderr
    assert len(cells(tmp_path / "a.db")) >= 2 * len(CONFIGS)
