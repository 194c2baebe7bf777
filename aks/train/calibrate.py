"""Calibration: the prior, and the few measurements that there are of a device, become a selector for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aks.core.device import DeviceSpec
from aks.core.problem import Problem
from aks.train.dataset import Source, TrainingSet, lay_out
from aks.train.fit import Fitted, Options, fit
from aks.train.latency import LatencyModel, adapt_latency_model, log_ratio
from aks.train.prior import Prior


def calibrate(
    prior: Prior,
    device: DeviceSpec,
    measured: TrainingSet | None,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[TrainingSet, Fitted]:
    """A selector for ``device``: ``fit`` on the prior's problems and the measured ones, as they run there.

    measured: of ``device`` alone, in the prior's regime; None makes what the prior alone can.
    Gives the training problems too.
    """
    say(f"adapting the latency model to {len(measured) if measured else 0} measured problems")
    model = adapt(prior, measured, options.seed)
    training = expected(on_device(prior, device, prior.problems, prior.families, measured), model)
    return training, fit(training, options, say, device=device, model=model)


def adapt(prior: Prior, measured: TrainingSet | None, seed: int = 0) -> LatencyModel:
    """The prior's latency model, corrected by what was measured."""
    return adapt_latency_model(prior.model, measured, seed) if measured is not None else prior.model


def on_device(
    prior: Prior,
    device: DeviceSpec,
    problems: Sequence[Problem],
    families: Sequence[frozenset[str]],
    measured: TrainingSet | None = None,
) -> TrainingSet:
    """``problems`` and the measured ones on ``device``, as far as they were measured there.

    A legal config that was not tried has ``nan``; one that failed wherever it was tried fails everywhere.
    """
    op = prior.op
    names = dict(zip(problems, families, strict=True))
    configs = set(prior.configs)
    if measured is not None:
        names |= dict(zip(measured.problems, measured.families, strict=True))
        configs |= set(measured.configs)
    columns = (op.vendor, *sorted(configs - {op.vendor}, key=op.space.places.__getitem__))
    latency_us = np.full((len(names), len(columns)), np.nan)
    trusted = np.ones(len(columns), dtype=bool)
    if measured is not None:
        place = {problem: row for row, problem in enumerate(names)}
        rows = np.array([place[problem] for problem in measured.problems])
        those = np.array([columns.index(config) for config in measured.configs])
        trusted[those] = measured.trusted
        tried = measured.legal & ~np.isnan(measured.latency_us)
        failing = tried.any(axis=0) & ~np.isfinite(measured.latency_us).any(axis=0)
        latency_us[:, those[failing]] = np.inf
        cells = np.where(np.isnan(measured.latency_us), latency_us[np.ix_(rows, those)], measured.latency_us)
        latency_us[np.ix_(rows, those)] = cells
    source = measured.source if measured is not None else Source()
    families = list(names.values())
    return lay_out(op, prior.regime, list(names), [device] * len(names), families, columns, latency_us, trusted, source)


def expected(training_set: TrainingSet, model: LatencyModel) -> TrainingSet:
    """The set with what ``model`` expects where nobody tried.

    Where some configs of a problem were measured, the others are corrected by how wrong the model is
    about these on average: it may misjudge a problem and still know its configs' order.
    """
    usable = training_set.legal & ~np.isinf(training_set.latency_us)
    modelled = model.latency_us(
        training_set.features, training_set.columns, training_set.configs, usable, training_set.regime
    )
    timed = np.isfinite(training_set.latency_us)
    residual = log_ratio(training_set.latency_us, modelled)
    correction = residual.sum(axis=1, keepdims=True) / np.maximum(timed.sum(axis=1, keepdims=True), 1)
    filled = np.where(np.isnan(training_set.latency_us), modelled * np.exp(correction), training_set.latency_us)
    return replace(training_set, latency_us=filled)
