"""A measurement: latency samples of a config on a problem, or the status that says why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from aks.core.config import Config
from aks.core.errors import DataError
from aks.core.problem import Problem


class Status(StrEnum):
    """What came of trying a config."""

    OK = "ok"
    RACED_OUT = "raced_out"
    """Correct but hopelessly slow: dropped after its first samples, which are kept."""
    WRONG_RESULT = "wrong_result"
    NONDETERMINISTIC = "nondeterministic"
    OUT_OF_RESOURCES = "out_of_resources"
    COMPILE_ERROR = "compile_error"
    LAUNCH_ERROR = "launch_error"
    UNSUPPORTED = "unsupported"
    """The vendor library has no such routine here (fewer algorithms than the index asks for)."""
    TIMEOUT = "timeout"
    CRASHED = "crashed"

    @property
    def timed(self) -> bool:
        """Whether a measurement of this status has latency samples."""
        return self in (Status.OK, Status.RACED_OUT)


class Regime(StrEnum):
    """In what state of the GPU a latency was taken."""

    COLD = "cold"
    """Weights come from DRAM: as in decoding, which reads each weight once a token."""
    WARM = "warm"
    """The same weights again and again: what a naive benchmark measures."""
    CHAIN = "chain"
    """Between stock PyTorch neighbours (RMSNorm before, scale after), their own time subtracted."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One config on one problem in one regime.

    samples_us are latencies of one launch in microseconds, one per graph replay (each the mean over
    the launches in the graph). Timed statuses have samples, the others have none and say why in
    ``detail``.
    """

    problem: Problem
    config: Config
    regime: Regime
    status: Status
    samples_us: tuple[float, ...] = ()
    detail: str = ""

    def __post_init__(self) -> None:
        if self.status.timed and not (self.samples_us and all(0 < sample < 1e9 for sample in self.samples_us)):
            raise DataError(
                f"measurement of {self.config.key()!r} on {self.problem.key()!r} is {self.status.value!r} "
                f"but its samples are {self.samples_us}; they must be positive microseconds"
            )
        if not self.status.timed and self.samples_us:
            raise DataError(f"measurement with status {self.status.value!r} must not have samples")

    @property
    def latency_us(self) -> float | None:
        """Median of the samples in microseconds; None if the config was not timed."""
        return median(self.samples_us) if self.samples_us else None
