"""The report's pictures: SVG as data URIs, each drawn once for a light page and once for a dark one."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from aks.core.metrics import geomean
from aks.evaluate.regret import ChooserScore

MAIN_COLOUR = "#2f6fed"
_LINES = ("#e07b39", "#2a9d74", "#b65fcf", "#c9a227", "#d6455d", "#4aa8c7", "#8a7f72", "#7a9a3a", "#9b6a9c", "#5f6f86")

_THEMES = {"light": ("#232936", "#dfe3ea"), "dark": ("#d5dae4", "#363d4a")}
_FLOOR = 1e-4
_SPEEDUP_TICKS = (0.25, 0.35, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing as two data URIs, with what it shows in words (the image's alternative text)."""

    light: str
    dark: str
    alt: str


def _draw(paint: Callable[[Axes], None], alt: str, size: tuple[float, float] = (6.6, 3.9)) -> Picture:
    uris = {}
    for theme, (ink, faint) in _THEMES.items():
        settings: dict[Any, Any] = {
            "font.family": "DejaVu Sans",
            "font.size": 9.5,
            "svg.hashsalt": "aks",  # the same evaluation gives the same file
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": faint,
            "xtick.color": ink,
            "ytick.color": ink,
            "grid.color": faint,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
        }
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.add_subplot()
            axes.grid(True, linewidth=0.6)
            paint(axes)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None})
        uris[theme] = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(uris["light"], uris["dark"], alt)


def _percent_axis(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def ladder(rows: Sequence[ChooserScore], main: str) -> Picture:
    """Mean regret of every chooser with its 95 % interval, best on top."""
    shown = [row for row in rows if row.score.mean_regret > 0]
    shown.sort(key=lambda row: -row.score.mean_regret)

    def paint(axes: Axes) -> None:
        for height, row in enumerate(shown):
            colour = MAIN_COLOUR if row.chooser == main else "#8a93a3"
            low, high = (max(_FLOOR, bound) for bound in row.regret_interval)
            axes.plot([low, high], [height, height], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(row.score.mean_regret, height, "o", color=colour, markersize=6)
            axes.annotate(
                f"{100 * row.score.mean_regret:.2f} %",
                (max(high, row.score.mean_regret), height),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(range(len(shown)), [row.chooser for row in shown])
        axes.set_xscale("log")
        axes.margins(x=0.16)
        axes.set_xlabel("mean regret (log scale) and its 95 % interval")
        axes.grid(False, axis="y")
        axes.xaxis.set_minor_locator(NullLocator())
        _percent_axis(axes.xaxis)

    return _draw(paint, "Mean regret of every chooser", (6.6, max(4.4, 0.9 + 0.27 * len(shown))))


def regret_distribution(regrets: Mapping[str, NDArray[np.float64]], main: str) -> Picture:
    """Share of problems with at most a given regret, one line a chooser."""

    def paint(axes: Axes) -> None:
        colours = iter(_LINES * 2)
        for name, regret in regrets.items():
            ordered = np.maximum(np.sort(regret), _FLOOR)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            colour, width, order = (MAIN_COLOUR, 2.6, 5) if name == main else (next(colours), 1.2, 3)
            axes.plot(ordered, share, label=name, drawstyle="steps-post", color=colour, linewidth=width, zorder=order)
        axes.set_xscale("log")
        axes.set_xlim(left=_FLOOR)
        axes.set_ylim(0, 1.01)
        axes.set_xlabel("regret (log scale; less than 0.01 % is drawn at 0.01 %)")
        axes.set_ylabel("share of held-out problems")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _percent_axis(axes.xaxis)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    return _draw(paint, "Cumulative distribution of regret", (6.6, 4.4))


def latency_tail(latencies_ms: Mapping[str, Sequence[float]], main: str) -> Picture:
    """Share of steps that take longer than a given latency, one line a way, both on log scales."""

    def paint(axes: Axes) -> None:
        colours = iter(_LINES)
        for name, latencies in latencies_ms.items():
            ordered = np.sort(np.asarray(latencies))
            share = 1 - np.arange(len(ordered)) / len(ordered)
            colour, width, order = (MAIN_COLOUR, 2.6, 5) if name == main else (next(colours), 1.2, 3)
            axes.plot(ordered, share, label=name, drawstyle="steps-pre", color=colour, linewidth=width, zorder=order)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("latency of a step, ms (log scale)")
        axes.set_ylabel("share of steps that take as long or longer")
        _percent_axis(axes.yaxis)
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    return _draw(paint, "Share of steps that take longer than a latency", (6.6, 4.4))


def speedup_by_axis(
    axis_name: str, axis: NDArray[np.int64], speedup: NDArray[np.float64], best: NDArray[np.float64]
) -> Picture:
    """Speed-up over the vendor of each problem, and its geometric mean, along the op's first axis."""
    bins = np.floor(2 * np.log2(axis)) / 2
    centres = np.unique(bins)
    position = [geomean(axis[bins == centre].tolist()) for centre in centres]

    def paint(axes: Axes) -> None:
        axes.axhline(1.0, color="#8a93a3", linewidth=1.1)
        axes.scatter(axis, speedup, s=9, alpha=0.35, color=MAIN_COLOUR, linewidths=0, rasterized=True)
        for values, colour, label in ((best, "#e07b39", "oracle, geomean"), (speedup, MAIN_COLOUR, "tree, geomean")):
            line = [geomean(values[bins == centre].tolist()) for centre in centres]
            axes.plot(position, line, color=colour, linewidth=2, marker="o", markersize=3.2, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in _SPEEDUP_TICKS if low <= tick <= high])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}\u00d7"))
        axes.set_xlabel(axis_name)
        axes.set_ylabel("speed-up over the vendor")
        axes.legend(frameon=False, fontsize=8.5)

    return _draw(paint, f"Speed-up over the vendor against {axis_name}")


def choice_map(
    axis_name: str,
    rest_name: str,
    grid: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]],
    points: tuple[NDArray[np.int64], NDArray[np.int64]],
    colours: Sequence[str],
) -> Picture:
    """What the tree picks over the first axis and the product of the others.

    grid is (x [W], y [H], index of the picked config [H, W]); points are the held-out problems; colours has
    one for each config.
    """
    x, y, picked = grid

    def paint(axes: Axes) -> None:
        axes.pcolormesh(
            x, y, picked, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, shading="nearest",
            rasterized=True,
        )  # fmt: skip
        axes.scatter(*points, s=5, facecolors="none", edgecolors="#101418", linewidths=0.5, alpha=0.5, rasterized=True)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(y[0], y[-1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(axis_name)
        axes.set_ylabel(rest_name)
        axes.grid(False)

    return _draw(paint, f"What the tree picks over {axis_name} and {rest_name}")


def portfolio_curve(curve: Sequence[float]) -> Picture:
    """Mean regret of the best of the first i configs, i = 1 … K."""

    def paint(axes: Axes) -> None:
        sizes = np.arange(1, len(curve) + 1)
        axes.plot(sizes, np.maximum(curve, _FLOOR), color=MAIN_COLOUR, linewidth=2, marker="o", markersize=4)
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _percent_axis(axes.yaxis)
        axes.set_xlabel("configs in the portfolio")
        axes.set_ylabel("mean regret of the best of them")

    return _draw(paint, "Mean regret against the size of the portfolio")
