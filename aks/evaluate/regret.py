"""What choices cost: regret against the oracle and speed-up over the vendor, with the noise stated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aks.core.metrics import Score, geomean, score
from aks.train.dataset import TrainingSet, feature_matrix, undeclared
from aks.train.scores import BANDS, Band, band_name, in_band

BOOTSTRAP_ROUNDS = 2000


@dataclass(frozen=True)
class Chooser:
    """Something that picks configs.

    rank maps a TrainingSet of P problems to intp [P, R]: columns of its ``configs``, best first, -1
    where there is nothing more to say. A row that begins with -1 is no answer, and is not scored.
    """

    name: str
    rank: Callable[[TrainingSet], NDArray[np.intp]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChooserScore:
    """One row of the table: how a chooser does on the problems it answers.

    share is the part of all P held-out problems that the row is over: those with an answer that was
    measured. bands are geomean speed-ups over the vendor by ``ranges`` of the first axis (nan for an empty one). The
    intervals hold 95 % of bootstrap rounds that draw whole families. split_regret is the mean
    regret against an oracle chosen by one half of the samples and scored by the other.
    """

    chooser: str
    regime: str
    declared: bool
    share: float
    score: Score
    bands: tuple[float, ...]
    regret_interval: tuple[float, float]
    speedup_interval: tuple[float, float]
    split_regret: float
    note: str = ""
    ranges: tuple[Band, ...] = BANDS

    def to_row(self) -> dict[str, Any]:
        """One flat row: names and values for a table or a tracker."""
        return {
            "chooser": self.chooser,
            "regime": self.regime,
            "declared": self.declared,
            "share": self.share,
            **self.score.to_row(),
            **{f"speedup_{band_name(band)}": value for band, value in zip(self.ranges, self.bands, strict=True)},
            "mean_regret_low": self.regret_interval[0],
            "mean_regret_high": self.regret_interval[1],
            "geomean_speedup_low": self.speedup_interval[0],
            "geomean_speedup_high": self.speedup_interval[1],
            "split_regret": self.split_regret,
        }


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for what JSON cannot say: nan (an empty band, an unknown spread) and infinity."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}


def resolve(ranking: NDArray[np.intp], latency_us: NDArray[np.float64]) -> NDArray[np.intp]:
    """The column that would run for each problem: what a dispatcher makes of a ranking.

    ranking [P, R] as in ``Chooser``; latency_us [P, C] as in ``TrainingSet``. A config that is
    illegal or failed gives way to its successor, and after the last to the vendor (column 0), as at
    run time. -1 where there is no answer, or where the config that would run was never measured.
    """
    rows = np.arange(len(ranking))
    answered = ranking[:, 0] >= 0
    ranking = np.hstack([ranking, np.zeros((len(ranking), 1), dtype=ranking.dtype)])
    latency = latency_us[rows[:, None], ranking]
    first = ((ranking >= 0) & ~np.isinf(latency)).argmax(axis=1)
    runs = np.isfinite(latency[rows, first]) & answered
    return np.where(runs, ranking[rows, first], -1)


def without_promises(data: TrainingSet) -> TrainingSet:
    """The same measurements for callers who declare nothing (``static_weights=False``).

    Configs that are then illegal cost ``inf``: for the oracle too.
    """
    problems = tuple(map(undeclared, data.problems))
    return replace(
        data,
        problems=problems,
        legal=data.legal_undeclared,
        features=feature_matrix(data.op, problems, data.devices),
        latency_us=np.where(data.legal_undeclared, data.latency_us, np.inf),
    )


@dataclass(frozen=True)
class Scorer:
    """Scores columns [P] on one TrainingSet; what does not depend on the chooser is computed once.

    halves_us [2, P, C] and split_oracle_us [2, P] come from ``samples``. cluster [P] numbers the
    family that a problem stands for; the bootstrap draws clusters.
    """

    data: TrainingSet
    halves_us: NDArray[np.float64] | None
    split_oracle_us: NDArray[np.float64] | None
    cluster: NDArray[np.intp]
    declared: bool = True
    seed: int = 0
    ranges: tuple[Band, ...] = BANDS

    def score(self, name: str, column: NDArray[np.intp], note: str = "", baseline: int = 0) -> ChooserScore:
        """The row of the choices ``column`` [P]; -1 is left out.

        baseline: column of the config that speed-ups are over, if not the vendor's; problems that it cannot run, or
        was not measured on, are left out.
        """
        over = np.flatnonzero((column >= 0) & np.isfinite(self.data.latency_us[:, baseline]))
        picked = column[over]
        chosen_us = self.data.latency_us[over, picked]
        oracle_us, baseline_us = self.data.oracle_us[over], self.data.latency_us[over, baseline]
        log_speedup = np.log(baseline_us / chosen_us)
        axes = self.data.axes[over]
        return ChooserScore(
            chooser=name,
            regime=self.data.regime.value,
            declared=self.declared,
            share=len(over) / len(column),
            score=score(chosen_us.tolist(), oracle_us.tolist(), baseline_us.tolist()),
            bands=tuple(geomean(np.exp(log_speedup[in_band(axes, band)]).tolist()) for band in self.ranges),
            regret_interval=bootstrap_interval(chosen_us / oracle_us - 1, self.cluster[over], self.seed),
            speedup_interval=_exp(bootstrap_interval(log_speedup, self.cluster[over], self.seed)),
            split_regret=self._split_regret(over, picked),
            note=note,
            ranges=self.ranges,
        )

    def _split_regret(self, over: NDArray[np.intp], picked: NDArray[np.intp]) -> float:
        if self.halves_us is None or self.split_oracle_us is None or not len(over):
            return float("nan")
        return float(np.mean(self.halves_us[:, over, picked] / self.split_oracle_us[:, over] - 1))


def _exp(interval: tuple[float, float]) -> tuple[float, float]:
    return float(np.exp(interval[0])), float(np.exp(interval[1]))


def bootstrap_interval(
    values: NDArray[np.float64], cluster: NDArray[np.intp], seed: int = 0, rounds: int = BOOTSTRAP_ROUNDS
) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [P] when clusters are drawn with replacement.

    Problems of one model family resemble each other: drawing problems one by one would pretend to
    more evidence than there is. With a single cluster there is nothing else to draw, and problems
    are drawn. nan if there are no values. (Percentile bootstrap: Efron and Tibshirani, 1993, ch. 13.)
    """
    if not len(values):
        return float("nan"), float("nan")
    _, member = np.unique(cluster, return_inverse=True)
    if member.max() == 0:
        member = np.arange(len(values))
    sums, counts = np.bincount(member, values), np.bincount(member)
    share = np.full(len(counts), 1 / len(counts))
    draws = np.random.default_rng(seed).multinomial(len(counts), share, size=rounds)
    low, high = np.quantile((draws @ sums) / (draws @ counts), (0.025, 0.975))
    return float(low), float(high)


