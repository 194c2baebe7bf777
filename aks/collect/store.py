"""Measurements while they are taken: one SQLite file a run, which survives being killed at any instant.

Written with the standard library alone, because the GPU host need not have more. A race (the configs
of one problem in one regime) is one transaction: it is in the file whole or not at all.
"""

from __future__ import annotations

import json
import os
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from aks.collect.schema import StoreFacts, connect, explained, mismatch, read_facts, transaction, write_schema
from aks.core.device import DeviceSpec
from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.core.problem import Problem
from aks.core.record import Environment, Record
from aks.ops.op import Op

_BATCH_ROWS = 20_000


class Store:
    """The records of one op, config space and device in one SQLite file.

    Make one with ``Store.create`` (to write) or ``Store.open`` (to read); close it, or use it as a
    context manager.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, facts: StoreFacts) -> None:
        self._connection = connection
        self.path = path
        self.facts = facts

    @classmethod
    def create(cls, path: str | Path, *, op: Op, device: DeviceSpec) -> Self:
        """Open the store at ``path`` to go on writing, or make a new one.

        Raises
        ------
        DataError
            If the file is not a store, is corrupt, or is of another schema, op, space or device;
            then it is left as it was. If the file cannot be written.
        """
        path = Path(path)
        facts = StoreFacts(op.name, op.space.fingerprint, device)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = connect(path, "rwc")
            try:
                # An empty file is what a run leaves that was killed before its first transaction ended.
                if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                    write_schema(connection, facts)
                with transaction(connection):
                    pass  # a file that is locked or write-protected says so now, not after the first race
                store = cls(connection, path, read_facts(connection, path))
            except BaseException:
                connection.close()
                raise
        if store.facts != facts:
            store.close()
            raise DataError(mismatch(path, store.facts, facts))
        return store

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the store at ``path`` to read.

        Raises
        ------
        DataError
            If the file is missing, is not a store, is corrupt, or is of another schema.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no measurement store {path}; 'aks collect' makes one")
        with explained(path):
            # A run that was killed leaves a journal: only who may write can roll it back.
            writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
            connection = connect(path, "rw" if writable else "ro")
            try:
                return cls(connection, path, read_facts(connection, path))
            except BaseException:
                connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Every ``add`` that returned is in it already."""
        self._connection.close()

    def __len__(self) -> int:
        with explained(self.path):
            return self._connection.execute("SELECT count(*) FROM measurements").fetchone()[0]

    def num_problems(self) -> int:
        """Different problems that have records."""
        with explained(self.path):
            return self._connection.execute("SELECT count(DISTINCT problem) FROM measurements").fetchone()[0]

    def done(self, problem: Problem, regime: Regime, run_group: str = "") -> frozenset[str]:
        """Keys of the configs that have a record for that problem and regime in that run group."""
        query = """SELECT configs.key FROM measurements JOIN problems ON problems.id = problem
            JOIN configs ON configs.id = config WHERE problems.key = ? AND regime = ? AND run_group = ?"""
        with explained(self.path):
            rows = self._connection.execute(query, (problem.key(), regime.value, run_group)).fetchall()
        return frozenset(key for (key,) in rows)

    def add(self, records: Sequence[Record], *, run_group: str = "") -> None:
        """Write ``records`` in one transaction: all of them, or none.

        Raises
        ------
        DataError
            If a record is of another op, space or device, or is there already; if the disk is full.
            Nothing of ``records`` is then written, and nothing written before is lost.
        """
        for record in records:
            facts = StoreFacts(record.measurement.problem.OP, record.space_fingerprint, record.device)
            if facts != self.facts:
                raise DataError(mismatch(self.path, self.facts, facts))
        with explained(self.path), transaction(self._connection):
            for record in records:
                self._insert(record, run_group)

    def _insert(self, record: Record, run_group: str) -> None:
        measurement = record.measurement
        columns = (
            self._problem_id(measurement.problem, record.families),
            self._id("configs", "key", measurement.config.key(), row=json.dumps(measurement.config.to_row())),
            measurement.regime.value,
            run_group,
            measurement.status.value,
            array("f", measurement.samples_us).tobytes(),
            measurement.detail,
            record.num_launches,
            record.sm_clock_mhz,
            self._id("environments", "row", json.dumps(asdict(record.environment))),
            record.run_id,
            record.measured_at,
        )
        marks = ", ".join("?" * len(columns))
        self._connection.execute(f"INSERT INTO measurements VALUES ({marks})", columns)

    def _problem_id(self, problem: Problem, families: Sequence[str]) -> int:
        row_id = self._id("problems", "key", problem.key(), row=json.dumps(problem.to_row()))
        (known,) = self._connection.execute("SELECT families FROM problems WHERE id = ?", (row_id,)).fetchone()
        merged = json.dumps(sorted({*json.loads(known or "[]"), *families}))
        if merged != known:
            self._connection.execute("UPDATE problems SET families = ? WHERE id = ?", (merged, row_id))
        return row_id

    def _id(self, table: str, column: str, value: str, **others: str) -> int:
        """The id of the row of ``table`` that has ``value``; made if there is none."""
        found = self._connection.execute(f"SELECT id FROM {table} WHERE {column} = ?", (value,)).fetchone()
        if found:
            return found[0]
        names = ", ".join([column, *others])
        marks = ", ".join("?" * (1 + len(others)))
        cursor = self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (value, *others.values()))
        return cursor.lastrowid or 0

    def parts(self, op: Op) -> dict[str, dict[int, dict[str, Any]]]:
        """What many measurements share, by the column of ``batches`` that refers to it (problem, config, environment).

        For each id that part of ``Record.to_row``; the families are the problem's.

        Raises
        ------
        DataError
            If the store is not of ``op`` as it is now, or a part cannot be read.
        InvalidProblemError, IllegalConfigError
            If a problem or config has a value that is not allowed.
        """
        wanted = StoreFacts(op.name, op.space.fingerprint, self.facts.device)
        if wanted != self.facts:
            raise DataError(mismatch(self.path, self.facts, wanted))
        with explained(self.path):
            read = self._connection.execute
            problems = {
                row_id: op.problem_type.from_row(json.loads(row)).to_row() | {"families": ";".join(json.loads(names))}
                for row_id, row, names in read("SELECT id, row, families FROM problems")
            }
            configs = {
                row_id: op.config_type.from_row(json.loads(row)).to_row()
                for row_id, row in read("SELECT id, row FROM configs")
            }
            environments = {
                row_id: asdict(Environment(**json.loads(row)))
                for row_id, row in read("SELECT id, row FROM environments")
            }
        return {"problem": problems, "config": configs, "environment": environments}

    def batches(self) -> Iterator[dict[str, tuple[Any, ...]]]:
        """The measurements as they are in the file, unchecked: the columns of some thousands at a time.

        By column, because to make a ``Record`` of each row takes longer than all the rest of a merge.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        with explained(self.path):
            cursor = self._connection.execute("SELECT * FROM measurements")
            names = [name for name, *_ in cursor.description]
            while rows := cursor.fetchmany(_BATCH_ROWS):
                yield dict(zip(names, zip(*rows, strict=True), strict=True))
