"""What is in a table of measurements, and whether its rows can be true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import DataError
from aks.core.measurement import Regime, Status
from aks.core.metrics import quantile
from aks.core.record import Environment
from aks.data.schema import SAMPLES, key_columns
from aks.ops.op import Op

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_US = 1e9
TIMED = tuple(status.value for status in Status if status.timed)


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What a data file holds. Noise is a fraction: 0.01 is 1 %."""

    path: Path
    rows: int
    problems: int
    configs: int
    statuses: dict[str, int]
    """Rows by status."""
    families: dict[str, int]
    """Problems by family; a problem of several families counts for each."""
    devices: tuple[str, ...]
    regimes: dict[str, int]
    """Problems by regime."""
    environments: tuple[str, ...]
    run_ids: tuple[str, ...]
    vendorless: int
    """Problems, by regime, without a latency of the vendor's call: training leaves them out."""
    noise: float
    """Median over fully measured rows of (largest - smallest sample) / median."""
    noise_p95: float
    repeated: int
    """Cells (device, problem, regime, config) that several runs measured fully."""
    repeat_noise: float
    """Median over them of (largest - smallest latency) / smallest; nan if there are none."""

    def __str__(self) -> str:
        def counts(table: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in table.items())

        lines = [
            f"{self.path}: {self.rows} rows, {self.problems} problems, {self.configs} configs, "
            f"{len(self.run_ids)} runs on {', '.join(self.devices)}",
            f"  rows by status: {counts(self.statuses)}",
            f"  problems by regime: {counts(self.regimes)}; without the vendor's call: {self.vendorless}",
            f"  problems by family: {counts(self.families)}",
            f"  noise: {self.noise:.2%} median, {self.noise_p95:.2%} p95 spread of a row's samples",
        ]
        if self.repeated:
            lines.append(f"  between runs: {self.repeat_noise:.2%} median spread over {self.repeated} repeated rows")
        return "\n".join([*lines, *(f"  measured with {environment}" for environment in self.environments)])


def check(table: pa.Table, op: Op, path: str | Path) -> DataSummary:
    """Check every row of ``table``, which was read from the file ``path``, and say what is in it.

    Raises
    ------
    DataError
        If a row's status and samples disagree, a latency is not the positive median of its samples, a
        config is not in the space or was timed though it is illegal for its problem, or a measurement is
        there twice. That an illegal config failed is no fault of the row.
    """
    path = Path(path)
    frame = table.drop_columns([SAMPLES]).to_pandas()
    samples = Samples(table.column(SAMPLES).combine_chunks())
    faults = [*_outcome_faults(frame, samples), *_key_faults(frame, op), *_space_faults(frame, op)]
    if faults:
        raise DataError(f"{path} is not to be trusted: {'; '.join(faults)}. Merge its sources again, or collect again")
    return _summarize(path, frame, samples, op)


def outcome_faults(table: pa.Table) -> list[str]:
    """What is wrong with status, regime, samples and latency of rows, in words; nothing if they can be true."""
    frame = table.select(["status", "regime", "latency_us"]).to_pandas()
    return list(_outcome_faults(frame, Samples(table.column(SAMPLES).combine_chunks())))


class Samples:
    """A samples_us column: per row the number, median, smallest and largest (nan where there are none)."""

    def __init__(self, column: Any) -> None:
        self.counts = column.value_lengths().to_numpy(zero_copy_only=False)
        values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        self.median, self.smallest, self.largest = np.full((3, len(self.counts)), np.nan)
        starts = np.cumsum(self.counts) - self.counts
        for count in np.unique(self.counts[self.counts > 0]):
            rows = np.flatnonzero(self.counts == count)
            block = values[starts[rows][:, None] + np.arange(count)]
            self.median[rows] = np.median(block, axis=1)
            self.smallest[rows], self.largest[rows] = block.min(axis=1), block.max(axis=1)


