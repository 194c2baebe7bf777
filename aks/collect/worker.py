"""A process that measures, so that a kernel that faults or hangs takes down a worker and not the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from aks.collect.outcome import Outcome, WorkerPoisonedError
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import CollectError
from aks.core.measurement import Regime, Status
from aks.core.naming import import_named
from aks.core.problem import Problem
from aks.ops.op import Op

Measure = Callable[[Op, DeviceSpec, Problem, Sequence[Config], Regime, Callable[[Config], None]], Iterable[Outcome]]
"""Measures configs of a problem on a device in a regime; tells its last argument each config that is about to run."""

START_SECONDS = 300.0
"""A worker that has not imported what it measures with by then never will."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Ready:
    pass


@dataclass(frozen=True, slots=True)
class _Started:
    config: Config


@dataclass(frozen=True, slots=True)
class _Finished:
    pass


@dataclass(frozen=True, slots=True)
class _Poisoned:
    detail: str


@dataclass(frozen=True, slots=True)
class _Failed:
    detail: str


@dataclass(frozen=True, slots=True)
class Fault:
    """How a race ended early. status is CRASHED or TIMEOUT, or None if the measuring code raised an exception.

    config is the one that ran when it happened; None if none did, or its outcome had come already.
    """

    status: Status | None
    config: Config | None
    detail: str


def resolve(path: str) -> Any:
    """What ``module:name`` names.

    Raises
    ------
    CollectError
        If it cannot be imported.
    """
    try:
        return import_named(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise CollectError(f"cannot import {path!r} ({error}); it must be 'module:function'") from error


def live_and_die_with_parent() -> None:
    """Leave Ctrl-C to the parent, and exit when it is gone, however it went: the GPU must be free for the next run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _serve(connection: Connection, measure_path: str, op: Op, device: DeviceSpec) -> None:
    """The worker's main function: measure what comes, tell what happens, until there is nothing more."""
    live_and_die_with_parent()
    try:
        measure: Measure = resolve(measure_path)
        connection.send(_Ready())
        while (task := connection.recv()) is not None:
            problem, configs, regime = task
            for outcome in measure(op, device, problem, configs, regime, lambda c: connection.send(_Started(c))):
                connection.send(outcome)
            connection.send(_Finished())
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except WorkerPoisonedError as error:
        connection.send(_Poisoned(str(error)))
    except Exception as error:  # whatever the measuring code raised, the parent decides what becomes of it
        place = "".join(traceback.format_tb(error.__traceback__)[-2:])
        connection.send(_Failed(f"{type(error).__name__}: {error}\n{place}"))


class Worker:
    """A running worker process. Races go to it one at a time; after a fault it is dead, and ``close`` is due."""

    def __init__(self, measure: str, op: Op, device: DeviceSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, measure, op, device), daemon=True, name="aks-measure"
        )
        self._process.start()
        theirs.close()  # so that reading ends when the worker does

    def wait_ready(self) -> None:
        """Return once the worker has imported what it measures with.

        Raises
        ------
        CollectError
            If it cannot.
        """
        try:
            message = self._connection.recv() if self._connection.poll(START_SECONDS) else None
        except (EOFError, OSError):
            message = _Failed(self._obituary())
        if not isinstance(message, _Ready):
            detail = message.detail if isinstance(message, _Failed) else f"no sign of life in {START_SECONDS:g} s"
            self.close()
            raise CollectError(f"the measuring process does not start: {detail.strip()}")

    def race(
        self,
        problem: Problem,
        configs: Sequence[Config],
        regime: Regime,
        *,
        hang_seconds: float,
        idle: Callable[[], None],
    ) -> tuple[list[Outcome], Fault | None]:
        """Measure ``configs`` on ``problem``; what came of it, and how it ended if not well.

        ``idle`` is called at every message, and several times a second while waiting. A worker that says nothing for
        ``hang_seconds`` is killed.
        """
        outcomes: list[Outcome] = []
        running: Config | None = None
        try:
            self._connection.send((problem, configs, regime))
            while True:
                match self._receive(hang_seconds, idle):
                    case None:
                        self.close()
                        return outcomes, Fault(Status.TIMEOUT, running, f"nothing happened for {hang_seconds:g} s")
                    case _Started(config):
                        running = config
                    case Outcome() as outcome:
                        outcomes.append(outcome)
                        running = None if running == outcome.measurement.config else running
                    case _Finished():
                        return outcomes, None
                    case _Poisoned(detail):
                        return outcomes, Fault(Status.CRASHED, running, detail)
                    case _Failed(detail):
                        return outcomes, Fault(None, running, detail)
        except (EOFError, OSError):
            return outcomes, Fault(Status.CRASHED, running, self._obituary())

    def _receive(self, hang_seconds: float, idle: Callable[[], None]) -> Any:
        """The next message; None if none comes in ``hang_seconds``."""
        deadline = monotonic() + hang_seconds
        idle()
        while not self._connection.poll(min(_POLL_SECONDS, hang_seconds)):
            if monotonic() > deadline:
                return None
            idle()
        return self._connection.recv()

    def _obituary(self) -> str:
        self._process.join(timeout=10)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"the measuring process died of {signal.Signals(-code).name}"
        return f"the measuring process ended with exit code {code}"

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.join(timeout=30)
