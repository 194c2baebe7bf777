"""What NVML says of a GPU while something runs: how busy it is, its clock and its power."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from types import TracebackType

import torch

_FIELDS = ("timestamp", "utilization.gpu", "clocks.sm", "power.draw")
_PERIOD_MS = 100  # NVML's own samples are hardly closer


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One answer: local time, percent of NVML's last period in which some kernel ran, MHz, watts."""

    time: datetime
    busy_percent: float
    sm_mhz: float
    power_w: float


class GpuSampler:
    """Samples a GPU from entry to exit: ``samples`` is there afterwards, empty if nothing can tell.

    By ``nvidia-smi``, which is NVML's own program. A process of its own takes no turn of Python's lock, as a thread
    that samples would, once in every few steps.
    """

    def __init__(self, index: int = 0) -> None:
        self.samples: list[GpuSample] = []
        self._index = index
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives from entry to exit
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuSampler:
        program = shutil.which("nvidia-smi")
        if program and torch.cuda.is_available():
            uuid = torch.cuda.get_device_properties(self._index).uuid  # indices of NVML are other ones
            query = [f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
            command = [program, *query, f"--id=GPU-{uuid}", f"--loop-ms={_PERIOD_MS}"]
            self._process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
        self._output.seek(0)
        self.samples = parse_samples(self._output)
        self._output.close()


def parse_samples(lines: Iterable[str]) -> list[GpuSample]:
    """The samples of ``nvidia-smi``'s lines; those that are cut off or tell nothing are left out."""
    samples = []
    for line in lines:
        words = [word.strip() for word in line.split(",")]
        try:
            time, busy, mhz, watts = words
            samples.append(
                GpuSample(datetime.strptime(time, "%Y/%m/%d %H:%M:%S.%f"), float(busy), float(mhz), float(watts))
            )
        except ValueError:  # too few words, or "[N/A]"
            continue
    return samples


def between(samples: Sequence[GpuSample], start: datetime, end: datetime) -> list[GpuSample]:
    """The samples from start to end (local times)."""
    return [sample for sample in samples if start <= sample.time <= end]


def mean_busy(samples: Sequence[GpuSample], start: datetime, end: datetime) -> float | None:
    """Mean percentage from start to end (local times); None if no sample lies there."""
    inside = [sample.busy_percent for sample in between(samples, start, end)]
    return fmean(inside) if inside else None
