"""Tables for a terminal, and how figures are written there and in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from aks.evaluate.calibration import Point
from aks.evaluate.devices import TREE
from aks.evaluate.evaluation import Evaluation
from aks.evaluate.generalization import Generalization
from aks.evaluate.importance import Change, Importance
from aks.evaluate.regret import ChooserScore
from aks.evaluate.samples import Noise
from aks.evaluate.stability import Stability

DASH, TIMES = "\u2013", "\u00d7"
_FULL_WIDTH = 150


def percent(value: float) -> str:
    """``0.93 %``: two digits after the point below 10 %, none from 100 %."""
    if math.isnan(value):
        return DASH
    scaled = 100 * value
    digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
    return f"{scaled:.{digits}f} %"


def times(value: float) -> str:
    """``1.043`` and a multiplication sign."""
    return DASH if math.isnan(value) else f"{value:.3f}{TIMES}"


def share(value: float) -> str:
    """``99.5 %``: one digit after the point."""
    return DASH if math.isnan(value) else f"{100 * value:.1f} %"


def band_title(band: tuple[int, int | None], axis: str) -> str:
    """``m = 1``, ``m 2-16`` (with a longer dash), ``m > 256``."""
    low, high = band
    if high is None:
        return f"{axis} > {low - 1}"
    return f"{axis} = {low}" if low == high else f"{axis} {low}{DASH}{high}"


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print every chooser's row, then the tree's on parts, undeclared and in other regimes, then the remarks."""
    console = console or Console()
    if not console.is_terminal:  # a log has no right edge: wrapped figures are worse than long lines
        console.width = max(console.width, _FULL_WIDTH)
    main, regime = evaluation.main, evaluation.data.regime.value
    held_out = ", ".join(evaluation.held_out)
    elsewhere = [(row.chooser, row) for row in evaluation.subset_rows]
    elsewhere += [(f"{main}, nothing declared", row) for row in evaluation.undeclared_rows if row.chooser == main]
    elsewhere += [(f"{main}, regime {row.regime}", row) for row in evaluation.regime_rows if row.chooser == main]
    for rows, title in (
        (
            [(row.chooser, row) for row in evaluation.rows],
            f"{evaluation.data.op.name} on {device_names(evaluation)}, regime {regime}, held out: {held_out}",
        ),
        (elsewhere, "on parts of these problems, and under other conditions"),
    ):
        if rows:
            console.print(_table(rows, title, main, evaluation.data.op.problem_type.AXES[0], console.width))
    spoken = [f"{1e-3 * value:.3f} \u00b5s in {name}" for name, value in evaluation.bench.items()]
    bench = [f"One prediction on this machine: {', '.join(spoken)} (medians)."] if spoken else []
    for remark in (*evaluation.remarks, *bench, noise_statement(evaluation.noise)):
        console.print(remark, style="dim")


def _table(rows: Sequence[tuple[str, ChooserScore]], title: str, main: str, axis: str, width: int) -> Table:
    """One line a chooser; without the columns p99, worst and the bands if the terminal is narrow."""
    full = width >= _FULL_WIDTH
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("chooser", overflow="fold", min_width=24)
    bands = [band_title(band, axis) for band in rows[0][1].ranges]
    heads = ["problems", "mean", "p95", *(["p99", "worst"] if full else []), "speed-up", *(bands if full else [])]
    for head in [*heads, "> 2 %\nslower"]:
        table.add_column(head, justify="right", no_wrap=True)
    for name, row in rows:
        s = row.score
        regrets = [s.mean_regret, s.p95_regret, *((s.p99_regret, s.worst_regret) if full else ())]
        speedups = [s.geomean_speedup, *(row.bands if full else ())]
        figures = [str(s.problems), *map(percent, regrets), *map(times, speedups), share(s.slower_share)]
        table.add_row(name, *figures, style="bold cyan" if name == main else "")
    return table


def device_names(evaluation: Evaluation) -> str:
    """Names of the devices that the data is of."""
    return ", ".join(sorted({device.name for device in evaluation.data.devices}))


