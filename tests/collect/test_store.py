"""The store: a race is in it whole or not at all, and what does not belong is refused."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aks.collect.schema import APPLICATION_ID
from aks.collect.store import Store
from aks.core.device import find_device
from aks.core.errors import AksError, DataError
from aks.core.measurement import Measurement, Regime, Status
from tests.collect.scene import CONFIGS, DEVICE, OP, race, stored

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path) -> Path:
    """A store with one race."""
    path = tmp_path / "runs" / "a.db"
    with Store.create(path, op=OP, device=DEVICE) as store:
        store.add(race(1))
    return path


def sql(path: Path, text: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(text)
    connection.close()


def test_records_come_back_as_they_were_written(path):
    failed = race(2)[1]
    failed = replace(
        failed,
        measurement=Measurement(
            failed.measurement.problem, failed.measurement.config, Regime.WARM, Status.TIMEOUT, detail="hung"
        ),
        families=("beta", "gamma"),
        environment=replace(failed.environment, driver="999"),
    )
    with Store.create(path, op=OP, device=DEVICE) as store:
        store.add([failed])
        assert len(store) == len(CONFIGS) + 1
        assert store.num_problems() == 2
    assert set(stored(path)) == {*race(1), failed}


def test_done_knows_problem_regime_and_run_group(path):
    problem = race(1)[0].measurement.problem
    with Store.open(path) as store:
        assert store.done(problem, Regime.COLD) == {config.key() for config in CONFIGS}
        assert store.done(problem, Regime.WARM) == frozenset()
        assert store.done(problem, Regime.COLD, "again") == frozenset()
        assert store.done(race(2)[0].measurement.problem, Regime.COLD) == frozenset()


def test_families_of_a_problem_add_up(path):
    with Store.create(path, op=OP, device=DEVICE) as store:
        store.add(race(1, regime=Regime.WARM, families=("beta",)))
    assert {record.families for record in stored(path)} == {("alpha", "beta")}


def test_a_record_that_is_there_already_is_refused_with_all_that_came_with_it(path):
    with Store.create(path, op=OP, device=DEVICE) as store:
        with pytest.raises(DataError, match="already"):
            store.add([*race(2), race(1)[0]])
        store.add(race(1), run_group="again")
    assert len(stored(path)) == 2 * len(CONFIGS)


def test_a_full_disk_is_told_and_loses_nothing(path):
    with Store.create(path, op=OP, device=DEVICE) as store:
        store._connection.execute("PRAGMA max_page_count = 1")  # SQLite takes this as: no page more
        with pytest.raises(DataError, match=r"full.*make room.*nothing recorded is lost"):
            for m in range(2, 200):
                store.add(race(m))
        store._connection.execute("PRAGMA max_page_count = 100000")
        kept = len(store)
        assert kept % len(CONFIGS) == 0
        store.add(race(1000))
        assert len(store) == kept + len(CONFIGS)


OTHER_SPACE = replace(OP, space=replace(OP.space, revision=OP.space.revision + 1))
OTHER_DEVICE = replace(DEVICE, sm_count=66)


@pytest.mark.parametrize(
    ("op", "device", "message"),
    [
        (OTHER_SPACE, DEVICE, "space_fingerprint"),
        (OP, OTHER_DEVICE, "sm_count=66"),
        (OP, find_device("a100-sxm4-80gb"), "a100"),
        (replace(OP, name="other"), DEVICE, "op 'gemm'.*'other'"),
    ],
)
def test_a_store_of_another_space_device_or_op_is_refused_and_left_alone(path, op, device, message):
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        Store.create(path, op=op, device=device)
    assert path.read_bytes() == before


def test_records_of_another_device_or_space_are_refused(path):
    foreign = replace(race(2)[0], device=OTHER_DEVICE)
    stale = replace(race(2)[0], space_fingerprint="0" * 16)
    with Store.create(path, op=OP, device=DEVICE) as store:
        for record in (foreign, stale):
            with pytest.raises(DataError, match="must not be mixed"):
                store.add([record])
        assert len(store) == len(CONFIGS)


def test_reading_as_another_space_is_refused(path):
    with Store.open(path) as store, pytest.raises(DataError, match="space_fingerprint"):
        store.parts(OTHER_SPACE)


def test_another_schema_is_refused(path):
    sql(path, "PRAGMA user_version = 99")
    for use in (Store.open, lambda path: Store.create(path, op=OP, device=DEVICE)):
        with pytest.raises(DataError, match="schema version 99"):
            use(path)


def test_files_that_are_no_stores_are_refused_and_left_alone(tmp_path):
    text, foreign = tmp_path / "notes.db", tmp_path / "foreign.db"
    text.write_text("not a database, but long enough to be taken for one by its name " * 20)
    sql(foreign, "CREATE TABLE recipes (name TEXT)")
    for path in (text, foreign):
        before = path.read_bytes()
        for use in (Store.open, lambda path: Store.create(path, op=OP, device=DEVICE)):
            with pytest.raises(DataError, match="not a measurement store"):
                use(path)
        assert path.read_bytes() == before


def test_a_missing_or_unreachable_file_is_told(tmp_path):
    with pytest.raises(DataError, match="no measurement store"):
        Store.open(tmp_path / "none.db")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot use"):
        Store.create(tmp_path / "file" / "a.db", op=OP, device=DEVICE)


def test_a_truncated_store_is_refused(path):
    with Store.create(path, op=OP, device=DEVICE) as store:
        for m in range(2, 60):
            store.add(race(m))
    whole = path.read_bytes()
    for size in (30, 5000, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"damaged|not a measurement store"):
            Store.open(path)


def test_altered_rows_are_refused(path):
    changes = [
        *(f"measurements SET {change}" for change in ("status = 'splendid'", "status = 'crashed'", "regime = 'tepid'")),
        # No whole number of floats, even if all samples together are; none; -1; nan.
        *(f"measurements SET samples_us = x'{samples}'" for samples in ("00", "0000", "", "000080bf", "0000c07f")),
        *(f"measurements SET {change}" for change in ("problem = 99", "environment = 99", "num_launches = 'many'")),
        """problems SET row = '{"m": 0, "n": 1, "k": 1}'""",
        "problems SET families = NULL",
        """configs SET row = '{"kind": "splendid"}'""",
        "environments SET row = '{}'",
    ]
    for number, change in enumerate(changes):
        altered = path.with_name(f"altered{number}.db")
        altered.write_bytes(path.read_bytes())
        sql(altered, f"UPDATE {change}")
        with pytest.raises(AksError):
            stored(altered)


CRASHES = """
import json, os, signal, sys
from pathlib import Path
from aks.collect import schema, store
from tests.collect.scene import OP, DEVICE, race

