"""What single samples say that medians hide: how noisy a cell is, and an oracle that noise cannot flatter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aks.core.device import DeviceSpec
from aks.core.measurement import Status
from aks.ops.op import Op
from aks.train.dataset import TrainingSet


@dataclass(frozen=True, slots=True)
class Noise:
    """Spread of repeated measurements, as fractions.

    sample_* is the standard deviation of one cell's samples over their mean (one problem, config and regime, one
    run); run_* is slowest / fastest - 1 over the medians of several runs of one cell, nan if no cell
    was measured by two runs. winner_cost is the mean regret, in one run, of the config that another run
    found fastest: what is left of a regret when nothing but the run is another.
    """

    cells: int
    sample_median: float
    sample_p95: float
    repeated_cells: int
    repeated_problems: int
    run_median: float
    run_p95: float
    winner_cost: float

    def to_row(self) -> dict[str, float]:
        """Field names and values, in order."""
        return asdict(self)


def measure_noise(frame: pd.DataFrame, op: Op) -> Noise:
    """Noise over the fully measured (``ok``) rows of ``frame``."""
    rows = frame.loc[frame["status"] == Status.OK.value]
    problem_columns = _problem_columns(op)
    cell = _number(rows, problem_columns + [field.name for field in fields(op.config_type)])
    samples, row = _flatten(rows["samples_us"])
    spread = _spread(samples, row, len(rows))
    latency_us, run = rows["latency_us"].to_numpy(dtype=np.float64), _number(rows, ["run_id"])
    _, first, cell_and_run = np.unique(np.stack([cell, run]), axis=1, return_index=True, return_inverse=True)
    medians = grouped_medians(latency_us, cell_and_run.ravel(), len(first))
    apart, repeated = _apart(medians, cell[first])
    return Noise(
        cells=len(rows),
        sample_median=_quantile(spread, 0.5),
        sample_p95=_quantile(spread, 0.95),
        repeated_cells=len(apart),
        repeated_problems=len(np.unique(_number(rows, problem_columns)[np.isin(cell, repeated)])),
        run_median=_quantile(apart, 0.5),
        run_p95=_quantile(apart, 0.95),
        winner_cost=_winner_cost(frame, op),
    )


def _problem_columns(op: Op) -> list[str]:
    return ["device", *(field.name for field in fields(op.problem_type)), "regime"]


def _winner_cost(frame: pd.DataFrame, op: Op) -> float:
    """Over all ordered pairs of runs of one problem; a winner that the other run did not time is left out."""
    rows = frame.loc[frame["status"].isin([status.value for status in Status if status.timed])]
    problem = _number(rows, _problem_columns(op))
    run = _number(rows, ["run_id"])
    several = np.flatnonzero(np.bincount(np.unique(np.stack([problem, run]), axis=1)[0]) > 1)
    kept = np.isin(problem, several)
    rows, problem, run = rows.loc[kept], problem[kept], run[kept]
    latency_us = rows["latency_us"].set_axis(_number(rows, [field.name for field in fields(op.config_type)]))
    costs = []
    for here in several:
        runs = [latency_us[(problem == here) & (run == one)] for one in np.unique(run[problem == here])]
        for first, second in permutations(runs, 2):
            winner = first.idxmin()
            if winner in second.index:
                costs.append(second[winner] / second.min() - 1)
    return float(np.mean(costs)) if costs else float("nan")


def _spread(samples: NDArray[np.float64], row: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Standard deviation / mean of each row's samples, for rows with at least two."""
    number = np.bincount(row, minlength=count)
    mean = np.bincount(row, samples, minlength=count) / np.maximum(number, 1)
    squares = np.bincount(row, (samples - mean[row]) ** 2, minlength=count)
    several = number > 1
    return np.sqrt(squares[several] / (number[several] - 1)) / mean[several]


