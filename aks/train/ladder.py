"""The learned baselines that a selector must beat. Each learns from the same examples and answers legally."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from aks.train.examples import Examples, Inputs

Chooser = Callable[[Inputs], NDArray[np.intp]]
"""Maps P problems to [P] class indices, all legal."""

_MULTICLASS = {"objective": "multi:softprob", "tree_method": "hist", "max_depth": 4, "eta": 0.1, "nthread": 1}
_REGRESSION = {"objective": "reg:squarederror", "tree_method": "hist", "max_depth": 8, "eta": 0.15, "nthread": 1}
_ROUNDS = 100


def fit_static(examples: Examples, seed: int = 0) -> Chooser:
    """The one config that is best on average; where it is illegal, the vendor's."""
    best = int(examples.cost.mean(axis=0).argmin())
    return lambda inputs: np.where(inputs.legal[:, best], best, 0)


def fit_table(examples: Examples, seed: int = 0) -> Chooser:
    """A lookup table keyed by each axis's nearest power of two; a missing key takes the nearest that is there.

    What vLLM, SGLang and Triton users keep as tuned-config files.
    """
    keys, entry = np.unique(_power_key(examples.inputs), axis=0, return_inverse=True)
    cost = np.zeros((len(keys), examples.cost.shape[1]))
    np.add.at(cost, entry.ravel(), examples.cost)
    return lambda inputs: _cheapest_legal(cost[_nearest(keys, _power_key(inputs))], inputs)


def fit_nearest(examples: Examples, seed: int = 0) -> Chooser:
    """The winner on the nearest training problem, by distance between the axes' logarithms."""
    known = np.log2(examples.inputs.axes)
    cost = examples.cost
    return lambda inputs: _cheapest_legal(cost[_nearest(known, np.log2(inputs.axes))], inputs)


def fit_label_tree(examples: Examples, seed: int = 0) -> Chooser:
    """A decision tree on the labels of the winners, as PyTorch's AutoHeuristic learns one."""
    tree = DecisionTreeClassifier(max_leaf_nodes=120, max_depth=10, min_samples_leaf=2, random_state=seed)
    tree.fit(examples.inputs.features.astype(np.float32), _labels(examples))
    classes = np.asarray(tree.classes_, dtype=np.intp)

    def choose(inputs: Inputs) -> NDArray[np.intp]:
        share = np.zeros(inputs.legal.shape)
        share[:, classes] = tree.predict_proba(inputs.features.astype(np.float32))
        return _cheapest_legal(-share, inputs)

    return choose


def fit_multiclass(examples: Examples, seed: int = 0) -> Chooser:
    """XGBoost on the labels of the winners, with the usual log-loss."""
    matrix = xgb.DMatrix(examples.inputs.features.astype(np.float32), label=_labels(examples))
    booster = xgb.train({**_MULTICLASS, "num_class": examples.cost.shape[1], "seed": seed}, matrix, _ROUNDS)

    def choose(inputs: Inputs) -> NDArray[np.intp]:
        share = booster.predict(xgb.DMatrix(inputs.features.astype(np.float32)))
        return _cheapest_legal(-share.reshape(inputs.legal.shape), inputs)

    return choose


def fit_regression(examples: Examples, seed: int = 0) -> Chooser:
    """XGBoost regression of log latency from the features and the config's knobs; the least predicted wins."""
    knobs = np.array([[config.variables()[name] for name in config.to_row()] for config in examples.configs])
    timed = np.isfinite(examples.latency_us).ravel()
    label = np.log(examples.latency_us.ravel()[timed])
    matrix = xgb.DMatrix(_cross(examples.inputs, knobs)[timed], label=label)
    booster = xgb.train({**_REGRESSION, "seed": seed}, matrix, _ROUNDS)

    def choose(inputs: Inputs) -> NDArray[np.intp]:
        predicted = booster.predict(xgb.DMatrix(_cross(inputs, knobs)))
        return _cheapest_legal(predicted.reshape(inputs.legal.shape), inputs)

    return choose


@dataclass(frozen=True, slots=True)
class Rung:
    """One baseline: a short name for tables and metrics, a description, and how it learns."""

    name: str
    description: str
    fit: Callable[[Examples, int], Chooser]


LADDER: tuple[Rung, ...] = (
    Rung("static", "best single static config", fit_static),
    Rung("pow2_table", "power-of-two lookup table, nearest key", fit_table),
    Rung("label_tree", "decision tree on arg-min labels (AutoHeuristic)", fit_label_tree),
    Rung("nearest", "nearest neighbour", fit_nearest),
    Rung("xgb_multiclass", "plain multi-class XGBoost", fit_multiclass),
    Rung("xgb_regression", "XGBoost regression of latency", fit_regression),
)


def _labels(examples: Examples) -> NDArray[np.intp]:
    return _cheapest_legal(examples.cost, examples.inputs)


def _cheapest_legal(cost: NDArray, inputs: Inputs) -> NDArray[np.intp]:
    return np.where(inputs.legal, cost, np.inf).argmin(axis=1)


def _power_key(inputs: Inputs) -> NDArray[np.float64]:
    return np.rint(np.log2(inputs.axes))


def _nearest(known: NDArray[np.float64], asked: NDArray[np.float64]) -> NDArray[np.intp]:
    """[P]: row of ``known`` at the least Euclidean distance; the first of equals."""
    return np.array([((known - row) ** 2).sum(axis=1).argmin() for row in asked], dtype=np.intp)


def _cross(inputs: Inputs, knobs: NDArray) -> NDArray[np.float32]:
    """[P * K, F + V]: every problem's features with every config's knobs."""
    num_problems, num_configs = inputs.legal.shape
    features = np.repeat(inputs.features, num_configs, axis=0)
    return np.concatenate([features, np.tile(knobs, (num_problems, 1))], axis=1).astype(np.float32)
