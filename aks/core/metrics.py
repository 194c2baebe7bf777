"""How far a choice is from the best: the figures that everything is scored by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


def geomean(values: Sequence[float]) -> float:
    """Geometric mean of positive values; nan if there are none."""
    values = list(values)
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q`` quantile by linear interpolation (numpy's default); nan if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class Score:
    """Regret and speed-up of a set of choices. Regrets are fractions: 0.01 is 1 % slower than the oracle."""

    problems: int
    mean_regret: float
    p95_regret: float
    p99_regret: float
    worst_regret: float
    geomean_slowdown: float
    """Geometric mean of chosen latency / oracle latency."""
    geomean_speedup: float
    """Geometric mean of baseline latency / chosen latency."""
    slower_share: float
    """Share of problems on which the choice is more than 2 % slower than the baseline."""

    def to_row(self) -> dict[str, float]:
        """Field names and values, in order."""
        return asdict(self)


SLOWER_MARGIN = 0.02


def score(chosen_us: Sequence[float], oracle_us: Sequence[float], baseline_us: Sequence[float]) -> Score:
    """Score choices, problem by problem; all three sequences have length P, in microseconds."""
    chosen_us, oracle_us, baseline_us = list(chosen_us), list(oracle_us), list(baseline_us)
    regrets = [chosen / oracle - 1 for chosen, oracle in zip(chosen_us, oracle_us, strict=True)]
    speedups = [baseline / chosen for baseline, chosen in zip(baseline_us, chosen_us, strict=True)]
    count = len(regrets)
    return Score(
        problems=count,
        mean_regret=math.fsum(regrets) / count if count else math.nan,
        p95_regret=quantile(regrets, 0.95),
        p99_regret=quantile(regrets, 0.99),
        worst_regret=max(regrets, default=math.nan),
        geomean_slowdown=geomean([1 + regret for regret in regrets]),
        geomean_speedup=geomean(speedups),
        slower_share=sum(speedup < 1 / (1 + SLOWER_MARGIN) for speedup in speedups) / count if count else math.nan,
    )
