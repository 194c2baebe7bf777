"""What a leaf answers: its ranking, and whether it may answer at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aks.core.metrics import SLOWER_MARGIN
from aks.core.tree import round_slowdown
from aks.train.examples import Examples
from aks.train.growth import Rows

_RUNNERS_UP = 2
"""Configs that a leaf names beside those that some caller may need; for people who ask why."""


@dataclass(frozen=True)
class LeafRule:
    """When a config may displace the vendor's, judged over the leaf's measured and imagined problems.

    noise: it must be expected to be faster by more than this (in nats, so 0.01 is 1 %). max_harmed: it
    must be more than 2 % slower than the vendor's on at most this share of them.
    """

    noise: float = 0.01
    max_harmed: float = 0.2


@dataclass(frozen=True)
class Leaf:
    """ranking: classes, best first, the vendor (0) last; the first legal one runs.

    expected_slowdown: for each, mean latency / oracle latency over the leaf's measured problems; None
    if none of them ran it.
    count: of those problems. abstain: a favourite was found but not trusted, so the vendor answers.
    """

    ranking: tuple[int, ...]
    expected_slowdown: tuple[float | None, ...]
    count: int
    abstain: bool


def fill_leaf(
    rows: Rows,
    members: NDArray[np.intp],
    examples: Examples,
    demands: NDArray[np.bool_],
    rule: LeafRule,
) -> Leaf:
    """Rank the classes for the rows ``members``; the first ``len(examples)`` of ``rows`` are the measured ones.

    Classes are ranked by summed cost, the lower index first where costs tie, so that the vendor wins
    ties. Those no better than the vendor are left out. demands [D, K]: distinct patterns of legality
    in the leaf; of the rest, a class is named if some pattern needs it, or as a first runner-up.
    """
    cost, weight = rows.cost[members], rows.weight[members]
    totals = (cost * weight[:, None]).sum(axis=0)
    measured = members[rows.measured[members]]
    slowdown = _mean_slowdown(examples, measured)
    order = [int(c) for c in np.argsort(totals, kind="stable") if totals[c] < totals[0]]
    everything = max(weight.sum(), 1e-9)
    expected_gain = (totals[0] - totals.min()) / everything
    harmed = weight[cost[:, totals.argmin()] > cost[:, 0] + np.log1p(SLOWER_MARGIN)].sum() / everything
    safe = expected_gain > rule.noise and harmed <= rule.max_harmed
    abstain = bool(order) and not safe
    ranking = (*(() if abstain else _needed(order, demands)), 0)
    expected = tuple(round_slowdown(float(slowdown[c])) if np.isfinite(slowdown[c]) else None for c in ranking)
    return Leaf(ranking, expected, len(measured), abstain)


def _mean_slowdown(examples: Examples, measured: NDArray[np.intp]) -> NDArray[np.float64]:
    slowdown = examples.latency_us[measured] / examples.oracle_us[measured, None]
    ran = np.isfinite(slowdown)
    count = ran.sum(axis=0)
    return np.where(count > 0, np.where(ran, slowdown, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _needed(order: list[int], demands: NDArray[np.bool_]) -> tuple[int, ...]:
    """The runners-up, and every class that is the first legal one for some pattern of ``demands``."""
    open_patterns = np.ones(len(demands), dtype=bool)
    needed = []
    for position, choice in enumerate(order):
        if position < _RUNNERS_UP or (open_patterns & demands[:, choice]).any():
            needed.append(choice)
            open_patterns &= ~demands[:, choice]
    return tuple(needed)
