"""The tree's teacher: expected costs by XGBoost on imagined problems, between the measured ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from aks.core.device import DeviceSpec
from aks.core.features import evaluate_columns
from aks.core.problem import Problem
from aks.train.dataset import TrainingSet, legality, undeclared, variable_columns
from aks.train.examples import Inputs, choice_cost
from aks.train.latency import LatencyModel

_FIRST_AXIS_SPREAD, _OTHER_AXES_SPREAD = 0.5, 0.3
_SAME_WEIGHTS = 0.3
_GRANULE = 64


@dataclass(frozen=True)
class Imagined:
    """S problems that nobody measured, over all C configs of a training set.

    inputs.legal, legal_undeclared [S, C]: as in ``TrainingSet``. cost [S, C]: by the latency model;
    an illegal config costs what the vendor's does.
    """

    inputs: Inputs
    legal_undeclared: NDArray[np.bool_]
    cost: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.inputs)


def imagine(
    training_set: TrainingSet,
    model: LatencyModel,
    count: int,
    device: DeviceSpec,
    seed: int = 0,
    around: TrainingSet | None = None,
) -> Imagined:
    """Draw ``count`` problems and price them on ``device``, in the regime of ``training_set``.

    They lie around those of ``around`` (default: the same set), inside its range of every axis.

    Some keep the source's weights and get another m; the others get weights near them too, as a
    family that is not in the data might have, with the source's divisibility, which kernels care about.
    """
    around = around or training_set
    rng = np.random.default_rng(seed)
    source = rng.integers(len(around), size=count)
    names = training_set.op.problem_type.AXES
    axes = around.axes
    spread = np.full((count, len(names)), _OTHER_AXES_SPREAD)
    spread[:, 0] = _FIRST_AXIS_SPREAD
    spread[rng.random(count) < _SAME_WEIGHTS, 1:] = 0.0
    factor = np.exp(rng.normal(size=spread.shape) * spread)
    granule = np.vectorize(gcd)(axes[source], _GRANULE)
    granule[:, 0] = 1
    drawn = np.maximum(np.rint(axes[source] * factor / granule).astype(np.int64), 1) * granule
    drawn = np.clip(drawn, axes.min(axis=0), axes.max(axis=0))
    problems: list[Problem] = [
        replace(around.problems[row], **dict(zip(names, values, strict=True)))
        for row, values in zip(source, drawn.tolist(), strict=True)
    ]
    devices = [device] * count
    op, configs = training_set.op, training_set.configs
    columns = variable_columns(problems, devices)
    legal = legality(op, configs, problems, devices)
    inputs = Inputs(drawn, evaluate_columns(op.features, columns), legal, columns)
    plain = legality(op, configs, [undeclared(problem) for problem in problems], devices)
    return Imagined(inputs, plain, expected_cost(model, training_set, inputs))


def expected_cost(model: LatencyModel, training_set: TrainingSet, inputs: Inputs) -> NDArray[np.float64]:
    """[P, C]: cost of each config of ``training_set`` by modelled latencies; the vendor's where illegal.

    Of a config that was never timed the model knows nothing: it costs the most, as do untrusted ones.
    """
    usable = inputs.legal & training_set.known
    latency_us = model.latency_us(inputs.features, inputs.columns, training_set.configs, usable, training_set.regime)
    cost = choice_cost(latency_us, latency_us.min(axis=1))
    return np.where(inputs.legal, cost, cost[:, :1])
