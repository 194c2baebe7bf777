"""An evaluation: every chooser scored on the same held-out problems, in every regime that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.errors import DataError
from aks.core.measurement import Regime
from aks.core.tree import Tree
from aks.evaluate.regimes import RegimePick, compare_regimes
from aks.evaluate.regret import (
    Chooser,
    ChooserScore,
    Scorer,
    WorstProblem,
    clusters,
    family_rows,
    json_row,
    resolve,
    without_promises,
    worst_problems,
)
from aks.evaluate.samples import Noise, half_medians, split_oracle_us
from aks.train.dataset import TrainingSet
from aks.train.scores import BANDS, Band


@dataclass(frozen=True)
class Evaluation:
    """What ``assemble`` found out; the report, the terminal table and the tracker read it.

    ``main`` names the chooser that it is all about (the exported tree). rows are in the headline
    regime with the promises that the data was measured under (static weights); undeclared_rows the
    same for callers who promise nothing; regime_rows in every other regime. subset_rows compare on
    parts of the held-out problems: where the tree is inside its support, where a baseline answers.
    columns holds, by chooser, the column [P] of ``data`` that ran.
    """

    main: str
    data: TrainingSet
    held_out: tuple[str, ...]
    rows: tuple[ChooserScore, ...]
    subset_rows: tuple[ChooserScore, ...]
    undeclared_rows: tuple[ChooserScore, ...]
    regime_rows: tuple[ChooserScore, ...]
    families: Mapping[str, ChooserScore]
    worst: tuple[WorstProblem, ...]
    regime_picks: tuple[RegimePick, ...]
    noise: Noise
    columns: Mapping[str, NDArray[np.intp]]
    remarks: tuple[str, ...] = ()
    tree: Tree | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    bench: Mapping[str, float] = field(default_factory=dict)
    command: str = ""

    def row(self, chooser: str) -> ChooserScore:
        """The headline row of ``chooser``.

        Raises
        ------
        KeyError
            If it was not scored.
        """
        return next(row for row in self.rows if row.chooser == chooser)

    def metrics(self) -> dict[str, float]:
        """Flat figures for an experiment tracker; ``cold.tree.mean_regret`` and the like."""
        figures = {}
        for row in (*self.rows, *self.regime_rows):
            for name, value in row.to_row().items():
                if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
                    figures[f"{row.regime}.{slug(row.chooser)}.{name}"] = float(value)
        return figures | {f"predict.{name.lower()}_ns": value for name, value in self.bench.items()}

    def to_json(self) -> dict[str, Any]:
        """All tables as plain lists and mappings; None where a figure is unknown."""
        return {
            "op": self.data.op.name,
            "devices": sorted({device.name for device in self.data.devices}),
            "held_out": list(self.held_out),
            "problems": len(self.data),
            "rows": [json_row(row.to_row()) for row in self.rows],
            "subset_rows": [json_row(row.to_row()) for row in self.subset_rows],
            "undeclared_rows": [json_row(row.to_row()) for row in self.undeclared_rows],
            "regime_rows": [json_row(row.to_row()) for row in self.regime_rows],
            "families": {name: json_row(row.to_row()) for name, row in self.families.items()},
            "regimes": [json_row(pick.to_row()) for pick in self.regime_picks],
            "noise": json_row(self.noise.to_row()),
            "bench": dict(self.bench),
            "remarks": list(self.remarks),
            "command": self.command,
        }


def slug(name: str) -> str:
    """The name in lower case, its words joined by underscores: for metrics."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def held_out_rows(data: TrainingSet, held_out: Sequence[str]) -> TrainingSet:
    """The problems of the families ``held_out``.

    Raises
    ------
    DataError
        If there are none.
    """
    rows = [row for row, families in enumerate(data.families) if not families.isdisjoint(held_out)]
    if not rows:
        known = ", ".join(sorted(set().union(*data.families)))
        raise DataError(f"no problem of {', '.join(held_out)} in regime {data.regime.value!r}; families: {known}")
    return data.subset(rows)