folder = Path(sys.argv[1])

def kill_at(statement):
    seen = 0
    def trace(text):
        nonlocal seen
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
    return trace

def write(path, statement, connect=store.connect):
    def traced(path, mode):
        connection = connect(path, mode)
        connection.set_trace_callback(kill_at(statement))
        return connection
    store.connect = traced
    with store.Store.create(path, op=OP, device=DEVICE) as made:
        made.add(race(2))

results = []
for start in ("empty", "one race"):
    statement = 0
    while True:
        path = folder / f"{start} {statement}.db"
        if start == "one race":
            with store.Store.create(path, op=OP, device=DEVICE) as made:
                made.add(race(1))
        child = os.fork()
        if child == 0:
            write(path, statement)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with store.Store.create(path, op=OP, device=DEVICE) as made:
            after = len(made)
            again = not made.done(race(2)[0].measurement.problem, race(2)[0].measurement.regime)
            if again:
                made.add(race(2))
            results.append([start, statement, killed, after, len(made)])
        if not killed:
            break
        statement += 1
print(json.dumps(results))
"""


def test_killed_at_any_statement_a_race_is_whole_or_absent_and_writing_goes_on(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    results = json.loads(answer.stdout)
    for start, statement, killed, after, resumed in results:
        first = 0 if start == "empty" else len(CONFIGS)
        assert after in (first, first + len(CONFIGS)), (start, statement)
        assert after == first + len(CONFIGS) or killed
        assert resumed == first + len(CONFIGS)
    assert sum(killed for _, _, killed, _, _ in results) > 40, "the trace saw too few statements to prove anything"


def test_the_header_marks_the_file_as_ours(path):
    assert int.from_bytes(path.read_bytes()[68:72], "big") == APPLICATION_ID
