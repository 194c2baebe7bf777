"""Collecting: every legal config of every problem, in races that a crash, a hang or a kill cannot undo."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic

from aks.collect.compiler import CompileAhead
from aks.collect.outcome import Outcome
from aks.collect.progress import CollectProgress, CollectSummary
from aks.collect.sources import Workload
from aks.collect.store import Store
from aks.collect.worker import Fault, Worker
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import CollectError, InvalidProblemError
from aks.core.measurement import Measurement, Regime
from aks.core.problem import Problem
from aks.core.record import Environment, Record
from aks.ops.op import Op

MAX_FAULTS = 6
"""A race that costs more workers than this is given up: the next run tries what is left of it."""
MAX_FRUITLESS_RACES = 3
"""After so many races in a row without any result the machine is at fault, not a config."""


def collect(
    op: Op,
    workloads: Iterable[Workload],
    *,
    out: str | Path,
    device: DeviceSpec,
    environment: Environment,
    regimes: Sequence[Regime] = (Regime.COLD,),
    configs: Sequence[Config] | Mapping[Problem, Sequence[Config]] | None = None,
    minutes: float | None = None,
    measure: str = "aks.collect.timer:measure",
    compiler: str | None = None,
    workers: int | None = None,
    hang_seconds: float = 120.0,
    run_id: str = "",
    run_group: str = "",
    quiet: bool = False,
) -> CollectSummary:
    """Measure every legal config of the problems in ``workloads``, in their order, and write a store.

    What the store has already is not measured again: the same call goes on where the last one was
    stopped. Problems should come shuffled, so that a run that is cut short has a spread of them.

    Parameters
    ----------
    out
        The SQLite file: made if missing, continued if it is of this op, space and device.
    configs
        Measure these alone (of the space; the vendor's call is always one), or for each problem its own.
    minutes
        Begin no race after so many minutes, compiling included.
    measure
        ``module:function`` that measures, called in the worker process (see ``worker.Measure``).
    compiler
        Module with ``compile_jobs`` and ``compile_job``; by default the op's.
    workers
        Processes that compile ahead; by default all cores but two. 0, or an op that has no compiler: the
        worker compiles for itself.
    hang_seconds
        A worker that is silent for so long is killed, and what it ran recorded as TIMEOUT.
    run_id
        Names this start of this machine; made up if empty.
    run_group
        Measurements of another group do not count as done: for measuring the same problems again.

    Raises
    ------
    DataError
        If the store cannot be used, or the disk is full; what was recorded is kept.
    CollectError
        If the worker does not start, or races bring no result again and again.
    InvalidProblemError
        If the op cannot be measured in a regime.
    """
    if unknown := [regime for regime in regimes if regime not in op.regimes]:
        raise InvalidProblemError(
            f"{op.name} cannot be measured in regime {', '.join(unknown)}; choose of {', '.join(op.regimes)}"
        )
    compiler = op.compiler if compiler is None else compiler
    with Store.create(out, op=op, device=device) as store:
        run = _Run(op, store, device, environment, run_id or _new_run_id(), run_group, hang_seconds, measure, configs)
        races = [(workload, regime) for workload in workloads for regime in regimes]
        deadline = monotonic() + 60 * minutes if minutes is not None else float("inf")
        if workers is None:
            workers = max(1, (os.cpu_count() or 1) - 2)
        if workers and compiler:
            problems = list(dict.fromkeys(workload.problem for workload, _ in races))
            wanted = partial(run.wanted, regimes)
            run.ahead = CompileAhead(compiler, problems, wanted, device, workers)
        with CollectProgress(total=len(races), shown=not quiet) as run.progress:
            try:
                run.all(races, deadline)
            except KeyboardInterrupt:
                run.summary.stopped_by = "interrupt"
            finally:
                run.close()
    if not quiet:
        print(run.summary)
    return run.summary


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


class _Run:
    """The state of one call of ``collect``."""

    def __init__(
        self,
        op: Op,
        store: Store,
        device: DeviceSpec,
        environment: Environment,
        run_id: str,
        run_group: str,
        hang_seconds: float,
        measure: str,
        configs: Sequence[Config] | Mapping[Problem, Sequence[Config]] | None,
    ) -> None:
        self.op = op
        self.store = store
        self.device = device
        self.environment = environment
        self.run_id = run_id
        self.run_group = run_group
        self.hang_seconds = hang_seconds
        self.measure = measure
        self.configs = configs
        self.summary = CollectSummary(store.path)
        self.progress = CollectProgress(total=0, shown=False)
        self.ahead: CompileAhead | None = None
        self.worker: Worker | None = None
        self.legal = lru_cache(maxsize=64)(self._legal)

    def _legal(self, problem: Problem) -> list[Config]:
        chosen = self.configs.get(problem, ()) if isinstance(self.configs, Mapping) else self.configs
        among = None if chosen is None else {self.op.vendor, *chosen}
        return self.op.space.legal(problem, self.device, among)

    def remaining(self, problem: Problem, regime: Regime) -> list[Config]:
        """Legal configs without a record."""
        done = self.store.done(problem, regime, self.run_group)
        return [config for config in self.legal(problem) if config.key() not in done]

    def wanted(self, regimes: Sequence[Regime], problem: Problem) -> list[Config]:
        """Configs that some regime still has to measure."""
        return list(dict.fromkeys(config for regime in regimes for config in self.remaining(problem, regime)))

    def all(self, races: Sequence[tuple[Workload, Regime]], deadline: float) -> None:
        """Run the races until they are done or the deadline is past."""
        problems = set()
        fruitless = 0
        self.summary.races_left = len(races)
        for workload, regime in races:
            problem = workload.problem
            self.progress.update(self.summary, description=f"{problem.key()} {regime}")
            if self.remaining(problem, regime):
                if self.ahead:
                    self.ahead.wait_for(problem, deadline=deadline, idle=self._idle)
                if monotonic() >= deadline:
                    self.summary.stopped_by = "minutes"
                    return
                before = self.summary.candidates
                fault = self._race(workload, regime)
                problems.add(problem)
                self.summary.problems = len(problems)
                fruitless = fruitless + 1 if fault and self.summary.candidates == before else 0
                if fault and fruitless == MAX_FRUITLESS_RACES:
                    raise CollectError(
                        f"{fruitless} races in a row brought no result, the last because: {fault.detail.strip()}. "
                        f"What was measured before is in {self.store.path}; check the GPU, then run the command again"
                    )
            self.summary.races_left -= 1
            self.progress.advance()

    def _race(self, workload: Workload, regime: Regime) -> Fault | None:
        """Measure what remains of one problem in one regime; the last fault if it had to be given up."""
        self.summary.races += 1
        faults = blameless = 0
        while configs := self.remaining(workload.problem, regime):
            worker = self._ready_worker()
            began = monotonic()
            outcomes, fault = worker.race(
                workload.problem, configs, regime, hang_seconds=self.hang_seconds, idle=self._idle
            )
            self.summary.measuring_seconds += monotonic() - began
            if fault is None:
                self._check_complete(workload.problem, regime, configs, outcomes)
                self._record(workload, outcomes)
                return None
            self._drop_worker()
            found = self._findings(workload.problem, regime, outcomes, fault)
            self._record(workload, found)
            faults += 1
            blameless += not found
            # An exception is a fault of the measuring code: the same race would meet it again.
            if fault.status is None or blameless == 2 or faults > MAX_FAULTS:
                self.summary.races_given_up += 1
                return fault
        return None

    def _findings(self, problem: Problem, regime: Regime, outcomes: list[Outcome], fault: Fault) -> list[Outcome]:
        """What is certain after a fault: configs that had failed already, and the one that was running.

        Latencies are not: the configs of a race are compared with one another, so they are measured
        together again. That the vendor's own call faults says something about the machine, not about
        the call, so it is not recorded.
        """
        found = [outcome for outcome in outcomes if not outcome.measurement.status.timed]
        if fault.status and fault.config and fault.config != self.op.vendor:
            found.append(Outcome(Measurement(problem, fault.config, regime, fault.status, detail=fault.detail)))
        return found

    def _check_complete(
        self, problem: Problem, regime: Regime, configs: Sequence[Config], outcomes: Sequence[Outcome]
    ) -> None:
        wanted = sorted((problem.key(), config.key(), regime) for config in configs)
        taken = [outcome.measurement for outcome in outcomes]
        if sorted((one.problem.key(), one.config.key(), one.regime) for one in taken) != wanted:
            raise CollectError(
                f"{self.measure!r} was given {len(configs)} configs on {problem.key()!r} and gave {len(outcomes)} "
                "outcomes; it must give one for each config, of that problem and regime"
            )

    def _record(self, workload: Workload, outcomes: Sequence[Outcome]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        records = [
            Record(
                measurement=outcome.measurement,
                device=self.device,
                environment=self.environment,
                space_fingerprint=self.op.space.fingerprint,
                families=workload.families,
                run_id=self.run_id,
                measured_at=now,
                sm_clock_mhz=outcome.sm_clock_mhz,
                num_launches=outcome.num_launches,
            )
            for outcome in outcomes
        ]
        self.store.add(records, run_group=self.run_group)
        self.summary.candidates += len(records)
        self.summary.statuses.update(record.measurement.status.value for record in records)
        self.progress.update(self.summary)

    def _idle(self) -> None:
        compiling = ""
        if self.ahead:
            self.ahead.pump()
            compiling = f"compiled {self.ahead.compiled} ({self.ahead.workers} processes)"
        self.progress.update(self.summary, compiling=compiling)

    def _ready_worker(self) -> Worker:
        if self.worker is None:
            self.worker = Worker(self.measure, self.op, self.device)
            self.worker.wait_ready()
        return self.worker

    def _drop_worker(self) -> None:
        if self.worker:
            self.worker.close()
            self.worker = None

    def close(self) -> None:
        """End the processes."""
        self._drop_worker()
        if self.ahead:
            self.ahead.close()
