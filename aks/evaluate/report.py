"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from aks.core.measurement import Regime
from aks.core.tree import Tree
from aks.evaluate import page, pictures
from aks.evaluate.baselines import ORACLE
from aks.evaluate.evaluation import Evaluation
from aks.evaluate.pictures import Picture
from aks.evaluate.regret import ChooserScore
from aks.evaluate.tables import DASH, band_title, device_names, noise_statement, percent, share, times
from aks.train.dataset import TrainingSet
from aks.train.pictures import OTHER_COLOUR, colour_configs

_GRID = (120, 72)
_REGIME_NOTES = {
    Regime.COLD.value: "Weights come from DRAM, as in decoding.",
    Regime.WARM.value: "The same weights again and again, held by the L2 where they fit.",
    Regime.CHAIN.value: "Between stock PyTorch neighbours, whose own time is subtracted.",
}


def write_report(evaluation: Evaluation, path: Path) -> Path:
    """Write the report to ``path`` (its folder is made) and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(evaluation), encoding="utf-8")
    return path


def render_report(evaluation: Evaluation) -> str:
    """The report as one HTML page: pictures inside, nothing loaded from elsewhere."""
    filters = {
        "percent": percent,
        "times": times,
        "share": share,
        "micros": lambda value: f"{value:.2f}" if value < 100 else f"{value:.1f}",
        "brief": lambda key: key.replace("block_", "").replace("num_", ""),
        "without": lambda key, parts: " ".join(part for part in key.split() if part not in parts),
        "interval_percent": lambda ends: f"{100 * ends[0]:.2f}{DASH}{100 * ends[1]:.2f}",
        "interval_times": lambda ends: f"{ends[0]:.3f}{DASH}{ends[1]:.3f}",
    }
    return page.render("report.html.j2", _context(evaluation), filters)


def _context(evaluation: Evaluation) -> dict[str, Any]:
    data = evaluation.data
    axis = data.op.problem_type.AXES[0]
    choices, choice_map = _choices(evaluation)
    return {
        "evaluation": evaluation,
        "main": evaluation.main,
        "op": data.op.name,
        "devices": device_names(evaluation),
        "held_out": ", ".join(evaluation.held_out),
        "regime": data.regime.value,
        "axis": axis,
        "bands": [band_title(band, axis) for band in evaluation.rows[0].ranges],
        "cards": _cards(evaluation, axis),
        "rows": [(row.chooser, row) for row in evaluation.rows],
        "subset_rows": [(row.chooser, row) for row in evaluation.subset_rows],
        "undeclared_rows": [(row.chooser, row) for row in evaluation.undeclared_rows],
        "regime_rows": [
            (name, [(row.chooser, row) for row in group]) for name, group in _by_regime(evaluation.regime_rows)
        ],
        "regime_notes": _REGIME_NOTES,
        "promises": [name for name, values in data.op.problem_type.CHOICES.items() if set(values) == {False, True}],
        "families": list(evaluation.families.items()),
        "constants": _constants(evaluation),
        "outside": _outside(evaluation),
        "remarks": evaluation.remarks,
        "pictures": _pictures(evaluation, axis),
        "choices": choices,
        "choice_map": choice_map,
        "noise": noise_statement(evaluation.noise),
        "facts": _facts(evaluation),
        "command": evaluation.command,
    }


def _by_regime(rows: Sequence[ChooserScore]) -> list[tuple[str, list[ChooserScore]]]:
    names = dict.fromkeys(row.regime for row in rows)
    return [(name, [row for row in rows if row.regime == name]) for name in names]


def _constants(evaluation: Evaluation) -> list[str]:
    """``name=value`` of the attributes that all problems share."""
    keys = [problem.key().split() for problem in evaluation.data.problems]
    return [part for part in keys[0] if all(part in key for key in keys)]


def _outside(evaluation: Evaluation) -> dict[str, str]:
    """By problem, what of it lies outside the tree's support: there the vendor's call is no choice of a leaf."""
    if evaluation.tree is None:
        return {}
    found = {problem.key(): evaluation.tree.outside(problem.to_row()) for problem in evaluation.data.problems}
    return {key: ", ".join(names) for key, names in found.items() if names}


def _cards(evaluation: Evaluation, axis: str) -> list[tuple[str, str]]:
    row = evaluation.row(evaluation.main)
    cards = [
        (percent(row.score.mean_regret), "mean regret"),
        (percent(row.score.p95_regret), "p95 regret"),
        (percent(row.score.p99_regret), "p99 regret"),
        (share(row.score.slower_share), "slower than the vendor by > 2 %"),
    ]
    titles = (band_title(band, axis) for band in row.ranges)
    return cards + [(times(value), f"speed-up, {title}") for value, title in zip(row.bands, titles, strict=True)]


def _pictures(evaluation: Evaluation, axis: str) -> list[tuple[str, Picture]]:
    data, main = evaluation.data, evaluation.main
    rows = np.arange(len(data))
    regrets = {}
    for name, column in evaluation.columns.items():
        over = rows[column >= 0]
        if name != ORACLE and len(over) == len(rows):
            regrets[name] = data.latency_us[over, column[over]] / data.oracle_us[over] - 1
    over = rows[evaluation.columns[main] >= 0]
    chosen_us = data.latency_us[over, evaluation.columns[main][over]]
    baseline_us, best_us = data.baseline_us[over], data.oracle_us[over]
    drawn = [
        ("Mean regret, with its interval", pictures.ladder(evaluation.rows, main)),
        ("Regret, problem by problem", pictures.regret_distribution(regrets, main)),
        (
            f"Speed-up over the vendor against {axis}",
            pictures.speedup_by_axis(axis, data.axes[over, 0], baseline_us / chosen_us, baseline_us / best_us),
        ),
    ]
    if evaluation.tree is not None:
        drawn.append(("Size of the portfolio", pictures.portfolio_curve(_portfolio_curve(evaluation.tree, data))))
    return drawn


def _portfolio_curve(tree: Tree, data: TrainingSet) -> list[float]:
    """Mean regret on the held-out problems of the best of the tree's first i + 1 configs."""
    columns = _columns(tree, data)
    latency = data.latency_us[:, columns]
    best_us = np.minimum.accumulate(np.where(np.isfinite(latency), latency, np.inf), axis=1)
    return (best_us / data.oracle_us[:, None] - 1).mean(axis=0).tolist()