def _fault(wrong: Any, text: str, frame: pd.DataFrame) -> Iterator[str]:
    """One line if any row is wrong, with the first such row."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        first = frame.iloc[rows[0]]
        yield f"{len(rows)} rows {text} (the first: row {rows[0]}, {first['status']}, {first['latency_us']} us)"


def _outcome_faults(frame: pd.DataFrame, samples: Samples) -> Iterator[str]:
    timed = frame["status"].isin(TIMED).to_numpy()
    latency_us = frame["latency_us"].to_numpy(dtype=np.float64)
    yield from _fault(~frame["status"].isin(list(Status)), "have an unknown status", frame)
    yield from _fault(~frame["regime"].isin(list(Regime)), "have an unknown regime", frame)
    yield from _fault(timed & (samples.counts == 0), "are timed but have no samples", frame)
    yield from _fault(~timed & ((samples.counts > 0) | ~np.isnan(latency_us)), "are not timed but have samples", frame)
    sampled = timed & (samples.counts > 0)
    sane = (samples.smallest > 0) & (samples.largest < MAX_US)
    yield from _fault(sampled & ~sane, "have samples that are no positive microseconds", frame)
    median = np.isclose(latency_us, samples.median, rtol=1e-5)
    yield from _fault(sampled & sane & ~median, "have a latency that is not the median of the samples", frame)


def _key_faults(frame: pd.DataFrame, op: Op) -> Iterator[str]:
    yield from _fault(frame.duplicated(key_columns(op)), "are there twice", frame)


def _space_faults(frame: pd.DataFrame, op: Op) -> Iterator[str]:
    """Configs outside the space, or timed against its rules for the problem and device of the row."""
    config_of = _row_objects(frame, op.config_type)
    problem_of = _row_objects(frame, op.problem_type)
    device = list(DeviceSpec.from_row(frame.iloc[0].to_dict()).to_row())
    groups = frame.groupby([*(field.name for field in fields(op.problem_type)), *device], sort=False)
    foreign = np.array([config not in op.space.places for config in config_of], dtype=bool)
    illegal = np.zeros(len(frame), dtype=bool)
    for rows in groups.indices.values():
        spec = DeviceSpec.from_row(frame.iloc[rows[0]].to_dict())
        legal: set[Config] = set(op.space.legal(problem_of[rows[0]], spec, {config_of[row] for row in rows}))
        illegal[rows] = [config_of[row] not in legal for row in rows]
    wrong = foreign | (illegal & frame["status"].isin(TIMED).to_numpy())
    yield from _fault(wrong, "have a config that is not in the space, or illegal for the problem", frame)


def _row_objects(frame: pd.DataFrame, kind: Any) -> list[Any]:
    """The problem or config of each row, each different one made once."""
    columns = [field.name for field in fields(kind)]
    made = [kind.from_row(row) for row in _distinct(frame, columns).to_dict("records")]
    return [made[position] for position in frame.groupby(columns, sort=False).ngroup()]


def _distinct(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return frame.loc[:, columns].drop_duplicates()


def _summarize(path: Path, frame: pd.DataFrame, samples: Samples, op: Op) -> DataSummary:
    problem = ["device", *(field.name for field in fields(op.problem_type))]
    race = [*problem, "regime"]
    config = [field.name for field in fields(op.config_type)]
    is_ok = (frame["status"] == Status.OK.value).to_numpy()
    is_vendor = np.logical_and.reduce([frame[name] == value for name, value in op.vendor.to_row().items()])
    spread = ((samples.largest - samples.smallest) / samples.median)[is_ok].tolist()
    cells = frame.loc[is_ok].groupby([*race, *config])["latency_us"].agg(["size", "min", "max"]).query("size > 1")
    families = frame.drop_duplicates(problem).loc[:, "families"].str.split(";").explode()
    versions = _distinct(frame, [field.name for field in fields(Environment)]).to_dict("records")
    return DataSummary(
        path=path,
        rows=len(frame),
        problems=len(_distinct(frame, problem)),
        configs=len(_distinct(frame, config)),
        statuses=_counts(frame["status"]),
        families=_counts(families[families != ""]),
        devices=tuple(sorted(set(frame["device"]))),
        regimes=_counts(_distinct(frame, race)["regime"]),
        environments=tuple(", ".join(f"{name} {value}" for name, value in row.items()) for row in versions),
        run_ids=tuple(sorted(set(frame["run_id"]))),
        vendorless=len(_distinct(frame, race)) - len(_distinct(frame.loc[is_vendor & is_ok], race)),
        noise=quantile(spread, 0.5),
        noise_p95=quantile(spread, 0.95),
        repeated=len(cells),
        repeat_noise=quantile((cells["max"] / cells["min"] - 1).tolist(), 0.5),
    )


def _counts(column: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in column.value_counts().items()}
