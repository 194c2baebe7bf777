"""The tree's teacher: expected costs by XGBoost, on measured problems and on imagined ones between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.features import evaluate_columns
from aks.core.problem import Problem
from aks.train.classifier import RegretClassifier
from aks.train.dataset import TrainingSet, legality, undeclared, variable_columns
from aks.train.examples import CostRule, Inputs
from aks.train.latency import LatencyModel

_CONFIDENCE = 0.03
"""What the classifier's full confidence is worth against the regression, in nats of slowdown."""
_FIRST_AXIS_SPREAD, _OTHER_AXES_SPREAD = 0.5, 0.3
_SAME_WEIGHTS = 0.3
_GRANULE = 64


@dataclass(frozen=True)
class Teacher:
    """Expected cost of every class: from modelled latencies, leaning to what the classifier would choose.

    Two views of the same data: the latency model knows what each config costs anywhere, the
    classifier where exactly choices change.
    """

    classifier: RegretClassifier
    model: LatencyModel
    configs: tuple[Config, ...]
    rule: CostRule

    def cost(self, inputs: Inputs) -> NDArray[np.float64]:
        """[P, K]; an illegal class costs what the vendor's does."""
        latency_us = self.model.latency_us(inputs.features, inputs.columns, self.configs)
        latency_us = np.where(inputs.legal, latency_us, np.inf)
        cost = self.rule(latency_us, latency_us.min(axis=1), latency_us[:, 0])
        cost = cost + _CONFIDENCE * (1.0 - self.classifier.probabilities(inputs))
        return np.where(inputs.legal, cost, cost[:, :1])


@dataclass(frozen=True)
class Imagined:
    """S problems that nobody measured, each drawn around a measured one.

    source [S]: row of the training set that it was drawn around (so that folds can leave out what
    was drawn around held-out rows). legal_undeclared [S, K]: for a caller who promises nothing.
    """

    source: NDArray[np.intp]
    inputs: Inputs
    legal_undeclared: NDArray[np.bool_]

    def drawn_around(self, rows: NDArray[np.intp]) -> Imagined:
        """Those whose source is in ``rows``."""
        index = np.flatnonzero(np.isin(self.source, rows))
        return Imagined(self.source[index], self.inputs.rows(index), self.legal_undeclared[index])


def imagine(training_set: TrainingSet, configs: tuple[Config, ...], count: int, seed: int = 0) -> Imagined:
    """Draw ``count`` problems around those of ``training_set``, inside its range of every axis.

    Some keep the source's weights and get another m; the others get weights near them too, as a
    family that is not in the data might have, with the source's divisibility, which kernels care about.
    """
    rng = np.random.default_rng(seed)
    source = rng.integers(len(training_set), size=count)
    names = training_set.op.problem_type.AXES
    axes = training_set.axes
    spread = np.full((count, len(names)), _OTHER_AXES_SPREAD)
    spread[:, 0] = _FIRST_AXIS_SPREAD
    spread[rng.random(count) < _SAME_WEIGHTS, 1:] = 0.0
    factor = np.exp(rng.normal(size=spread.shape) * spread)
    granule = np.vectorize(gcd)(axes[source], _GRANULE)
    granule[:, 0] = 1
    drawn = np.maximum(np.rint(axes[source] * factor / granule).astype(np.int64), 1) * granule
    drawn = np.clip(drawn, axes.min(axis=0), axes.max(axis=0))
    problems: list[Problem] = [
        replace(training_set.problems[row], **dict(zip(names, values, strict=True)))
        for row, values in zip(source, drawn.tolist(), strict=True)
    ]
    devices = [training_set.devices[row] for row in source]
    op = training_set.op
    columns = variable_columns(problems, devices)
    features = evaluate_columns(op.features, columns)
    inputs = Inputs(drawn, features, legality(op, configs, problems, devices), columns)
    return Imagined(source, inputs, legality(op, configs, [undeclared(entry) for entry in problems], devices))
