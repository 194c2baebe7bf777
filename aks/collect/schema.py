"""The SQLite file under a store: its header and tables, its transactions, and its errors in plain words."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from aks.core.device import DeviceSpec
from aks.core.errors import AksError, DataError
from aks.core.record import SCHEMA_VERSION

APPLICATION_ID = 0x616B7331
"""Marks the file as ours in SQLite's header ("aks1")."""
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE problems (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, row TEXT NOT NULL, families TEXT)",
    "CREATE TABLE configs (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, row TEXT NOT NULL)",
    "CREATE TABLE environments (id INTEGER PRIMARY KEY, row TEXT UNIQUE NOT NULL)",
    # run_group is part of the key so that a problem can be measured again on purpose, and only then.
    """CREATE TABLE measurements (
        problem INTEGER NOT NULL REFERENCES problems, config INTEGER NOT NULL REFERENCES configs,
        regime TEXT NOT NULL, run_group TEXT NOT NULL, status TEXT NOT NULL, samples_us BLOB NOT NULL,
        detail TEXT NOT NULL, num_launches INTEGER NOT NULL, sm_clock_mhz INTEGER NOT NULL,
        environment INTEGER NOT NULL REFERENCES environments, run_id TEXT NOT NULL, measured_at TEXT NOT NULL,
        PRIMARY KEY (problem, regime, run_group, config)) WITHOUT ROWID""",
)


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What all records of one store share."""

    op: str
    space_fingerprint: str
    device: DeviceSpec


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open ``path`` in SQLite's ``mode`` (``ro``, ``rw``, ``rwc``); transactions begin and end by hand."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None)
    try:
        # A rollback journal, not a write-ahead log: between transactions the one file holds everything,
        # so a copy of it is complete. EXTRA syncs the directory too; at one commit a race it costs nothing.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
    except BaseException:
        connection.close()
        raise
    return connection


def write_schema(connection: sqlite3.Connection, facts: StoreFacts) -> None:
    """Make the tables and the header, all or none."""
    with transaction(connection):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for table in _TABLES:
            connection.execute(table)
        rows = {"op": facts.op, "space_fingerprint": facts.space_fingerprint, "device": facts.device.to_row()}
        for name, value in rows.items():
            connection.execute("INSERT INTO meta VALUES (?, ?)", (name, json.dumps(value)))


def read_facts(connection: sqlite3.Connection, path: Path) -> StoreFacts:
    """What the file says it holds.

    Raises
    ------
    DataError
        If it is not a store, is of another schema, or is damaged.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise DataError(f"{path} is not a measurement store of aks; name another file, or move this one away")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version}; this version of aks reads {SCHEMA_VERSION}: "
            "name another file, or use the version of aks that wrote it"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DataError(f"{path} is damaged ({verdict}); copy it again, or collect into another file")
    meta = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM meta")}
    return StoreFacts(meta["op"], meta["space_fingerprint"], DeviceSpec.from_row(meta["device"]))


def mismatch(path: Path, found: StoreFacts, wanted: StoreFacts) -> str:
    """The message for measurements that do not belong in a file."""
    for field in fields(StoreFacts):
        if getattr(found, field.name) != getattr(wanted, field.name):
            return (
                f"{path} holds measurements of {field.name} {getattr(found, field.name)!r}; "
                f"these are of {getattr(wanted, field.name)!r}, and the two must not be mixed: name another file"
            )
    return f"{path} holds other measurements; name another file"


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """What is executed inside is in the file whole afterwards, or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into a DataError that says what to do."""
    try:
        yield
    except AksError:
        raise
    except sqlite3.IntegrityError as error:
        raise DataError(
            f"{path} has such a record already ({error}); is another 'aks collect' writing to it? Let one finish first"
        ) from error
    except (sqlite3.OperationalError, OSError) as error:
        raise DataError(
            f"cannot use {path}: {error}. If the disk is full or the file locked, make room or wait, then run the "
            "same command again: nothing recorded is lost"
        ) from error
    except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a measurement store, or is damaged ({error}); copy it again, or name another file"
        ) from error


def is_store(path: Path) -> bool:
    """Whether the file starts as SQLite files do."""
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
