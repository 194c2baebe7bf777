"""Facts of a GPU, as the selector sees them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any, Self

from aks.core.errors import UnknownDeviceError

_PLAUSIBLE = {
    "capability": (70, 199),
    "sm_count": (1, 1024),
    "l2_bytes": (1 << 18, 1 << 30),
    "dram_gb_s": (50, 100_000),
    "tflops_16bit": (1, 100_000),
    "clock_mhz": (200, 5000),
    "smem_bytes_per_sm": (1 << 14, 1 << 22),
    "smem_bytes_per_block": (1 << 14, 1 << 22),
    "registers_per_sm": (1 << 12, 1 << 20),
    "max_threads_per_block": (32, 1 << 16),
    "gpu_sm_count": (1, 1024),
}
"""Least and largest value of each fact: what is outside is a wrong unit or a slip."""
_NO_FACTS = ("source", "aliases")
"""What a row of ``devices.toml`` has beside its facts."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Facts of one GPU (or of one partition of it). All integers, so that trees can read them.

    dram_gb_s is the datasheet's bandwidth in 10^9 bytes a second; tflops_16bit the dense bf16/fp16
    tensor-core rate in 10^12 operations a second; clock_mhz the boost clock of the SMs;
    capability 10 x major + minor (90 for Hopper). gpu_sm_count is that of the GPU of which this is a
    partition, which vendor libraries plan for whatever they are given; 0 stands for sm_count.
    """

    name: str
    capability: int
    sm_count: int
    l2_bytes: int
    dram_gb_s: int
    tflops_16bit: int
    clock_mhz: int
    smem_bytes_per_sm: int
    smem_bytes_per_block: int
    registers_per_sm: int = 65536
    max_threads_per_block: int = 1024
    gpu_sm_count: int = 0

    def __post_init__(self) -> None:
        if self.gpu_sm_count == 0:
            object.__setattr__(self, "gpu_sm_count", self.sm_count)
        for field in fields(self)[1:]:
            value, (low, high) = getattr(self, field.name), _PLAUSIBLE[field.name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UnknownDeviceError(
                    f"device {self.name!r} has {field.name}={value!r}; it must be an integer from {low} to {high}: "
                    "mind the unit in the name"
                )
        if self.smem_bytes_per_block > self.smem_bytes_per_sm:
            raise UnknownDeviceError(
                f"device {self.name!r} has smem_bytes_per_block={self.smem_bytes_per_block}; "
                f"an SM has {self.smem_bytes_per_sm}"
            )
        if self.gpu_sm_count < self.sm_count:
            raise UnknownDeviceError(
                f"device {self.name!r} has sm_count={self.sm_count}, but is said to be of a GPU of "
                f"{self.gpu_sm_count} (gpu_sm_count)"
            )

    @property
    def is_partition(self) -> bool:
        """Whether it is some SMs of a GPU that has more."""
        return self.sm_count < self.gpu_sm_count

    def partition(self, sm_count: int) -> Self:
        """``sm_count`` of this GPU's SMs as a device: named ``h200-64sm``, with their share of the compute rate.

        L2, bandwidth and what one SM has stay: partitions share the former. All SMs are the GPU itself.

        Raises
        ------
        UnknownDeviceError
            If the GPU has fewer SMs, or sm_count is below 1.
        """
        if sm_count == self.sm_count:
            return self
        if not 1 <= sm_count < self.sm_count:
            raise UnknownDeviceError(f"no partition of {sm_count} SMs: {self.name!r} has {self.sm_count}, choose fewer")
        rate = max(1, self.tflops_16bit * sm_count // self.sm_count)
        return replace(self, name=f"{self.name}-{sm_count}sm", sm_count=sm_count, tflops_16bit=rate)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The device in a mapping that has (at least) this type's fields, its name under ``device``."""
        known = {field.name for field in fields(cls)} - {"name"}
        try:
            return cls(name=row["device"], **{name: int(row[name]) for name in known if name in row})
        except (TypeError, KeyError) as error:
            raise UnknownDeviceError(f"no DeviceSpec in {row!r}: {error}") from error

    def to_row(self) -> dict[str, Any]:
        """Field names and values, the name under ``device`` (measurement rows have other names too)."""
        return {"device": self.name, **self.variables()}

    def variables(self) -> dict[str, int]:
        """The facts that formulas may read."""
        # Not asdict, which copies deeply: every record's row asks.
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}


