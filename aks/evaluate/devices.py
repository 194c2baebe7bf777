"""Choosers for a GPU that nobody measured, and what else one could do there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aks.core.device import DeviceSpec
from aks.core.features import Feature, evaluate_columns
from aks.core.tree import Tree
from aks.evaluate import baselines
from aks.evaluate.nvmatmul import nvmatmul_choosers
from aks.evaluate.regret import Chooser
from aks.export.tree import lower
from aks.train.dataset import TrainingSet
from aks.train.fit import Fitted, Options, fit
from aks.train.ladder import LADDER
from aks.train.latency import LatencyModel, fit_latency_model
from aks.train.selector import describe
from aks.train.transport import nearest_device

TREE, MODEL = "tree", "latency model"
COVERED = "tree, where covered"
OWN_TREE, NEAREST_TREE = "tree that the device's own data taught too", "nearest device's tree"
COPY, ANALYTIC = "nearest device's winner, copied", "analytic formula"


def by_device(name: str, make: Callable[[DeviceSpec], Chooser], note: str = "") -> Chooser:
    """The chooser that is ``make(device)`` on each device."""

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        parts = []
        for device in sorted(set(data.devices), key=lambda device: device.name):
            rows = np.flatnonzero([other == device for other in data.devices])
            parts.append((rows, make(device).rank(data.subset(rows))))
        ranking = np.full((len(data), max(part.shape[1] for _, part in parts)), -1, dtype=np.intp)
        for rows, part in parts:
            ranking[rows, : part.shape[1]] = part
        return ranking

    return Chooser(name, rank, note)


def selector_choosers(train: TrainingSet, options: Options, *, ladder: bool = False) -> list[Chooser]:
    """``aks train`` for each device that is asked for: the XGBoost selector and its tree; the ladder before them."""
    fitted = _trainer(train, options)
    rungs = LADDER if ladder else ()
    return [
        *(by_device(rung.description, _rung(rung.description, rung.fit, fitted, options.seed)) for rung in rungs),
        *_shipped(train, options, fitted),
    ]


def device_choosers(train: TrainingSet, inside: TrainingSet, options: Options, *, ladder: bool = True) -> list[Chooser]:
    """What one can do on devices that ``train`` has nothing of, and what their own data would teach.

    inside: ``train`` and the training problems that were measured on these devices. ladder adds what takes
    trainings of their own. Where a problem was tried with some configs only, as records of others are, those
    that price every config choose among these.
    """
    model = fit_latency_model([train], options.seed)
    fitted = _trainer(train, options, model)
    devices = sorted(set(train.devices), key=lambda device: device.name)

    def nearest_tree(device: DeviceSpec) -> Chooser:
        return _tree(train, options, fitted(nearest_device(device, devices)), device)

    trained = []
    if ladder:
        own = _trainer(inside, options)
        trained = [
            by_device(NEAREST_TREE, nearest_tree),
            by_device(OWN_TREE, lambda device: _tree(inside, options, own(device), device)),
        ]
    return [
        Chooser(ANALYTIC, _analytic, note="the least time of DRAM, loads and arithmetic of whole tiles in whole waves"),
        by_device(COPY, lambda device: _copy(train, nearest_device(device, devices))),
        *trained,
        Chooser(MODEL, lambda data: fastest_expected(train, model, data), note="what the tree learns from"),
        *_shipped(train, options, fitted),
        by_device(COVERED, lambda device: _covered_tree(train, options, fitted(device), device)),
    ]


def fastest_expected(train: TrainingSet, model: LatencyModel, data: TrainingSet) -> NDArray[np.intp]:
    """[P, 1]: the config that ``model`` expects to be the fastest, of those that ``train`` knows and that were tried.

    Legality and what was tried are as ``data`` has them; devices and features are what the model sees.
    """
    usable = _tried(data) & train.known
    expected = model.latency_us(data.features, data.columns, data.configs, usable, data.regime)
    return expected.argmin(axis=1)[:, None]


def nvmatmul_by_device(data: TrainingSet) -> list[Chooser]:
    """nvMatmulHeuristics on the devices that it has a preset for; a partition is none of them."""
    whole = {device for device in data.devices if not device.is_partition}
    found = {device: nvmatmul_choosers(data.op, [device])[0] for device in whole}
    names = list(dict.fromkeys(chooser.name for choosers in found.values() for chooser in choosers))
    silent = Chooser("", lambda part: np.full((len(part), 1), -1, dtype=np.intp))

    def chooser_named(name: str) -> Callable[[DeviceSpec], Chooser]:
        return lambda device: next((entry for entry in found.get(device, ()) if entry.name == name), silent)

    return [by_device(name, chooser_named(name)) for name in names]


def _trainer(train: TrainingSet, options: Options, model: LatencyModel | None = None) -> Callable[[DeviceSpec], Fitted]:
    """A selector for each device, made when first asked for; they share a model of latency."""
    shared = model or fit_latency_model([train], options.seed)
    return cache(lambda device: fit(train, options, device=device, model=shared))


def _shipped(train: TrainingSet, options: Options, fitted: Callable[[DeviceSpec], Fitted]) -> list[Chooser]:
    """What ``aks train`` writes for each device: the classifier, and its tree."""
    return [
        by_device(baselines.XGBOOST, lambda device: _classifier(fitted(device))),
        by_device(TREE, lambda device: _tree(train, options, fitted(device), device)),
    ]


def _classifier(fitted: Fitted) -> Chooser:
    return baselines.class_chooser(baselines.XGBOOST, fitted.classifier, fitted.portfolio.columns)


def _rung(name: str, learn: Any, fitted: Callable[[DeviceSpec], Fitted], seed: int) -> Callable[[DeviceSpec], Chooser]:
    def make(device: DeviceSpec) -> Chooser:
        here = fitted(device)
        return baselines.class_chooser(name, learn(here.examples, seed), here.portfolio.columns)

    return make


def _lowered(train: TrainingSet, options: Options, fitted: Fitted, device: DeviceSpec) -> Tree:
    """The tree as it would be exported for ``device``."""
    return lower(describe(fitted, train, train, (), options, {}, {}, ""), train.op, device)


def _tree(train: TrainingSet, options: Options, fitted: Fitted, device: DeviceSpec) -> Chooser:
    return baselines.tree_chooser(_lowered(train, options, fitted, device), TREE)


def _covered_tree(train: TrainingSet, options: Options, fitted: Fitted, device: DeviceSpec) -> Chooser:
    """The tree on devices like those that were measured and problems inside its support; no answer elsewhere."""
    tree = _lowered(train, options, fitted, device)
    chooser, supported = baselines.tree_chooser(tree), baselines.supported_chooser(tree)

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        covered = (supported.rank(data) >= 0) & (not fitted.uncovered)
        return np.where(covered, chooser.rank(data), -1)

    return Chooser(COVERED, rank, note="neither the device nor the problem is beyond what was measured")


def _copy(train: TrainingSet, source: DeviceSpec) -> Chooser:
    """The config that was the fastest on ``source``; no answer for a problem that was not measured there."""
    there = train.subset([row for row, device in enumerate(train.devices) if device == source])
    winners = dict(zip(there.problems, baselines.oracle().rank(there)[:, 0].tolist(), strict=True))

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        return np.array([[winners.get(problem, -1)] for problem in data.problems], dtype=np.intp)

    return Chooser(COPY, rank)


def _analytic(data: TrainingSet) -> NDArray[np.intp]:
    """The config of the least ``Op.analytic_ns``; the first of equals, the vendor's before all."""
    columns, formula = data.columns, (Feature("analytic_ns", data.op.analytic_ns),)
    cost = np.full(data.legal.shape, np.inf)
    for index, config in enumerate(data.configs):
        constants = {name: np.int64(value) for name, value in config.variables().items()}
        cost[:, index] = evaluate_columns(formula, {**columns, **constants})[:, 0]
    return np.where(_tried(data) & data.trusted, cost, np.inf).argmin(axis=1)[:, None]


def _tried(data: TrainingSet) -> NDArray[np.bool_]:
    """[P, C]: legal, and not left out of the measurements; how it came out, nobody looks at."""
    return data.legal & ~np.isnan(data.latency_us)