def _columns(tree: Tree, data: TrainingSet) -> list[int]:
    return [data.configs.index(data.op.config_type.from_row(row)) for row in tree.configs]


def _choices(evaluation: Evaluation) -> tuple[list[tuple[str, str, float]], Picture | None]:
    """Rows (colour, config, share of held-out problems) of the tree's configs, and the map of its picks."""
    tree, data = evaluation.tree, evaluation.data
    if tree is None or len(data.op.problem_type.AXES) < 2:
        return [], None
    picked = evaluation.columns[evaluation.main]
    axis, *rest = data.op.problem_type.AXES
    first, others = data.axes[:, 0], data.axes[:, 1:].prod(axis=1)
    x = np.geomspace(first.min(), max(first.max(), first.min() + 1), _GRID[0])
    y = np.geomspace(others.min(), max(others.max(), others.min() + 1), _GRID[1])
    attributes = data.problems[0].to_row()
    grid = np.empty((len(y), len(x)), dtype=np.intp)
    for line, product in enumerate(y):
        side = dict.fromkeys(rest, max(1, round(product ** (1 / len(rest)))))
        grid[line] = [tree.choose({**attributes, **side, axis: round(value)}) for value in x]
    columns = _columns(tree, data)
    share = np.array([np.mean(picked == column) for column in columns])
    drawn = np.bincount(grid.ravel(), minlength=len(share)) / grid.size
    used = [0, *(np.lexsort((-drawn[1:], -share[1:])) + 1).tolist()]
    used = [i for i in used if share[i] or drawn[i]]
    named, colours = colour_configs(used, len(share))
    rows = [(colours[i], data.configs[columns[i]].key(), float(share[i])) for i in named]
    if rest_of_them := used[len(named) :]:
        rows.append((OTHER_COLOUR, f"{len(rest_of_them)} others", float(share[rest_of_them].sum())))
    return rows, pictures.choice_map(axis, " · ".join(rest), (x, y, grid), (first, others), colours)


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    source, model = evaluation.data.source, evaluation.model
    devices = sorted(set(evaluation.data.devices), key=lambda device: device.name)
    facts = [
        (device.name, f"{device.sm_count} SMs, {device.l2_bytes / 1e6:.0f} MB L2, {device.dram_gb_s} GB/s, "
                      f"{device.tflops_16bit} TFLOP/s (16 bit), {device.clock_mhz} MHz")
        for device in devices
    ]  # fmt: skip
    facts += sorted((source.environment or {}).items())
    facts += [
        ("data", f"{source.path or 'in memory'}: {source.rows} rows, sha256 {source.sha256[:16] or 'none'}"),
        (
            "config space",
            f"{len(evaluation.data.op.space.configs)} configs, fingerprint {evaluation.data.op.space.fingerprint}",
        ),
    ]
    if "sha256" in model:
        facts.append(("model", f"manifest sha256 {str(model['sha256'])[:16]}"))
    facts += [(f"predict, {name}", f"{value:.3g} ns") for name, value in evaluation.bench.items()]
    return [*facts, ("written by", f"aks {_version()}")]


def _version() -> str:
    try:
        return version("aks")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "(not installed)"