def noise_statement(noise: Noise) -> str:
    """In one or two sentences: how far apart repeated measurements lie."""
    text = (
        f"Noise: samples of one cell spread by {percent(noise.sample_median)} (standard deviation, median of "
        f"{noise.cells} cells; p95 {percent(noise.sample_p95)})."
    )
    if noise.repeated_cells:
        return (
            f"{text} Medians of separate runs differ by {percent(noise.run_median)} (median of {noise.repeated_cells} "
            f"cells on {noise.repeated_problems} problems; p95 {percent(noise.run_p95)}); the winner of one run costs "
            f"{percent(noise.winner_cost)} in another (mean)."
        )
    return f"{text} No cell was measured in two runs, so the spread from run to run is unknown."


def print_generalization(result: Generalization, axis: str, console: Console | None = None) -> None:
    """Print every chooser over all held-out groups, the tree on each group, and how far each is from the best."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _FULL_WIDTH)
    of = f", families {', '.join(result.held_out)} too" if result.held_out else ""
    overall = [(row.chooser, row) for row in result.overall]
    console.print(_table(overall, f"each {result.column} held out in turn{of}", TREE, axis, console.width))
    groups = [
        (f"{entry.group} (trained on {entry.trained_on} problems)", row)
        for entry in result.groups
        for row in entry.rows
        if row.chooser == TREE
    ]
    console.print(_table(groups, f"the {TREE}, by {result.column} held out", TREE, axis, console.width))
    console.print(_slowdown_table(result))
    console.print(
        "Slowdown: geometric mean of latency / that of the fastest measured config, over the problems that a chooser "
        "answers, with their share if that is not all. Intervals of mean regret hold 95 % of bootstrap rounds.",
        style="dim",
    )


def slowdown_markdown(result: Generalization) -> str:
    """The table of slowdowns by group and chooser as Markdown, under a line that says what it is."""
    return _markdown(f"Geometric mean slowdown, each {result.column} held out in turn.", _slowdown_rows(result))


def _markdown(title: str, table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([title, "", *lines])


def _slowdown_table(result: Generalization) -> Table:
    """A line a group, a column a chooser."""
    title = f"geometric mean slowdown, by {result.column} held out"
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    (group, *names), *rows = _slowdown_rows(result)
    table.add_column(group, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", style="bold cyan" if name == TREE else "")
    for row in rows:
        table.add_row(*row)
    return table


def _slowdown_rows(result: Generalization) -> list[list[str]]:
    names = [row.chooser for row in result.overall if row.chooser != "oracle"]
    table = [[result.column, *names, f"mean regret of the {TREE}, 95 %"]]
    for group, rows in [*((entry.group, entry.rows) for entry in result.groups), ("all", result.overall)]:
        by_name = {row.chooser: row for row in rows}
        cells = []
        for name in names:
            row = by_name[name]
            answered = "" if row.share in (0.0, 1.0) else f" ({100 * row.share:.0f} %)"
            cells.append(f"{times(row.score.geomean_slowdown)}{answered}")
        low, high = by_name[TREE].regret_interval
        table.append([group, *cells, f"{percent(low)} to {percent(high)}"])
    return table


def print_importance(importance: Importance, console: Console | None = None) -> None:
    """Print what the choice loses without each fact, over all held-out devices and on each."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _FULL_WIDTH)
    head, *rows = _importance_rows(importance)
    table = Table(title=_importance_title(importance), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row, fact in zip(rows, importance.facts, strict=True):
        table.add_row(*row, style="" if fact.told else "dim")
    console.print(table)
    console.print(_device_table(importance))
    console.print(
        "Permuted: chosen as if the device had what each other one has, in turn. Dropped: trained and chosen as if all "
        "had the same. Legality and latencies stay. Facts of one row change together: by construction, or because they "
        "rank the devices alike. Intervals hold 95 % of bootstrap rounds that draw devices.",
        style="dim",
    )


def importance_markdown(importance: Importance) -> str:
    """The table by fact as Markdown, under a line that says what it is."""
    return _markdown(_importance_title(importance), _importance_rows(importance))


def _importance_title(importance: Importance) -> str:
    regret = percent(fmean(importance.mean_regret.values()))
    return f"without a fact of the device the latency model's mean regret, {regret}, rises by so many percentage points"


def _importance_rows(importance: Importance) -> list[list[str]]:
    count = len(importance.mean_regret)
    devices = "1 device" if count == 1 else f"{count} devices"
    table = [["facts", "values", "max / min", "permuted", "dropped", f"from {devices}"]]
    for fact in importance.facts:
        spans = [f"{span:.3g}{TIMES}" for span in fact.spans.values()]
        spans = spans[:1] if len(set(spans)) == 1 else spans
        changes = [_change(change) for change in (fact.permuted, fact.dropped)]
        table.append([fact.name, str(fact.num_values), ", ".join(spans), *changes, fact.verdict])
    return table


def _device_table(importance: Importance) -> Table:
    """A line a held-out device, two columns a fact that was put to the test."""
    table = Table(title="the same, by device", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("device", no_wrap=True)
    table.add_column("mean regret", justify="right")
    changes = {f"{fact.name}\n{how}": change for fact in importance.facts for how, change in fact.changes.items()}
    for name in changes:
        table.add_column(name, justify="right")
    for device, regret in importance.mean_regret.items():
        table.add_row(device, percent(regret), *(_points(change.by_device[device]) for change in changes.values()))
    return table


def _change(change: Change | None) -> str:
    if change is None:
        return DASH
    low, high = change.interval
    return f"{_points(change.mean)} ({_points(low)} to {_points(high)})"


def _points(value: float) -> str:
    """``+0.93``: percentage points."""
    return f"{100 * value:+.2f}"


def print_stability(result: Stability, console: Console | None = None) -> None:
    """Print how often and how far two trainings differ, then what counts as a near-tie."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _FULL_WIDTH)
    title = f"two trainings, on the first and on the last run of {result.problems} problems"
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("chooser")
    table.add_column("asked for", no_wrap=True)
    of_flips = ["flips", "near-ties", "regret of\na flip", "p95", "over all\nproblems"]
    for head in ["problems", *of_flips, "mean regret", "p95 regret"]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.rows:
        regrets = [percent(value) for value in (row.flip_regret, row.flip_p95, row.flip_cost)]
        means = f"{percent(row.first_mean_regret)}, {percent(row.second_mean_regret)}"
        p95s = f"{percent(row.first_p95_regret)}, {percent(row.second_p95_regret)}"
        shares = [share(row.flip_rate), share(row.near_tie_share)]
        table.add_row(row.chooser, row.asked, str(row.problems), *shares, *regrets, means, p95s)
    console.print(table)
    tie = (
        "A flip: the two run different configs; its regret: the worse choice's minus the better's, by all "
        f"measurements. Near-ties: flips between latencies at most {percent(result.noise.run_median)} apart."
    )
    for remark in (tie, noise_statement(result.noise)):
        console.print(remark, style="dim")


def print_calibration(points: Sequence[Point], console: Console | None = None) -> None:
    """Print a table a device and part: a line a strategy and chooser, a column a minute, mean and p95 regret."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _FULL_WIDTH)
    minutes = sorted({point.minutes for point in points})
    for device, part in dict.fromkeys((point.device, point.part) for point in points):
        rows = [point for point in points if (point.device, point.part) == (device, part)]
        title = f"{device}, {part}: mean regret / p95 (problems measured)"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("picks", "chooser", *(f"{minute:g} min" for minute in minutes)):
            table.add_column(name)
        for strategy, chooser in dict.fromkeys((point.strategy, point.chooser) for point in rows):
            cells = {p.minutes: p for p in rows if (p.strategy, p.chooser) == (strategy, chooser)}
            table.add_row(
                strategy,
                chooser,
                *(
                    f"{percent(cells[minute].mean_regret)} / {percent(cells[minute].p95_regret)} "
                    f"({cells[minute].problems})"
                    if minute in cells
                    else DASH
                    for minute in minutes
                ),
            )
        console.print(table)
