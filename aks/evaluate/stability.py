"""Whether two trainings on repeated measurements of the same problems choose alike, and what it costs if not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.core.metrics import quantile
from aks.evaluate import baselines
from aks.evaluate.devices import selector_choosers
from aks.evaluate.regret import Chooser, json_row, resolve
from aks.evaluate.samples import Noise, measure_noise
from aks.ops.op import Op
from aks.train.dataset import TrainingSet, from_frame, read_frames
from aks.train.fit import Options
from aks.train.splits import SAMPLE, rows_without

TRAINED_ON, UNSEEN = "trained on", "unseen"
_DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Flips:
    """How the choices of two trainings differ, over ``problems`` problems. Regrets and rates are fractions.

    A flip is a problem for which the two run different configs. Its regret is the difference of the two
    regrets, the worse minus the better: flip_regret averages it over the flips, flip_cost over all
    problems (where the choices agree it is 0), flip_p95 and flip_worst are over the flips. A flip is a
    near-tie if the two latencies are no further apart than repeated measurements of one cell are in half of
    all cells (``Noise.run_median``); in the wider sense, than they are in 95 % of them. Figures over flips
    are nan if there is none. first and second: the regrets of the two trainings themselves.
    """

    chooser: str
    asked: str
    problems: int
    flips: int
    flip_rate: float
    flip_regret: float
    flip_p95: float
    flip_worst: float
    flip_cost: float
    near_tie_share: float
    near_tie_p95_share: float
    first_mean_regret: float
    second_mean_regret: float
    first_p95_regret: float
    second_p95_regret: float


@dataclass(frozen=True, slots=True)
class Stability:
    """What two trainings on ``problems`` problems made of what they were trained on, and of problems new to both."""

    problems: int
    rows: tuple[Flips, ...]
    noise: Noise

    def to_json(self) -> dict[str, Any]:
        """All figures as plain lists and mappings; None where one is unknown."""
        return {
            "training_problems": self.problems,
            "rows": [json_row(asdict(row)) for row in self.rows],
            "noise": json_row(self.noise.to_row()),
        }


def measure_stability(
    op: Op,
    data: Path | Sequence[Path],
    *,
    regime: Regime | str = Regime.COLD,
    options: Options = _DEFAULTS,
    progress: Callable[[str], None] = lambda text: None,
) -> Stability:
    """Train once on the first and once on the last run of each repeated problem of ``data``, and compare.

    Both trainings have the same problems, options and seed; what differs is when the problems were
    measured. Each is asked for those problems, and for those of other model layers in ``data`` (no random
    shapes, no weights in common), which neither saw. All choices are scored by all measurements
    together. The fastest config of each run is compared too: what noise alone does.

    Raises
    ------
    DataError
        If the data cannot be read, or has no problem that was measured by two runs.
    """
    frame, paths, sha256 = read_frames(data, op)
    halves = split_by_run(frame, op, regime)
    pooled = from_frame(frame, op, regime=regime, path=paths, sha256=sha256)
    trained_on, unseen = _asked(pooled, halves[0])
    noise = measure_noise(frame.loc[frame["regime"] == str(Regime(regime))], op)
    trained: list[Sequence[Chooser]] = []
    for number, half in enumerate(halves, start=1):
        progress(f"training on {len(half)} problems ({number} of 2)")
        trained.append(selector_choosers(half, options))
    fastest = np.stack([resolve(baselines.oracle().rank(half), trained_on.latency_us) for half in halves])
    rows = [count_flips("fastest measured", TRAINED_ON, fastest, trained_on, noise)]
    for asked, problems in ((TRAINED_ON, trained_on), (UNSEEN, unseen)):
        progress(f"asking for {len(problems)} problems {asked}")
        for pair in zip(*trained, strict=True):
            choices = np.stack([resolve(chooser.rank(problems), problems.latency_us) for chooser in pair])
            rows.append(count_flips(pair[0].name, asked, choices, problems, noise))
    return Stability(len(trained_on), tuple(row for row in rows if row.problems), noise)


def split_by_run(frame: pd.DataFrame, op: Op, regime: Regime | str) -> tuple[TrainingSet, TrainingSet]:
    """The problems that several runs measured, in the same order twice: as the first run saw each, and as the last.

    Raises
    ------
    DataError
        If there are none.
    """
    rows = frame.loc[frame["regime"] == str(Regime(regime))]
    run = rows.groupby("run_id")["measured_at"].transform("min") + rows["run_id"]
    by_problem = run.groupby([rows[name] for name in ("device", *(field.name for field in fields(op.problem_type)))])
    first, last = by_problem.transform("min"), by_problem.transform("max")
    if (first == last).all():
        raise DataError(
            f"no problem was measured by two runs in regime {str(regime)!r}, so stability is unknown; measure some "
            "again: 'aks data problems' writes them, 'aks collect --problems' takes them, from a new machine start"
        )
    one, other = (from_frame(rows.loc[(run == which) & (first != last)], op, regime=regime) for which in (first, last))
    row_of = _row_of(other)
    both = [(row, row_of[key]) for key, row in _row_of(one).items() if key in row_of]
    return one.subset([pair[0] for pair in both]), other.subset([pair[1] for pair in both])


def count_flips(chooser: str, asked: str, choices: NDArray[np.intp], data: TrainingSet, noise: Noise) -> Flips:
    """Compare two choices [2, P], columns of ``data``; a problem on which either is -1 is left out."""
    over = np.flatnonzero((choices >= 0).all(axis=0))
    choices = choices[:, over]
    us = data.latency_us[over, choices]
    regret = us / data.oracle_us[over] - 1
    flipped = choices[0] != choices[1]
    apart, ratio = np.abs(regret[0] - regret[1]), us.max(axis=0) / us.min(axis=0) - 1
    return Flips(
        chooser=chooser,
        asked=asked,
        problems=len(over),
        flips=int(flipped.sum()),
        flip_rate=_mean(flipped),
        flip_regret=_mean(apart[flipped]),
        flip_p95=quantile(apart[flipped].tolist(), 0.95),
        flip_worst=quantile(apart[flipped].tolist(), 1.0),
        flip_cost=_mean(apart),
        near_tie_share=_mean(ratio[flipped] <= noise.run_median),
        near_tie_p95_share=_mean(ratio[flipped] <= noise.run_p95),
        first_mean_regret=_mean(regret[0]),
        second_mean_regret=_mean(regret[1]),
        first_p95_regret=quantile(regret[0].tolist(), 0.95),
        second_p95_regret=quantile(regret[1].tolist(), 0.95),
    )


def _asked(pooled: TrainingSet, half: TrainingSet) -> tuple[TrainingSet, TrainingSet]:
    """From ``pooled``: the problems of ``half``, in its order, and models' problems with none of their weights."""
    row_of = _row_of(pooled)
    weights = {tuple(axes) for axes in half.axes[:, 1:].tolist()}
    unseen = [row for row in rows_without(pooled, (), weights) if pooled.families[row] != {SAMPLE}]
    return pooled.subset([row_of[key] for key in _row_of(half)]), pooled.subset(unseen)


def _row_of(data: TrainingSet) -> dict[Any, int]:
    return {key: row for row, key in enumerate(zip(data.problems, data.devices, strict=True))}


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")
