"""The few configs that are kept: a cover of the training problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aks.train.dataset import TrainingSet
from aks.train.examples import COST_CAP, choice_cost
from aks.train.teacher import Imagined

_MIN_GAIN = 1e-5
_MAX_SWAP_ROUNDS = 10


@dataclass(frozen=True)
class Portfolio:
    """Columns of a ``TrainingSet``, best first; the vendor's, 0, leads.

    curve[i] is the mean regret on the training problems of the best of the first i + 1.
    """

    columns: tuple[int, ...]
    curve: tuple[float, ...]


def select_portfolio(
    training_set: TrainingSet,
    max_size: int,
    *,
    undeclared_weight: float = 0.25,
    imagined: Imagined | None = None,
    imagined_weight: float = 1.0,
) -> Portfolio:
    """Choose up to ``max_size`` configs whose best is near the oracle on every problem.

    Minimises the mean cost of the best chosen config: a cover in the sense of facility location, so
    greedy choice is within 1 - 1/e of the best gain (Nemhauser, Wolsey and Fisher 1978); swaps then
    improve it. Imagined problems, ``imagined_weight`` as heavy in all as the measured ones, speak for
    configs that would be wanted between them. The same mean over the configs that are legal for a
    caller who declares nothing counts ``undeclared_weight``: such callers need good successors.
    Illegal, failed and untried configs cover nothing; untrusted ones are never chosen.
    """
    loss = _stack_losses(training_set, undeclared_weight)
    if imagined is not None:
        wanted = np.where(imagined.inputs.legal & training_set.trusted, imagined.cost, COST_CAP)
        loss = np.concatenate([loss, wanted * (imagined_weight / len(imagined))])
    candidates = np.flatnonzero(training_set.known)
    candidates = candidates[candidates != 0]
    chosen = _greedy(loss, candidates, max_size)
    chosen = _swap(loss, candidates, chosen)
    chosen = _greedy(loss, np.array(chosen[1:], dtype=np.intp), max_size)
    return Portfolio(tuple(chosen), tuple(_curve(training_set, chosen)))


def _stack_losses(training_set: TrainingSet, undeclared_weight: float) -> NDArray[np.float64]:
    """[2P, C] weighted losses: problems as measured, then as asked without declarations."""
    parts = []
    for legal, weight in ((training_set.legal, 1.0), (training_set.legal_undeclared, undeclared_weight)):
        usable = np.where(legal & training_set.trusted, training_set.latency_us, np.inf)
        parts.append(weight * choice_cost(usable, np.fmin.reduce(usable, axis=1)))
    return np.concatenate(parts) / len(training_set)


def _greedy(loss: NDArray[np.float64], candidates: NDArray[np.intp], max_size: int) -> list[int]:
    chosen = [0]
    best = loss[:, 0].copy()
    while len(chosen) < max_size and len(candidates):
        totals = np.minimum(best[:, None], loss[:, candidates]).sum(axis=0)
        winner = int(candidates[totals.argmin()])
        if best.sum() - totals.min() < _MIN_GAIN:
            break
        chosen.append(winner)
        best = np.minimum(best, loss[:, winner])
    return chosen


def _swap(loss: NDArray[np.float64], candidates: NDArray[np.intp], chosen: list[int]) -> list[int]:
    """Exchange one chosen config for one that is not while that lowers the loss."""
    chosen = list(chosen)
    for _ in range(_MAX_SWAP_ROUNDS):
        improved = False
        for position in range(1, len(chosen)):
            rest = loss[:, chosen[:position] + chosen[position + 1 :]].min(axis=1)
            totals = np.minimum(rest[:, None], loss[:, candidates]).sum(axis=0)
            current = np.minimum(rest, loss[:, chosen[position]]).sum()
            if current - totals.min() > _MIN_GAIN / 10:
                chosen[position] = int(candidates[totals.argmin()])
                improved = True
        if not improved:
            break
    return chosen


def _curve(training_set: TrainingSet, chosen: list[int]) -> list[float]:
    usable = np.where(training_set.legal, training_set.latency_us, np.inf)[:, chosen]
    best_us = np.fmin.accumulate(usable, axis=1)
    return (best_us / training_set.oracle_us[:, None] - 1).mean(axis=0).tolist()
