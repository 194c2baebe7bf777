"""Evaluate what is shipped: an artifact folder against measured data, next to everything else one could do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from aks.core.config import Config
from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.data.records import op_of_file, read_records
from aks.evaluate import baselines
from aks.evaluate.bench import bench_predict
from aks.evaluate.device_pictures import holdout_pictures
from aks.evaluate.devices import device_choosers, nvmatmul_by_device, selector_choosers
from aks.evaluate.evaluation import Evaluation, assemble, held_out_rows, slug
from aks.evaluate.generalization import DEVICE, Generalization, leave_one_out
from aks.evaluate.importance import Importance, fact_importance
from aks.evaluate.nvmatmul import nvmatmul_choosers
from aks.evaluate.regret import Chooser, json_row
from aks.evaluate.samples import measure_noise
from aks.evaluate.tables import band_title, importance_markdown, slowdown_markdown
from aks.export.selector import read_portfolio, read_selector
from aks.ops.op import Op
from aks.runtime.predictor import Predictor
from aks.train.dataset import TrainingSet, from_frame, present_regimes, read_frames
from aks.train.fit import Options
from aks.train.scores import BANDS, Band, in_band
from aks.train.splits import split

_DEFAULTS = Options()
_LOGGED = ("problems", "mean_regret", "p95_regret", "p99_regret", "worst_regret", "geomean_slowdown", "geomean_speedup")


def evaluate(
    op: Op,
    data: Path | Sequence[Path],
    models: Path,
    *,
    held_out: Sequence[str] = (),
    selector: Path | None = None,
    ladder: bool = True,
    bench: bool = False,
    by: Sequence[str] = (),
    over: Sequence[str] = (),
    ranges: tuple[Band, ...] = BANDS,
    command: str = "",
) -> Evaluation:
    """Score the tree in the folder ``models`` on the model families that its training held out.

    data is one or more measurement files, of which the rows of the tree's device are used. held_out
    narrows the families. ladder trains the baselines on what the tree was trained on, the families
    not held out. selector is the ``selector.json`` that the tree was exported from; with it, the
    XGBoost selector is scored too. bench times predictions. by and ranges as of ``assemble``, over: keys of configs.
    command is printed in the report.

    Raises
    ------
    DataError
        If the data cannot be read, is of another device, a family was not held out in training, the problems have no
        attribute of a name in ``by``, or no config has a key in ``over``.
    ArtifactError
        If the folder cannot be read, or is for another op or config space.
    """
    predictor = Predictor.load(op, path=models)
    manifest, device = predictor.bundle.manifest, predictor.bundle.device
    regime = Regime(manifest.get("regime") or Regime.COLD)
    families = check_held_out(manifest.get("dataset") or {}, held_out)
    teacher = [_teacher(selector, manifest, op)] if selector is not None else []
    others_of = _configs_of(op, over)
    _check_attributes(op, by)
    asked = {
        *predictor.configs,
        *others_of,
        *(read_portfolio(read_selector(selector)[0], op) if selector is not None else ()),
    }
    whole, frame = read(op, data, regime, asked)
    others = {name: from_frame(frame, op, regime=name, also=asked) for name in present_regimes(frame) if name != regime}
    sets = {name: _on_device(entry, device.name) for name, entry in {regime: whole, **others}.items()}
    headline = sets[regime]
    train, _ = split(headline, families)
    tests = {name: held_out_rows(entry, families) for name, entry in sets.items() if _has(entry, families)}

    columns = [headline.configs.index(config) for config in predictor.configs]
    tree = baselines.tree_chooser(predictor.tree, predict=predictor.predict)
    learned = baselines.learned_choosers(headline.subset(train), columns, manifest.get("seed") or 0) if ladder else []
    theirs, remark = nvmatmul_choosers(op, [device])
    remarks = [remark, _other_data(manifest.get("dataset") or {}, whole)]
    result = assemble(
        tree.name,
        [baselines.vendor(), *learned, *teacher, tree, baselines.portfolio_oracle(columns), baselines.oracle()],
        tests,
        frame,
        regime=regime,
        noise=measure_noise(frame, op),
        subsets=theirs,
        supported=baselines.supported_chooser(predictor.tree),
        by=by,
        over=others_of,
        ranges=ranges,
        everything=sets,
        remarks=[entry for entry in remarks if entry],
        held_out=families,
        tree=predictor.tree,
        model=manifest,
        bench=bench_predict(models) if bench else {},
        command=command,
    )
    return replace(result, remarks=(*result.remarks, _limit_remark(result)))


def _limit_remark(result: Evaluation) -> str:
    """How near what the tree chose comes to the roofline of the datasheet, by range of the first axis."""
    data, column = result.data, result.columns[result.main]
    limit_us = np.array([data.op.limit_us(*pair) for pair in zip(data.problems, data.devices, strict=True)])
    reached = limit_us / data.latency_us[np.arange(len(data)), column]
    axis, shares = data.op.problem_type.AXES[0], []
    for band in result.rows[0].ranges:
        inside = in_band(data.axes, band) & (column >= 0)
        if inside.any():
            shares.append(f"{band_title(band, axis)} {100 * np.median(reached[inside]):.0f} %")
    return f"Of the datasheet's limit of memory or arithmetic, {result.main} reaches (median): {', '.join(shares)}."


def _configs_of(op: Op, keys: Sequence[str]) -> list[Config]:
    known = {config.key(): config for config in op.space.configs}
    if unknown := [key for key in keys if key not in known]:
        plain = [key for key in known if " " not in key]
        raise DataError(f"no config of {op.name} is {', '.join(map(repr, unknown))}; of few words: {', '.join(plain)}")
    return [known[key] for key in keys]


def _check_attributes(op: Op, names: Sequence[str]) -> None:
    choices = op.problem_type.CHOICES
    if unknown := [name for name in names if name not in choices]:
        raise DataError(f"problems of {op.name} have no attribute {', '.join(unknown)}; they have {', '.join(choices)}")


def evaluate_holdout(
    op: Op,
    data: Path | Sequence[Path],
    column: str,
    *,
    regime: Regime | str = Regime.COLD,
    held_out: Sequence[str] = (),
    values: Sequence[str] = (),
    max_groups: int = 5,
    ladder: bool = False,
    options: Options = _DEFAULTS,
    progress: Callable[[str], None] = lambda text: None,
) -> Generalization:
    """Hold out each group of ``column`` in turn, train on the rest of ``data``, and score (``leave_one_out``).

    Files are measurements of ``op``, or records of others' (``aks.data.records``). ladder adds the baselines.

    Raises
    ------
    DataError
        If the data cannot be read, or the column is unknown or has one value only: one device, say.
    """
    measured = _measured(op, data, regime)
    theirs = nvmatmul_by_device(measured) if ladder and column == DEVICE else []

    def fit(train: TrainingSet, inside: TrainingSet) -> Sequence[Chooser]:
        if column != DEVICE:
            return selector_choosers(train, options, ladder=ladder)
        return [*theirs, *device_choosers(train, inside, options, ladder=ladder)]

    return leave_one_out(
        measured,
        column,
        fit,
        max_groups=max_groups,
        held_out=held_out,
        values=values,
        seed=options.seed,
        progress=progress,
    )


def evaluate_importance(
    op: Op,
    data: Path | Sequence[Path],
    *,
    regime: Regime | str = Regime.COLD,
    held_out: Sequence[str] = (),
    values: Sequence[str] = (),
    options: Options = _DEFAULTS,
    progress: Callable[[str], None] = lambda text: None,
) -> Importance:
    """Which facts of the devices the latency model's choices rest on (``fact_importance``); files as above.

    Raises
    ------
    DataError
        If the data cannot be read, or is of one device only.
    """
    measured = _measured(op, data, regime)
    return fact_importance(measured, held_out=held_out, values=values, seed=options.seed, progress=progress)


def op_of(records: Sequence[Path]) -> Op:
    """The op that files of measurements or records are of.

    Raises
    ------
    DataError
        If a file cannot be read, or they are of several ops.
    """
    ops = {op.name: op for op in map(op_of_file, records)}
    if len(ops) > 1:
        raise DataError(f"the files are of {', '.join(sorted(ops))}; evaluate one op at a time")
    return next(iter(ops.values()))


def log_holdout(
    result: Generalization,
    importance: Importance | None = None,
    *,
    experiment: str,
    tracking_uri: str | None = None,
    command: str = "",
) -> str:
    """Log what was held out, every figure by group and chooser, the tables and pictures; the MLflow run's id."""
    from aks.train.tracking import log_figures  # mlflow takes seconds to import

    groups = {entry.group: entry.rows for entry in result.groups} | {"overall": result.overall}
    rows = [{"group": group, **json_row(row.to_row())} for group, scored in groups.items() for row in scored]
    metrics = {
        f"{slug(row['group'])}.{slug(row['chooser'])}/{name}": float(row[name])
        for row in rows
        for name in _LOGGED
        if row[name] is not None
    }
    tables, description = {"groups.json": pd.DataFrame(rows)}, slowdown_markdown(result)
    if importance is not None:
        changes = importance.to_rows()
        tables["importance.json"] = pd.DataFrame(changes)
        metrics |= {
            f"importance.{slug(row['facts'])}/{row['how']}_{name}": row[name]
            for row in changes
            for name in ("regret_change", "low", "high")
        }
        description += f"\n\n{importance_markdown(importance)}"
    devices = sorted({device.name for device in result.data.devices})
    return log_figures(
        f"{result.data.op.name}, each {result.column} held out",
        experiment=experiment,
        tracking_uri=tracking_uri,
        description=description,
        params={
            "op": result.data.op.name,
            "column": result.column,
            "held_out_families": ", ".join(result.held_out),
            "devices": ", ".join(devices),
            "problems": len(result.data),
            "command": command,
        },
        metrics=metrics,
        tables=tables,
        figures=holdout_pictures(result),
    )