def assemble(
    main: str,
    choosers: Sequence[Chooser],
    data: Mapping[Regime, TrainingSet],
    frame: pd.DataFrame,
    *,
    regime: Regime,
    noise: Noise,
    subsets: Sequence[Chooser] = (),
    supported: Chooser | None = None,
    by: Sequence[str] = (),
    over: Sequence[Config] = (),
    ranges: tuple[Band, ...] = BANDS,
    everything: Mapping[Regime, TrainingSet] | None = None,
    remarks: Sequence[str] = (),
    held_out: Sequence[str] = (),
    seed: int = 0,
    **about: Any,
) -> Evaluation:
    """Score ``choosers`` on the held-out problems ``data`` of each regime; ``regime`` is the headline.

    frame holds the rows that ``data`` was made of (for their single samples). A subset is a chooser
    that leaves problems unanswered: it is scored where it answers, with ``main`` beside it on the
    same problems; ``supported`` is ``main`` inside its support only. ``by`` names attributes of problems, for each
    value of which ``main`` gets a row; ``over`` are configs that it is compared with as with the vendor; ``ranges``
    those of the first axis that speed-ups are given for. Regimes are compared on ``everything``,
    problems that are not held out included, since nothing is learned there (default: ``data``). ``about``
    goes into the Evaluation.
    """
    headline = data[regime]
    scorers = {name: _scorer(entry, half_medians(frame, entry), held_out, seed, ranges) for name, entry in data.items()}
    compared = everything or data
    columns = {chooser.name: resolve(chooser.rank(headline), headline.latency_us) for chooser in choosers}
    scorer = scorers[regime]
    rows = tuple(scorer.score(chooser.name, columns[chooser.name], chooser.note) for chooser in choosers)
    return Evaluation(
        main=main,
        data=headline,
        held_out=tuple(held_out),
        rows=rows,
        subset_rows=(
            *_subset_rows(scorer, columns[main], main, subsets, supported),
            *_rows_by(scorer, columns[main], main, by, over),
        ),
        undeclared_rows=_undeclared_rows(choosers, headline, held_out, seed, ranges),
        regime_rows=tuple(
            entry.score(chooser.name, resolve(chooser.rank(entry.data), entry.data.latency_us), chooser.note)
            for name, entry in scorers.items()
            if name != regime
            for chooser in choosers
        ),
        families=family_rows(scorer, columns[main]),
        worst=worst_problems(headline, columns[main]),
        regime_picks=compare_regimes(compared, {name: half_medians(frame, entry) for name, entry in compared.items()}),
        noise=noise,
        columns=columns,
        remarks=tuple(remarks),
        **about,
    )


def _scorer(
    data: TrainingSet, halves_us: NDArray[np.float64], held_out: Sequence[str], seed: int, ranges: tuple[Band, ...]
) -> Scorer:
    oracle_us = split_oracle_us(halves_us, data.trusted)
    return Scorer(data, halves_us, oracle_us, clusters(data.families, held_out), seed=seed, ranges=ranges)


def _subset_rows(
    scorer: Scorer, column: NDArray[np.intp], main: str, subsets: Sequence[Chooser], supported: Chooser | None
) -> tuple[ChooserScore, ...]:
    rows = []
    if supported is not None:
        inside = supported.rank(scorer.data)[:, 0] >= 0
        rows.append(scorer.score(supported.name, np.where(inside, column, -1), supported.note))
    same = np.zeros(0, dtype=bool)
    for chooser in subsets:
        theirs = resolve(chooser.rank(scorer.data), scorer.data.latency_us)
        if not (theirs >= 0).any():  # of another kind of op, say
            continue
        if not np.array_equal(same, theirs >= 0):
            same = theirs >= 0
            rows.append(scorer.score(f"{main}, where {chooser.name} answers", np.where(same, column, -1)))
        rows.append(scorer.score(chooser.name, theirs, chooser.note))
    return tuple(rows)


def _rows_by(
    scorer: Scorer, column: NDArray[np.intp], main: str, by: Sequence[str], over: Sequence[Config]
) -> Iterator[ChooserScore]:
    """Rows of ``main`` for each value of the attributes that there is, then the same over other configs."""
    data = scorer.data
    parts = {"": np.ones(len(data), dtype=bool)}
    for name in by:
        values = [getattr(problem, name) for problem in data.problems]
        for value in data.op.problem_type.CHOICES[name]:
            parts[f", {name}={value}"] = np.array([entry == value for entry in values])
    for config in (data.op.vendor, *over):
        is_vendor = config == data.op.vendor
        suffix, place = "" if is_vendor else f", over {config.key()}", data.configs.index(config)
        for label, inside in parts.items():
            if inside.any() and (label or not is_vendor):
                yield scorer.score(f"{main}{label}{suffix}", np.where(inside, column, -1), baseline=place)


def _undeclared_rows(
    choosers: Sequence[Chooser], data: TrainingSet, held_out: Sequence[str], seed: int, ranges: tuple[Band, ...]
) -> tuple[ChooserScore, ...]:
    """Rows for callers without promises; none if the rules make no difference between the two."""
    if np.array_equal(data.legal, data.legal_undeclared):
        return ()
    plain = without_promises(data)
    scorer = Scorer(plain, None, None, clusters(plain.families, held_out), declared=False, seed=seed, ranges=ranges)
    return tuple(scorer.score(c.name, resolve(c.rank(plain), plain.latency_us), c.note) for c in choosers)
