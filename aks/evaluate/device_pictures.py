"""Pictures of an evaluation that holds out devices: how regret grows with distance, and where it is."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from aks.evaluate.devices import COPY, MODEL, NEAREST_TREE, OWN_TREE, TREE
from aks.evaluate.generalization import DEVICE, Generalization
from aks.train.transport import device_distance

_SHOWN = (TREE, MODEL, NEAREST_TREE, COPY, OWN_TREE)
_WORST = 0.3
"""Regret from which on a problem has the darkest colour."""


def holdout_pictures(result: Generalization) -> dict[str, Figure]:
    """File names and figures; of devices only where devices were held out."""
    pictures = {"regret_map.png": regret_map(result)} if TREE in result.columns else {}
    if result.column == DEVICE:
        pictures["regret_by_distance.png"] = regret_by_distance(result)
    return pictures


def regret_by_distance(result: Generalization) -> Figure:
    """Mean regret on each held-out device against its distance to the nearest other one, which is above all in SMs."""
    devices = {device.name: device for device in result.data.devices}
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    places = {}
    for name, device in devices.items():
        others = [other for other in devices.values() if other != device]
        places[name] = min(device_distance(device, other) for other in others)
    for chooser, marker in zip(_SHOWN, "osvD^", strict=True):
        points = {
            entry.group: (places[entry.group], 100 * row.score.mean_regret)
            for entry in result.groups
            for row in entry.rows
            if row.chooser == chooser
        }
        if points:
            axes.plot(*zip(*points.values(), strict=True), marker, markersize=5, alpha=0.8, label=chooser)
        if chooser == TREE:
            for name, point in points.items():
                axes.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.grid(alpha=0.3)
    axes.set_xlabel("distance to the nearest other device (of the logarithms of the facts)")
    axes.set_ylabel("mean regret, percent")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def regret_map(result: Generalization) -> Figure:
    """Regret of the tree on every scored problem over the first two axes."""
    data, column = result.data, result.columns[TREE]
    over = np.flatnonzero(column >= 0)
    regret = data.latency_us[over, column[over]] / data.oracle_us[over] - 1
    order = np.argsort(regret)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    x, y = data.axes[over[order], 0], data.axes[over[order], 1]
    shade = np.minimum(regret[order], _WORST) * 100
    points = axes.scatter(x, y, c=shade, s=10 + 60 * shade / (100 * _WORST), cmap="viridis_r", alpha=0.8, linewidths=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    names = data.op.problem_type.AXES
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    figure.colorbar(points, label=f"regret of the tree, percent ({100 * _WORST:.0f}: or more)")
    return figure
