"""A record: one measurement with all that is needed to read it later. One row of the store and of Parquet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from aks.core.device import DeviceSpec
from aks.core.errors import DataError
from aks.core.measurement import Measurement, Regime, Status

if TYPE_CHECKING:
    from aks.ops.op import Op

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; files of another version are refused."""

FAMILIES = "families"
"""The column of model families, in measurements and in files of problems."""
COUNT = "count"
"""A column of files of problems: how often each came (``aks.write_missed``)."""


def split_families(text: str) -> tuple[str, ...]:
    """Model families as rows and files write them: names separated by semicolons, none for an empty text."""
    return tuple(filter(None, map(str.strip, text.split(";"))))


@dataclass(frozen=True, slots=True)
class Environment:
    """The software that a measurement was taken with; versions as text."""

    driver: str
    cuda: str
    cublas: str
    torch: str
    triton: str
    python: str


@dataclass(frozen=True, slots=True)
class Record:
    """A measurement, where it was taken and why.

    families names the model families whose layers the problem is (``llama-3``), or ``sample`` for
    random shapes: splits keep families together. sm_clock_mhz is read right after the samples (0 if
    unknown). measured_at is UTC, ISO 8601. run_id names one start of one machine.
    """

    measurement: Measurement
    device: DeviceSpec
    environment: Environment
    space_fingerprint: str
    families: tuple[str, ...]
    run_id: str
    measured_at: str
    sm_clock_mhz: int = 0
    num_launches: int = 0
    """Launches in the graph that one sample averages over."""
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_row(self) -> dict[str, Any]:
        """One flat row: problem, config, outcome, device, environment, provenance."""
        measurement = self.measurement
        return {
            "schema_version": self.schema_version,
            "op": measurement.problem.OP,
            **measurement.problem.to_row(),
            "families": ";".join(self.families),
            **measurement.config.to_row(),
            "regime": measurement.regime.value,
            "status": measurement.status.value,
            "latency_us": measurement.latency_us,
            "samples_us": list(measurement.samples_us),
            "detail": measurement.detail,
            "num_launches": self.num_launches,
            "sm_clock_mhz": self.sm_clock_mhz,
            **self.device.to_row(),
            **asdict(self.environment),
            "space_fingerprint": self.space_fingerprint,
            "run_id": self.run_id,
            "measured_at": self.measured_at,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any], op: Op) -> Self:
        """Read back what ``to_row`` wrote.

        Raises
        ------
        DataError
            If the row is of another schema version or op, or a column is missing.
        InvalidProblemError, IllegalConfigError, UnknownDeviceError
            If a value is outside what its type allows.
        """
        if row.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"row has schema_version {row.get('schema_version')!r}; this version of aks reads {SCHEMA_VERSION}"
            )
        if row.get("op") != op.name:
            raise DataError(f"row is of op {row.get('op')!r}; wanted {op.name!r}")
        try:
            return cls(
                measurement=Measurement(
                    problem=op.problem_type.from_row(row),
                    config=op.config_type.from_row(row),
                    regime=Regime(row["regime"]),
                    status=Status(row["status"]),
                    samples_us=tuple(float(sample) for sample in row["samples_us"]),
                    detail=row["detail"] or "",
                ),
                device=DeviceSpec.from_row(row),
                environment=Environment(**{entry.name: str(row[entry.name]) for entry in fields(Environment)}),
                space_fingerprint=row["space_fingerprint"],
                families=split_families(row["families"]),
                run_id=row["run_id"],
                measured_at=row["measured_at"],
                sm_clock_mhz=int(row["sm_clock_mhz"]),
                num_launches=int(row["num_launches"]),
            )
        except (KeyError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"row cannot be read: {error}") from error
