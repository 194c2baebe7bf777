"""Measurements carried over to another device: what each config would take there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from aks.core.device import DeviceSpec
from aks.core.problem import Problem
from aks.train.dataset import TrainingSet, lay_out
from aks.train.latency import LatencyModel, log_ratio

_FACTS = ("sm_count", "l2_bytes", "dram_gb_s", "clock_mhz", "smem_bytes_per_sm", "registers_per_sm")
_LEAST_DISTANCE = 0.05
"""Two devices of the same facts are not quite the same either."""
_MARGIN = 1.5
"""A fact is covered up to so many times beyond the devices that were measured."""
_DISBELIEF = 1.0
"""What a residual is weighed against: one from a device at distance 1 (e times the SMs, say) counts half."""


def device_distance(one: DeviceSpec, other: DeviceSpec) -> float:
    """How unlike two devices are: the Euclidean distance of the logarithms of their facts.

    The tensor cores count by the rate of an SM, so that the number of SMs counts once.
    """
    ratios = [getattr(one, name) / getattr(other, name) for name in _FACTS]
    ratios.append(one.tflops_16bit / one.sm_count / (other.tflops_16bit / other.sm_count))
    return sqrt(sum(log(ratio) ** 2 for ratio in ratios))


def nearest_device(device: DeviceSpec, others: Sequence[DeviceSpec]) -> DeviceSpec:
    """The device in ``others`` that is least unlike ``device``; the first by name of several."""
    return min(others, key=lambda other: (device_distance(device, other), other.name))


def uncovered_facts(device: DeviceSpec, known: Iterable[DeviceSpec]) -> tuple[str, ...]:
    """Facts of ``device`` that are beyond what the devices ``known`` span: what is said of it is a guess.

    Numbers may be 1.5 times beyond; a capability must have been measured.
    """
    known = list(known)
    uncovered = [] if device.capability in {other.capability for other in known} else ["capability"]
    for name in _FACTS:
        values = [getattr(other, name) for other in known]
        if not min(values) <= _MARGIN * getattr(device, name) or getattr(device, name) > _MARGIN * max(values):
            uncovered.append(name)
    return tuple(uncovered)


def default_device(training_set: TrainingSet) -> DeviceSpec:
    """The device that most problems were measured on."""
    return Counter(training_set.devices).most_common(1)[0][0]


def carry_over(training_set: TrainingSet, model: LatencyModel, device: DeviceSpec) -> TrainingSet:
    """The distinct problems of ``training_set``, each as ``device`` runs it or would run it.

    What was measured on ``device`` stays as it is. Elsewhere a cell becomes what ``model`` expects on
    ``device``, corrected by how wrong the model is about that very cell on the devices where it was
    timed: the nearer they are, the more that counts. A config that failed wherever it was tried fails
    here; one that was tried nowhere stays unknown.
    """
    rows_of: dict[Problem, list[int]] = {}
    for row, problem in enumerate(training_set.problems):
        rows_of.setdefault(problem, []).append(row)
    at_home = {
        problem: [row for row in rows if training_set.devices[row] == device] for problem, rows in rows_of.items()
    }
    if all(at_home.values()):
        return training_set.subset([rows[0] for rows in at_home.values()])
    families = [frozenset().union(*(training_set.families[row] for row in rows)) for rows in rows_of.values()]
    there = lay_out(
        training_set.op,
        training_set.regime,
        list(rows_of),
        [device] * len(rows_of),
        families,
        training_set.configs,
        np.full((len(rows_of), len(training_set.configs)), np.nan),
        training_set.trusted,
        training_set.source,
    )
    away = np.flatnonzero([not rows for rows in at_home.values()])
    asked, sources = there.subset(away), [rows_of[there.problems[index]] for index in away]
    correction, tried, ran = _corrections(training_set, model, device, sources)
    usable = asked.legal & ran
    expected = model.latency_us(asked.features, asked.columns, asked.configs, usable, asked.regime)
    latency_us = there.latency_us.copy()
    latency_us[away] = np.where(usable, expected * np.exp(correction), np.where(tried & ~ran, np.inf, asked.latency_us))
    for index, rows in enumerate(at_home.values()):
        if rows:
            latency_us[index] = training_set.latency_us[rows[0]]
    return replace(there, latency_us=latency_us)


def _corrections(
    training_set: TrainingSet, model: LatencyModel, device: DeviceSpec, sources: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """For each of S problems, measured in the rows ``sources``: [S, C] nats, whether tried, whether it ran."""
    part = training_set.subset([row for rows in sources for row in rows])
    owner = np.repeat(np.arange(len(sources)), [len(rows) for rows in sources])
    timed = np.isfinite(part.latency_us)
    expected = model.latency_us(part.features, part.columns, part.configs, timed, part.regime)
    residual = log_ratio(part.latency_us, expected)
    distance = {other: max(_LEAST_DISTANCE, device_distance(device, other)) for other in set(part.devices)}
    weight = np.array([1 / distance[other] for other in part.devices])[:, None] * timed
    shape = len(sources), len(part.configs)
    total, summed = np.zeros((2, *shape))
    np.add.at(total, owner, weight)
    np.add.at(summed, owner, weight * residual)
    tried, ran = np.zeros((2, *shape), dtype=bool)
    # Illegal where it was measured says nothing of here.
    np.logical_or.at(tried, owner, part.legal & ~np.isnan(part.latency_us))
    np.logical_or.at(ran, owner, timed)
    return summed / (total + _DISBELIEF), tried, ran
