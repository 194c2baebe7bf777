"""Stand-ins for a GPU: measuring functions that work, crash, hang or lie, and a compiler.

They run in worker processes, so a test says what it wants by naming one, and learns what happened
from the file that AKS_FAKE_LOG names.
"""

from __future__ import annotations

import os
import signal
import time

from aks.collect.outcome import Outcome, WorkerPoisonedError
from aks.core.measurement import Measurement, Status

LOG = "AKS_FAKE_LOG"


def log(line: str) -> None:
    """Append a line; small appends do not interleave."""
    if path := os.environ.get(LOG):
        with open(path, "a") as file:
            file.write(line + "\n")


def good(op, device, problem, configs, regime, starting):
    """Measures everything; config at position i takes 10 + i microseconds."""
    for index, config in enumerate(configs):
        starting(config)
        measurement = Measurement(problem, config, regime, Status.OK, (10.0 + index,) * 3)
        yield Outcome(measurement, num_launches=8, sm_clock_mhz=1980)
    log(f"{problem.m} {regime}")


def slow(op, device, problem, configs, regime, starting):
    """``good``, 20 ms a race."""
    log(f"pid {os.getpid()}")
    time.sleep(0.02)
    yield from good(op, device, problem, configs, regime, starting)


def exits(op, device, problem, configs, regime, starting):
    """The process ends when it runs cublaslt algorithm 2."""
    yield from _with_fault(op, device, problem, configs, regime, starting, lambda: os._exit(3))


def segfaults(op, device, problem, configs, regime, starting):
    """Algorithm 2 crashes, after algorithm 1 failed in an orderly way."""
    yield from _with_fault(op, device, problem, configs, regime, starting, lambda: os.kill(os.getpid(), signal.SIGSEGV))


def hangs(op, device, problem, configs, regime, starting):
    """Algorithm 2 never returns."""
    yield from _with_fault(op, device, problem, configs, regime, starting, lambda: time.sleep(3600))


def poisons(op, device, problem, configs, regime, starting):
    """Algorithm 2 makes the GPU unusable for this process."""

    def fault():
        raise WorkerPoisonedError("illegal memory access")

    yield from _with_fault(op, device, problem, configs, regime, starting, fault)


def raises(op, device, problem, configs, regime, starting):
    """A mistake in the measuring code, on odd m only."""
    if problem.m % 2:
        starting(configs[0])
        raise TypeError("a mistake in the measuring code")
    yield from good(op, device, problem, configs, regime, starting)


def always_raises(op, device, problem, configs, regime, starting):
    """A mistake in the measuring code, on every problem."""
    raise TypeError("a mistake in the measuring code")


def dies_before_starting(op, device, problem, configs, regime, starting):
    """The process ends before any config ran, on odd m only."""
    log(f"{problem.m} {regime}")
    if problem.m % 2:
        os._exit(4)
    yield from good(op, device, problem, configs, regime, starting)


def vendor_dies(op, device, problem, configs, regime, starting):
    """The vendor's own call ends the process."""
    starting(op.vendor)
    os._exit(5)
    yield


def all_die(op, device, problem, configs, regime, starting):
    """Each config but the vendor's ends the process."""
    starting(next(config for config in configs if config != op.vendor))
    os._exit(6)
    yield


def forgets_one(op, device, problem, configs, regime, starting):
    """Gives no outcome of the last config."""
    yield from good(op, device, problem, configs[:-1], regime, starting)


def _with_fault(op, device, problem, configs, regime, starting, fault):
    for config in configs:
        starting(config)
        if config.algo == 1:
            yield Outcome(Measurement(problem, config, regime, Status.WRONG_RESULT, detail="off by 1"))
        if config.kind == "cublaslt" and config.algo == 2:
            fault()
    for config in configs:
        if config.algo != 1:
            yield Outcome(Measurement(problem, config, regime, Status.OK, (10.0,)))


def compile_jobs(problems, configs_of, device):
    """One job a config of cublaslt, whatever the problem."""
    return [("job", config.algo) for problem in problems for config in configs_of(problem) if config.kind == "cublaslt"]


def compile_job(job):
    """Algorithm 1 does not compile; algorithm 2 kills the compiler."""
    log(f"compile {job[1]}")
    if job[1] == 1:
        raise ValueError("does not compile")
    if job[1] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