@cache
def known_devices() -> dict[str, DeviceSpec]:
    """The rows of ``devices.toml`` by name."""
    rows = {name: {fact: row[fact] for fact in row if fact not in _NO_FACTS} for name, row in _table().items()}
    return {name: DeviceSpec(name=name, **row) for name, row in rows.items()}


def device_aliases() -> dict[str, str]:
    """Other names of rows of ``devices.toml``, such as a model's name alone (``a100``), and the row each stands for."""
    return {alias: name for name, row in _table().items() for alias in row.get("aliases", ())}


def device_sources() -> dict[str, str]:
    """Where the facts of each row of ``devices.toml`` are from."""
    return {name: row["source"] for name, row in _table().items()}


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("aks.core").joinpath("devices.toml").read_text())


def find_device(name: str) -> DeviceSpec:
    """The row of ``devices.toml`` for ``name``: ours (``h200``) or the driver's (``NVIDIA H200``).

    ``h200-64sm`` is a partition of it. A model's name alone (``a100``) is one of its rows, as the table says.

    Raises
    ------
    UnknownDeviceError
        If there is none, or it has not that many SMs.
    """
    slug = device_slug(name)
    if part := re.fullmatch(r"(.+)-(\d+)sm", slug):
        return find_device(part[1]).partition(int(part[2]))
    try:
        return known_devices()[device_aliases().get(slug, slug)]
    except KeyError:
        raise UnknownDeviceError(
            f"no DeviceSpec for {name!r}; known: {', '.join(sorted(known_devices()))}; add a row to devices.toml"
        ) from None


def device_slug(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` is ``h100-80gb-hbm3``; a name already short stays."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug.removeprefix("nvidia-").removeprefix("geforce-")


def current_device(index: int = 0) -> DeviceSpec:
    """The GPU that PyTorch sees: its row of ``devices.toml``, or else the driver's facts.

    The driver does not tell the tensor-core rate; it is derived from the clock and the SM count at
    the rate of the capability, and the bandwidth from the memory clock and bus width.

    Raises
    ------
    UnknownDeviceError
        If no CUDA GPU is visible.
    """
    import torch

    if not torch.cuda.is_available():
        raise UnknownDeviceError("no CUDA GPU is visible; pass a device by name, or run on a machine with one")
    facts = torch.cuda.get_device_properties(index)
    slug = device_slug(facts.name)
    if slug in known_devices():
        return known_devices()[slug]
    capability = 10 * facts.major + facts.minor
    clock_mhz = int(getattr(facts, "clock_rate", 0)) // 1000 or 1500
    memory_mhz = int(getattr(facts, "memory_clock_rate", 0)) // 1000
    bus_bits = int(getattr(facts, "memory_bus_width", 0))
    # Dense 16-bit tensor-core operations per SM and clock: NVIDIA's architecture white papers.
    per_clock = {80: 2048, 90: 4096, 100: 8192, 103: 8192}.get(capability, 1024)
    return DeviceSpec(
        name=slug,
        capability=capability,
        sm_count=facts.multi_processor_count,
        l2_bytes=facts.L2_cache_size,
        dram_gb_s=2 * memory_mhz * bus_bits // 8000 or 1000,
        tflops_16bit=max(1, facts.multi_processor_count * clock_mhz * per_clock // 1_000_000),
        clock_mhz=clock_mhz,
        smem_bytes_per_sm=facts.shared_memory_per_multiprocessor,
        smem_bytes_per_block=facts.shared_memory_per_block_optin,
        registers_per_sm=facts.regs_per_multiprocessor,
    )
