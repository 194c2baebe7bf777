"""Pictures of one training, as matplotlib figures without a display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from aks.core.device import DeviceSpec
from aks.core.features import evaluate_columns
from aks.core.problem import Problem
from aks.train.dataset import TrainingSet, legality, variable_columns
from aks.train.examples import Examples, Inputs
from aks.train.fit import Fitted
from aks.train.scores import BANDS, in_band

_GRID = 120
CONFIG_COLOURS = (
    *("#9aa3b2", "#2f6fed", "#e07b39", "#2a9d74", "#b65fcf", "#c9a227", "#d6455d", "#4aa8c7"),
    *("#8c6d46", "#7a9a3a", "#f09ab0", "#5448a8", "#13665c", "#f2b880", "#a3c4f3", "#733046"),
)
"""Colours of the configs that are picked most; the vendor comes first, grey."""
OTHER_COLOUR = "#dfe3ea"


def colour_configs(used: Sequence[int], count: int) -> tuple[list[int], list[str]]:
    """Which of ``count`` configs get a colour of their own, and the colour of each of them all.

    used: those that are picked, the vendor's first, then by use. A portfolio has dozens, too many to tell apart.
    """
    named = list(used[: len(CONFIG_COLOURS)])
    colour_of = dict(zip(named, CONFIG_COLOURS, strict=False))
    return named, [colour_of.get(index, OTHER_COLOUR) for index in range(count)]


def portfolio_curve(curve: tuple[float, ...]) -> Figure:
    """Mean regret on the training problems of a perfect choice among the first configs, by their number."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(curve) + 1), 100 * np.array(curve), marker="o", color=CONFIG_COLOURS[1])
    axes.set_yscale("log")
    axes.set(xlabel="configs in the portfolio", ylabel="mean regret of the best of them, %")
    axes.set_title("What a portfolio of each size could reach (training problems)")
    axes.grid(alpha=0.3, which="both")
    return figure


def feature_importance(fitted: Fitted, names: list[str], top: int = 20) -> Figure:
    """Share of the classifier's total gain by feature."""
    gain = fitted.classifier.booster.get_score(importance_type="total_gain")
    values = {names[int(key.removeprefix("f"))]: float(np.sum(value)) for key, value in gain.items()}
    total = sum(values.values()) or 1.0
    ranked = sorted(values.items(), key=lambda entry: entry[1])[-top:]
    figure = Figure(figsize=(7, 0.28 * len(ranked) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in ranked], [100 * value / total for _, value in ranked], color=CONFIG_COLOURS[1])
    axes.set(xlabel="share of the gain, %", title="What the classifier looks at")
    axes.grid(alpha=0.3, axis="x")
    return figure


def regret_by_band(examples: Examples, choices: dict[str, NDArray[np.intp]], axis: str) -> Figure:
    """Mean regret of each chooser in each band of the first axis, on held-out problems."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bands = [band for band in BANDS if in_band(examples.inputs.axes, band).any()]
    width = 0.8 / max(1, len(choices))
    for index, (name, choice) in enumerate(choices.items()):
        regret = 100 * examples.regret(choice)
        heights = [regret[in_band(examples.inputs.axes, band)].mean() for band in bands]
        colour = CONFIG_COLOURS[index % len(CONFIG_COLOURS)]
        axes.bar(np.arange(len(bands)) + width * index, heights, width, label=name, color=colour)
    labels = [f"{low}" if low == high else f"{low} to {high}" if high else f"> {low - 1}" for low, high in bands]
    axes.set_xticks(np.arange(len(bands)) + 0.4 - width / 2, labels)
    axes.set(xlabel=axis, ylabel="mean regret, %", title="Held-out model families")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y")
    return figure


def choice_map(
    training: TrainingSet, fitted: Fitted, choosers: dict[str, Callable[[Inputs], NDArray[np.intp]]]
) -> Figure | None:
    """What each chooser answers over the plane of the op's first two axes; None for an op of one axis.

    Everything else is as in the commonest training problem.
    """
    axes_names = training.op.problem_type.AXES
    if len(axes_names) < 2:
        return None
    device = Counter(training.devices).most_common(1)[0][0]
    x, y = (_spread(training.axes[:, column]) for column in (0, 1))
    template = _commonest(training)
    problems = [_at(template, axes_names, int(m), int(n)) for n in y for m in x]
    inputs = _inputs(training, fitted, problems, device)
    answers = {name: choose(inputs).reshape(len(y), len(x)) for name, choose in choosers.items()}
    counts = np.bincount(np.concatenate(list(answers.values()), axis=None), minlength=len(fitted.examples.configs))
    ranked = [0, *(np.argsort(-counts[1:], kind="stable") + 1).tolist()]
    used = [index for index in ranked if counts[index]]
    named, colours = colour_configs(used, len(counts))

    figure = Figure(figsize=(5.2 * len(choosers), 4.4 + 0.2 * len(named)), layout="constrained")
    panels = figure.subplots(1, len(choosers), squeeze=False)[0]
    for panel, (name, answer) in zip(panels, answers.items(), strict=True):
        panel.pcolormesh(
            x, y, answer, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, shading="nearest"
        )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set(xlabel=axes_names[0], ylabel=axes_names[1], title=name)
    rest = ", ".join(f"{axis}={getattr(template, axis)}" for axis in axes_names[2:])
    figure.suptitle(f"Chosen config on {device.name}" + (f", {rest}" if rest else ""))
    handles = [Patch(color=colours[index], label=fitted.examples.configs[index].key()) for index in named]
    if len(named) < len(used):
        handles.append(Patch(color=OTHER_COLOUR, label=f"{len(used) - len(named)} others"))
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize="x-small")
    return figure


def _spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(np.geomspace(values.min(), values.max(), _GRID).astype(np.int64))


def _commonest(training: TrainingSet) -> Problem:
    """A training problem with the commonest value of the axes beyond the second and of the attributes."""
    names = training.op.problem_type.AXES[:2]
    counts = Counter(
        tuple(value for name, value in problem.to_row().items() if name not in names) for problem in training.problems
    )
    wanted = counts.most_common(1)[0][0]
    return next(
        problem
        for problem in training.problems
        if tuple(value for name, value in problem.to_row().items() if name not in names) == wanted
    )


def _at(template: Problem, names: tuple[str, ...], first: int, second: int) -> Problem:
    return type(template).from_row({**template.to_row(), names[0]: first, names[1]: second})


def _inputs(training: TrainingSet, fitted: Fitted, problems: list[Problem], device: DeviceSpec) -> Inputs:
    op, devices = training.op, [device] * len(problems)
    axes = np.array([[getattr(problem, name) for name in op.problem_type.AXES] for problem in problems])
    legal = legality(op, fitted.examples.configs, problems, devices)
    columns = variable_columns(problems, devices)
    return Inputs(axes, evaluate_columns(op.features, columns), legal, columns)
