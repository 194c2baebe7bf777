"""Does the winner of one regime win in another, and what does picking it there cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from aks.core.measurement import Regime
from aks.core.metrics import geomean
from aks.train.dataset import TrainingSet


@dataclass(frozen=True, slots=True)
class RegimePick:
    """Configs picked as the fastest of regime ``picked_in``, run in regime ``run_in``.

    cost is latency of the pick / latency of the winner there - 1, where pick and winner differ or
    not. noise_cost is the same for a pick by one half of the samples of ``run_in`` scored by the other:
    what differs from run to run without any change of regime. beyond_noise_share counts problems
    whose cost exceeds the p95 of that noise.
    """

    picked_in: str
    run_in: str
    problems: int
    differs_share: float
    mean_cost: float
    p95_cost: float
    noise_cost: float
    beyond_noise_share: float
    geomean_speedup: float

    def to_row(self) -> dict[str, float | str]:
        """Field names and values, in order."""
        return asdict(self)


def compare_regimes(
    data: Mapping[Regime, TrainingSet], halves_us: Mapping[Regime, NDArray[np.float64]]
) -> tuple[RegimePick, ...]:
    """Every ordered pair of regimes, on the problems and configs that all of them measured.

    data holds the TrainingSet of each regime and halves_us its ``samples.half_medians`` [2, P, C].
    Empty if there are fewer than two regimes, or no problem that all have.
    """
    rows = _common_rows(data)
    if len(data) < 2 or not len(next(iter(rows.values()))):
        return ()
    latency = {regime: entry.latency_us[rows[regime]] for regime, entry in data.items()}
    halves = {regime: halves_us[regime][:, rows[regime]] for regime in data}
    measured = np.logical_and.reduce([np.isfinite(entry) for entry in latency.values()])
    measured &= np.logical_and.reduce([entry.trusted for entry in data.values()])
    return tuple(
        _pick(picked_in, run_in, latency, halves[run_in], measured)
        for picked_in, run_in in product(data, data)
        if picked_in != run_in
    )


def _common_rows(data: Mapping[Regime, TrainingSet]) -> dict[Regime, NDArray[np.intp]]:
    """Row numbers, in each regime, of the problems that every regime has: the same order in all."""
    row_of = {
        regime: {key: row for row, key in enumerate(zip(entry.problems, entry.devices, strict=True))}
        for regime, entry in data.items()
    }
    first = next(iter(row_of.values()), {})
    common = [key for key in first if all(key in rows for rows in row_of.values())]
    return {regime: np.array([rows[key] for key in common], dtype=np.intp) for regime, rows in row_of.items()}


def _pick(
    picked_in: Regime,
    run_in: Regime,
    latency: Mapping[Regime, NDArray[np.float64]],
    halves: NDArray[np.float64],
    measured: NDArray[np.bool_],
) -> RegimePick:
    rows = np.arange(len(measured))
    pick = np.where(measured, latency[picked_in], np.inf).argmin(axis=1)
    best = np.where(measured, latency[run_in], np.inf).argmin(axis=1)
    there = latency[run_in]
    cost = there[rows, pick] / there[rows, best] - 1
    noise = _noise_cost(halves, measured)
    return RegimePick(
        picked_in=picked_in.value,
        run_in=run_in.value,
        problems=len(rows),
        differs_share=float(np.mean(pick != best)),
        mean_cost=float(cost.mean()),
        p95_cost=float(np.quantile(cost, 0.95)),
        noise_cost=float(noise.mean()),
        beyond_noise_share=float(np.mean(cost > np.quantile(noise, 0.95))),
        geomean_speedup=geomean((there[:, 0] / there[rows, pick]).tolist()),
    )


def _noise_cost(halves: NDArray[np.float64], measured: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[2 * P]: cost, in one half of the samples, of the other half's winner."""
    usable = np.where(measured, halves, np.inf)
    rows = np.arange(len(measured))
    return np.concatenate(
        [usable[half, rows, usable[1 - half].argmin(axis=1)] / usable[half].min(axis=1) - 1 for half in (0, 1)]
    )
