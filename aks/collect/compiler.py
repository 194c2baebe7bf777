"""Kernels are compiled by a pool of processes, ahead of the measuring that will want them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from time import monotonic
from typing import Any

from aks.collect.worker import live_and_die_with_parent, resolve
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.problem import Problem

COMPILE_SECONDS = 300
"""A kernel that takes longer is given up; whoever measures it meets the reason."""
_MAX_POOLS = 5
_AHEAD = 4
"""Jobs under way at once, for each process of the pool."""
_PUMP_SECONDS = 0.05


def _initialize() -> None:
    live_and_die_with_parent()
    # What the alarm does by default, ending the process, also works while a compiler is in native code.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _run(compile_job: str, job: Any) -> str | None:
    signal.alarm(COMPILE_SECONDS)
    try:
        return resolve(compile_job)(job)
    finally:
        signal.alarm(0)


class CompileAhead:
    """Compiles what the problems need, in their order, a bounded number of jobs ahead.

    module has ``compile_jobs(problems, configs_of, device)``, a list of jobs that can be pickled and
    hashed, and ``compile_job(job)``. A job that fails or kills its process is dropped: the measuring
    process compiles for itself what it does not find, and records the reason if it cannot.
    """

    def __init__(
        self,
        module: str,
        problems: Sequence[Problem],
        configs_of: Callable[[Problem], Iterable[Config]],
        device: DeviceSpec,
        workers: int,
    ) -> None:
        self.workers = workers
        self.compiled = 0
        self.failed = 0
        self._compile_job = f"{module}:compile_job"
        self._seen: set[Any] = set()
        self._planned: set[Problem] = set()
        self._plan = self._jobs(resolve(f"{module}:compile_jobs"), problems, configs_of, device)
        self._pending: dict[Future[str | None], tuple[Problem, ProcessPoolExecutor]] = {}
        self._pools_left = _MAX_POOLS
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor | None:
        if self._pools_left == 0:
            return None
        self._pools_left -= 1
        return ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=_initialize)

    def _jobs(self, compile_jobs, problems, configs_of, device) -> Iterator[tuple[Problem, list[Any]]]:
        for problem in problems:
            jobs = [job for job in compile_jobs([problem], configs_of, device) if job not in self._seen]
            self._seen.update(jobs)
            yield problem, jobs

    def pump(self) -> None:
        """Note what is compiled, and hand the pool more if it has little left. Takes milliseconds."""
        for future in [future for future in self._pending if future.done()]:
            self._note(future, *self._pending.pop(future))
        until = monotonic() + _PUMP_SECONDS
        while self._pool and len(self._pending) < _AHEAD * self.workers and monotonic() < until:
            planned = next(self._plan, None)
            if planned is None:
                return
            self._submit(*planned)

    def _note(self, future: Future[str | None], problem: Problem, pool: ProcessPoolExecutor) -> None:
        error = future.exception()
        if error is None and future.result() is None:
            self.compiled += 1
            return
        self.failed += 1
        if isinstance(error, BrokenProcessPool):
            self._replace(pool)

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        # All jobs of a broken pool fail, so this is called many times; the first makes the new pool.
        if broken is self._pool:
            broken.shutdown(wait=False)
            self._pool = self._new_pool()

    def _submit(self, problem: Problem, jobs: list[Any]) -> None:
        self._planned.add(problem)
        for job in jobs:
            if self._pool is None:
                return
            try:
                self._pending[self._pool.submit(_run, self._compile_job, job)] = problem, self._pool
            except BrokenProcessPool:
                self.failed += 1
                self._replace(self._pool)

    def wait_for(self, problem: Problem, *, deadline: float, idle: Callable[[], None]) -> None:
        """Return once what ``problem`` needs is compiled or given up, or at ``deadline`` (monotonic seconds)."""
        while self._pool and monotonic() < deadline:
            self.pump()
            mine = [future for future, (owner, _) in self._pending.items() if owner == problem]
            if problem in self._planned and not mine:
                return
            wait(mine or self._pending, timeout=0.2, return_when="FIRST_COMPLETED")
            idle()

    def close(self) -> None:
        """Give up what has not begun, and wait for what has."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