def _apart(medians: NDArray[np.float64], cell: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Slowest / fastest - 1 over the runs of each cell that has several, and those cells."""
    cells, index, counts = np.unique(cell, return_inverse=True, return_counts=True)
    slowest, fastest = np.full(len(cells), -np.inf), np.full(len(cells), np.inf)
    np.maximum.at(slowest, index, medians)
    np.minimum.at(fastest, index, medians)
    several = counts > 1
    return slowest[several] / fastest[several] - 1, cells[several]


def _quantile(values: NDArray[np.float64], q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else float("nan")


def grouped_medians(values: NDArray[np.float64], group: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """[count]: the median of the values of each group; nan for a group that has none."""
    ordered = values[np.lexsort((values, group))]
    size = np.bincount(group, minlength=count)
    start = np.cumsum(size) - size
    result = np.full(count, np.nan)
    some = size > 0
    low, high = start + (size - 1) // 2, start + size // 2
    result[some] = (ordered[low[some]] + ordered[high[some]]) / 2
    return result


def half_medians(frame: pd.DataFrame, data: TrainingSet) -> NDArray[np.float64]:
    """[2, P, C]: the latency of each cell of ``data`` from every second sample, and from the others.

    A cell of a single sample has it in both halves; ``inf`` and ``nan`` mean what they mean in
    ``data.latency_us``.

    The fastest of many noisy medians is partly the luckiest. A config chosen by one half and scored
    by the other has no such luck, so the two halves bound how much of a regret is noise.
    """
    timed = [status.value for status in Status if status.timed]
    rows = frame.loc[(frame["regime"] == str(data.regime)) & frame["status"].isin(timed)]
    cell = _cells(rows, data)
    full = (rows["status"] == Status.OK.value).to_numpy(dtype=bool)
    # Samples of a run that raced the config out are too few to mix with those of one that did not.
    kept = (cell >= 0) & (full | ~np.isin(cell, cell[full]))
    samples, row = _flatten(rows["samples_us"])
    samples, owner = samples[kept[row]], cell[row][kept[row]]
    order = np.argsort(owner, kind="stable")
    samples, owner = samples[order], owner[order]
    position = np.arange(len(owner)) - np.searchsorted(owner, owner)
    halves = np.stack(
        [
            grouped_medians(samples[position % 2 == half], owner[position % 2 == half], data.latency_us.size)
            for half in (0, 1)
        ]
    ).reshape(2, *data.latency_us.shape)
    known = np.isfinite(data.latency_us) & np.isfinite(halves)
    return np.where(known, halves, data.latency_us)


def split_oracle_us(halves: NDArray[np.float64], trusted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[2, P]: latency in one half of the samples of the config that the *other* half finds fastest."""
    usable = np.where(trusted & np.isfinite(halves), halves, np.inf)
    rows = np.arange(halves.shape[1])
    return np.stack([halves[half, rows, usable[1 - half].argmin(axis=1)] for half in (0, 1)])


def _flatten(samples: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """All samples in one array, and the number of the row that each is from."""
    lists = samples.to_list()
    lengths = np.fromiter(map(len, lists), dtype=np.intp, count=len(lists))
    values = np.concatenate([np.asarray(entry, dtype=np.float64) for entry in lists]) if lists else np.empty(0)
    return values, np.repeat(np.arange(len(lists)), lengths)


def _number(rows: pd.DataFrame, columns: list[str]) -> NDArray[np.intp]:
    """Number the distinct values of ``columns`` in order of appearance."""
    return rows.groupby(columns, sort=False, dropna=False, observed=True).ngroup().to_numpy(dtype=np.intp)


def _cells(rows: pd.DataFrame, data: TrainingSet) -> NDArray[np.intp]:
    """Index of each row's cell in the flattened [P, C] matrix of ``data``; -1 if it is not there."""
    problem_of = {key: index for index, key in enumerate(zip(data.problems, data.devices, strict=True))}
    column_of = {config: index for index, config in enumerate(data.configs)}
    problem_type, config_type = data.op.problem_type, data.op.config_type
    device_columns = ["device", *(field.name for field in fields(DeviceSpec) if field.name != "name")]
    problem = _lookup(
        rows,
        device_columns + [field.name for field in fields(problem_type)],
        lambda key: problem_of.get((problem_type.from_row(key), DeviceSpec.from_row(key)), -1),
    )
    column = _lookup(
        rows,
        [field.name for field in fields(config_type)],
        lambda key: column_of.get(config_type.from_row(key), -1),
    )
    return np.where((problem >= 0) & (column >= 0), problem * len(data.configs) + column, -1)


def _lookup(rows: pd.DataFrame, columns: list[str], find: Callable[[dict[str, Any]], int]) -> NDArray[np.intp]:
    """``find`` of each row, called once for each distinct row of ``columns``."""
    distinct = rows.loc[:, columns].drop_duplicates()
    keys = zip(*(distinct[name].to_list() for name in columns), strict=True)
    found = [find(dict(zip(columns, values, strict=True))) for values in keys]
    return np.array(found, dtype=np.intp)[_number(rows, columns)]