def _measured(op: Op, data: Path | Sequence[Path], regime: Regime | str) -> TrainingSet:
    return from_frame(*_frames(op, [data] if isinstance(data, Path) else data), regime=regime)


def _frames(op: Op, paths: Sequence[Path]) -> tuple[pd.DataFrame, Op]:
    tables = [read_records(path) for path in paths]
    foreign = sorted({other.name for other, _ in tables} - {op.name})
    if foreign:
        raise DataError(f"the files are of {', '.join(foreign)} too; wanted {op.name} alone: --op names another")
    return pa.concat_tables([table for _, table in tables]).to_pandas(), op


def read(
    op: Op, data: Path | Sequence[Path], regime: Regime, also: Iterable[Config] = ()
) -> tuple[TrainingSet, pd.DataFrame]:
    """The measurements of ``regime`` as matrices, and the rows of all regimes as they are in the files.

    The matrices have columns for the configs ``also``, measured or not.

    Raises
    ------
    DataError
        As ``aks.train.dataset.load``.
    """
    frame, names, sha256 = read_frames(data, op)
    return from_frame(frame, op, regime=regime, path=names, sha256=sha256, also=also), frame


def check_held_out(dataset: dict, wanted: Sequence[str]) -> tuple[str, ...]:
    """The families to score on: ``wanted``, or all that training held out.

    Raises
    ------
    DataError
        If training held out nothing, or saw one of ``wanted``.
    """
    held_out = tuple(dataset.get("held_out_families") or ())
    if not held_out:
        raise DataError(
            "the tree was trained on every model family, so no score on this data means anything; train again "
            "with families held out, or pass --holdout family to re-train here"
        )
    if seen := sorted(set(wanted) - set(held_out)):
        raise DataError(
            f"the tree was trained on {', '.join(seen)}: a score there proves nothing; held out were "
            f"{', '.join(held_out)}; to hold out others, re-train here with --holdout family"
        )
    return tuple(wanted) or held_out


def _teacher(selector: Path, manifest: dict, op: Op) -> Chooser:
    chooser = baselines.xgboost_chooser(selector, op)
    if read_selector(selector)[1] != manifest.get("selector_sha256"):
        raise DataError(
            f"{selector} is not the selector that the tree was exported from; pass that one, or export again"
        )
    return chooser


def _has(data: TrainingSet, families: Sequence[str]) -> bool:
    return any(not found.isdisjoint(families) for found in data.families)


def _on_device(data: TrainingSet, name: str) -> TrainingSet:
    rows = np.flatnonzero([device.name == name for device in data.devices])
    if not len(rows):
        there = ", ".join(sorted({device.name for device in data.devices}))
        raise DataError(
            f"the tree is for device {name!r}, but the data is of {there}; pass that device's file (--data)"
        )
    return data if len(rows) == len(data) else data.subset(rows)


def _other_data(dataset: dict, data: TrainingSet) -> str:
    if dataset.get("sha256") in (None, data.source.sha256):
        return ""
    return (
        f"The tree was trained on other data (sha256 {str(dataset['sha256'])[:12]}) than the baselines here "
        f"({data.source.sha256[:12]})."
    )
