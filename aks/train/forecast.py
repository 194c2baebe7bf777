"""What the tree's answers take, distilled into a second small tree (``aks.core.forecast``)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeRegressor

from aks.core.features import Feature, evaluate_columns
from aks.core.forecast import LAUNCH_NS, Forecast
from aks.ops.op import Op
from aks.train.examples import Examples, Inputs

# More leaves or smaller ones were no better on held-out families (gemm on the H200: 2.6 % median error).
_MAX_LEAVES, _MIN_PROBLEMS = 256, 4


def base_formula(op: Op) -> str:
    """Nanoseconds of moving all bytes or of the arithmetic, and of a launch: over a problem and a device."""
    arithmetic = f"({op.flops}) // ({op.rate} * 1000 * tflops_16bit)"
    return f"{LAUNCH_NS} + max(({op.bytes_moved}) // dram_gb_s, {arithmetic})"


def fit_forecast(op: Op, examples: Examples, choice: NDArray[np.intp], seed: int = 0) -> Forecast:
    """The forecast of the latencies of what was chosen for measured problems, of one device or several.

    Its formulas are over a problem and a device: an export folds the device's facts in.
    """
    ratio = examples.chosen_us(choice) * 1e3 / _base(op, examples.inputs)
    tree = DecisionTreeRegressor(max_leaf_nodes=_MAX_LEAVES, min_samples_leaf=_MIN_PROBLEMS, random_state=seed)
    grown = tree.fit(examples.inputs.features, np.log(ratio)).tree_
    used = sorted({int(feature) for feature in grown.feature if feature >= 0})
    nodes = [
        (used.index(feature), math.floor(threshold), int(left), int(right)) if feature >= 0 else round(math.exp(log), 4)
        for feature, threshold, left, right, log in zip(
            grown.feature, grown.threshold, grown.children_left, grown.children_right, grown.value[:, 0, 0], strict=True
        )
    ]
    return Forecast(base_formula(op), tuple(op.features[index] for index in used), tuple(nodes))


def errors(forecast: Forecast, examples: Examples, choice: NDArray[np.intp]) -> NDArray[np.float64]:
    """[P]: how wrong the forecast is of what was chosen, as a share of its latency."""
    names = sorted(examples.inputs.columns)
    rows = zip(*(examples.inputs.columns[name].tolist() for name in names), strict=True)
    expected = np.array([forecast.latency_us(dict(zip(names, row, strict=True))) for row in rows])
    return np.abs(expected / examples.chosen_us(choice) - 1)


def _base(op: Op, inputs: Inputs) -> NDArray[np.int64]:
    return evaluate_columns((Feature("base_ns", base_formula(op)),), inputs.columns)[:, 0]
