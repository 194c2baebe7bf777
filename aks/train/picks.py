"""Which problems to measure next on a device, and with which configs: where the ensemble disagrees on the choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.problem import Problem
from aks.train.dataset import TrainingSet
from aks.train.latency import LatencyModel

_CONTENDER = 1.15
"""Configs that some member puts within this of its best are measured."""
_REACH = 0.7
"""Nats of m, n and k over which a measurement tells of its neighbours (one e-th is left at this distance)."""


@dataclass(frozen=True)
class Seconds:
    """What measuring takes: ``race`` a problem, ``config`` each of its configs, ``kernel`` to compile a new one.

    The first two as recorded on Hopper GPUs, where all 57 configs of a problem took 0.3 s; the last
    for 14 processes that compile, each kernel in 3.5 s. A kernel is a config in one dtype and layout.
    """

    race: float = 0.05
    config: float = 0.0045
    kernel: float = 0.25


@dataclass(frozen=True)
class Pick:
    """A problem to measure with ``configs``, the vendor's first. gain: of expected regret, over all candidates."""

    problem: Problem
    families: frozenset[str]
    configs: tuple[Config, ...]
    gain: float


def pick(model: LatencyModel, candidates: TrainingSet, seconds: float, cost: Seconds = Seconds()) -> list[Pick]:
    """The candidates to measure in about ``seconds``, the most telling first; none that has a latency already.

    A candidate's stake is the regret that the ensemble expects of its own choice there: the mean over
    members of what the mean model's choice costs by that member's latencies. Measuring a problem
    settles its own stake and, the less the farther, those of its neighbours; so the picks are a cover
    (facility location, as in ``portfolio``), chosen greedily by gain a second. Stakes are relative
    regrets, not microseconds, because that is what is scored, and every candidate counts once: where
    the candidates are dense, a measurement tells more.
    """
    latency_us = member_latencies(model, candidates)
    stake, contending = expected_regret(latency_us), contenders(latency_us)
    kind = kinds(candidates)
    near = similarity(candidates, kind)
    timed = np.isfinite(candidates.latency_us)
    compiled = np.array([timed[kind == one].any(axis=0) for one in range(kind.max() + 1)])
    compiled[:, 0] = True  # the vendor's
    known = timed.any(axis=1)
    told = near[known].max(axis=0, initial=0.0)
    race_seconds = cost.race + cost.config * contending.sum(axis=1)
    left = np.flatnonzero(~known)
    picks: list[Pick] = []
    while len(left) and seconds > 0:
        gain = np.maximum(near[left] - told, 0.0) @ stake
        spent = race_seconds[left] + cost.kernel * (contending[left] & ~compiled[kind[left]]).sum(axis=1)
        best = int(np.argmax(gain / spent))
        row = left[best]
        configs = tuple(config for config, take in zip(candidates.configs, contending[row], strict=True) if take)
        picks.append(Pick(candidates.problems[row], candidates.families[row], configs, float(gain[best])))
        told = np.maximum(told, near[row])
        compiled[kind[row]] |= contending[row]
        seconds -= float(spent[best])
        left = np.delete(left, best)
    return picks


def member_latencies(model: LatencyModel, candidates: TrainingSet) -> NDArray[np.float64]:
    """[B, P, C] microseconds by each booster alone; ``inf`` where a config cannot run or is not trusted."""
    usable = candidates.legal & candidates.trusted & ~np.isposinf(candidates.latency_us)
    asked = candidates.features, candidates.columns, candidates.configs, usable, candidates.regime
    return model.members_us(*asked)


def expected_regret(latency_us: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P]: of the choice by the mean of log latencies [B, P, C], the mean over members of its regret."""
    choice = np.log(latency_us).mean(axis=0).argmin(axis=1)
    chosen = np.take_along_axis(latency_us, choice[None, :, None], axis=2)[:, :, 0]
    return (chosen / latency_us.min(axis=2) - 1).mean(axis=0)


def contenders(latency_us: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[P, C]: the configs worth measuring, by the latencies [B, P, C] of the members; the vendor's always."""
    best = latency_us.min(axis=2, keepdims=True)
    contending = (latency_us <= _CONTENDER * best).any(axis=0)
    contending[:, 0] = True
    return contending


def kinds(candidates: TrainingSet) -> NDArray[np.intp]:
    """[P]: numbers the values of all that is no axis: problems of one kind run the same kernels."""
    others = [
        repr([value for name, value in problem.to_row().items() if name not in problem.AXES])
        for problem in candidates.problems
    ]
    return np.unique(np.array(others), return_inverse=True)[1]


def similarity(candidates: TrainingSet, kind: NDArray[np.intp]) -> NDArray[np.float64]:
    """[P, P]: how much a measurement of one problem tells of another; 1 of itself, 0 across kinds."""
    axes = np.log(candidates.axes)
    squared = sum(np.subtract.outer(column, column) ** 2 for column in axes.T) / _REACH**2
    return np.exp(-squared) * (kind[:, None] == kind[None, :])