def clusters(families: Sequence[frozenset[str]], held_out: Sequence[str]) -> NDArray[np.intp]:
    """[P]: the held-out family that each problem counts for, the first by name if it is in several."""
    names = [min(found & set(held_out), default=min(found, default="")) for found in families]
    return np.unique(np.array(names, dtype=str), return_inverse=True)[1]


def family_rows(scorer: Scorer, column: NDArray[np.intp]) -> dict[str, ChooserScore]:
    """The row of ``column`` [P] over each family alone; a problem of several families counts in each."""
    data = scorer.data
    names = sorted(set().union(*data.families)) if data.families else []
    rows = {}
    for name in names:
        here = np.array([name in families for families in data.families])
        rows[name] = scorer.score(name, np.where(here, column, -1))
    return rows


@dataclass(frozen=True, slots=True)
class WorstProblem:
    """A problem on which the choice lost most."""

    problem: str
    families: str
    chosen: str
    best: str
    chosen_us: float
    best_us: float
    vendor_us: float

    @property
    def regret(self) -> float:
        """Chosen latency / best latency - 1."""
        return self.chosen_us / self.best_us - 1


def worst_problems(data: TrainingSet, column: NDArray[np.intp], count: int = 15) -> tuple[WorstProblem, ...]:
    """The ``count`` problems of highest regret, worst first."""
    over = np.flatnonzero(column >= 0)
    oracle = np.where(data.trusted & np.isfinite(data.latency_us), data.latency_us, np.inf).argmin(axis=1)
    regret = data.latency_us[over, column[over]] / data.oracle_us[over] - 1
    return tuple(
        WorstProblem(
            problem=data.problems[i].key(),
            families=", ".join(sorted(data.families[i])),
            chosen=data.configs[column[i]].key(),
            best=data.configs[oracle[i]].key(),
            chosen_us=float(data.latency_us[i, column[i]]),
            best_us=float(data.oracle_us[i]),
            vendor_us=float(data.baseline_us[i]),
        )
        for i in over[np.argsort(-regret, kind="stable")][:count]
    )
