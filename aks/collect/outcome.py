"""What a measuring function hands back to the runner."""

from __future__ import annotations

from dataclasses import dataclass

from aks.core.errors import AksError
from aks.core.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Outcome:
    """A measurement with what only the process that took it knows."""

    measurement: Measurement
    num_launches: int = 0
    """Launches in the graph that one sample averages over."""
    sm_clock_mhz: int = 0


class WorkerPoisonedError(AksError):
    """A kernel faulted: the process that launched it can use the GPU no more and must be replaced."""
