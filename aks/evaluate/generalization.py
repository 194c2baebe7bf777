"""How well a selector does on what it never saw: hold out one group of any column, train on the rest, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aks.core.device import DeviceSpec
from aks.core.errors import DataError
from aks.evaluate import baselines
from aks.evaluate.regret import Chooser, ChooserScore, Scorer, clusters, json_row, resolve
from aks.train.dataset import TrainingSet
from aks.train.splits import SAMPLE, held_out_weights, rows_without, split

Fit = Callable[[TrainingSet, TrainingSet], Sequence[Chooser]]
"""From training problems to choosers, of the same names each time.

The first set is what may be learned from; the second has the group's own problems besides, so far as
their families are not held out: for what a chooser could learn that is not kept from it.
"""

FAMILY, DEVICE = "family", "device"


@dataclass(frozen=True, slots=True)
class Group:
    """What is held out together: the values of the column, and the rows that have one of them."""

    name: str
    values: tuple[str, ...]
    rows: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Scores on one held-out group, and how many problems were left to train on."""

    group: str
    trained_on: int
    rows: tuple[ChooserScore, ...]


@dataclass(frozen=True, slots=True)
class Generalization:
    """groups in turn, and overall: every problem scored once, by choosers that never saw its group.

    held_out: families that no chooser saw either. data: the problems that were scored; columns: by
    chooser, the column [P] of ``data`` that ran (-1: no answer).
    """

    column: str
    groups: tuple[GroupScore, ...]
    overall: tuple[ChooserScore, ...]
    data: TrainingSet
    columns: Mapping[str, NDArray[np.intp]]
    held_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All rows as plain lists and mappings."""
        return {
            "column": self.column,
            "held_out_families": list(self.held_out),
            "groups": [
                {
                    "group": entry.group,
                    "trained_on": entry.trained_on,
                    "rows": [json_row(row.to_row()) for row in entry.rows],
                }
                for entry in self.groups
            ],
            "overall": [json_row(row.to_row()) for row in self.overall],
        }


def column_names(data: TrainingSet) -> list[str]:
    """Columns that can be held out: family, device and its facts, and the fields of a problem."""
    return [FAMILY, *device_columns(), *(field.name for field in fields(data.op.problem_type))]


def device_columns() -> list[str]:
    """Of these, the ones that tell devices apart."""
    return [DEVICE, *(field.name for field in fields(DeviceSpec) if field.name != "name")]


def make_groups(data: TrainingSet, column: str, max_groups: int) -> list[Group]:
    """The distinct values of ``column`` as groups; more than ``max_groups`` are dealt into that many.

    Devices are not dealt: each is a group.
    Large values are dealt first, each to the smallest group so far, so that groups are of about equal
    size. Random shapes (family ``sample``) are no model and stay in training.

    Raises
    ------
    DataError
        If there is no such column, or fewer than two groups to tell apart.
    """
    values = _values(data, column)
    rows_of: dict[str, list[int]] = {}
    for row, names in enumerate(values):
        for name in names:
            rows_of.setdefault(name, []).append(row)
    if len(rows_of) < 2:
        raise DataError(_too_few(column, list(rows_of)))
    count = len(rows_of) if column == DEVICE else min(max_groups, len(rows_of))
    dealt: list[list[str]] = [[] for _ in range(count)]
    load = [0] * len(dealt)
    for name in sorted(rows_of, key=lambda name: (-len(rows_of[name]), name)):
        smallest = load.index(min(load))
        dealt[smallest].append(name)
        load[smallest] += len(rows_of[name])
    groups = []
    for names in dealt:
        rows = np.unique([row for name in names for row in rows_of[name]])
        groups.append(Group(", ".join(sorted(names)), tuple(sorted(names)), rows.astype(np.intp)))
    return groups


def _values(data: TrainingSet, column: str) -> list[frozenset[str]]:
    if column == FAMILY:
        return [families - {SAMPLE} for families in data.families]
    if column == DEVICE:
        return [frozenset([device.name]) for device in data.devices]
    if column not in column_names(data):
        raise DataError(f"no column {column!r} to hold out; there are: {', '.join(column_names(data))}")
    of_problem = {field.name for field in fields(data.op.problem_type)}
    owners = data.problems if column in of_problem else data.devices
    return [frozenset([str(getattr(owner, column))]) for owner in owners]


def _too_few(column: str, found: list[str]) -> str:
    has = f"the data has {len(found)} {column}{'' if not found else f' ({found[0]})'}"
    if column == DEVICE:
        return (
            f"{has}: one device is too few for a cross-GPU figure, which trains on all GPUs but one and scores on that "
            "one. Measure another GPU (aks collect) and pass both files, or hold out model families: "
            f"--holdout {FAMILY}"
        )
    return f"{has}: holding it out leaves nothing to train on. Hold out another column (--holdout {FAMILY})"


def leave_one_out(
    data: TrainingSet,
    column: str,
    fit: Fit,
    *,
    max_groups: int = 5,
    held_out: Sequence[str] = (),
    values: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Generalization:
    """Hold out each group of ``column`` in turn; ``fit`` sees the others, and its choosers are scored on it.

    values: hold out the groups that have one of these alone (empty: all).

    Vendor and oracle are scored beside them. Holding out families also withholds every problem that
    shares weights with them, as ``split`` does. With families ``held_out`` the groups are scored on
    these alone, which no chooser saw on any device. ``progress`` is told of each group as it starts.

    Raises
    ------
    DataError
        If the column is unknown or has fewer than two groups, or a group leaves nothing to train on.
    """
    groups = _with(values, make_groups(data, column, max_groups), column)
    columns: dict[str, NDArray[np.intp]] = {}
    cluster = np.zeros(len(data), dtype=np.intp)
    scores = []
    tested = []
    for number, group in enumerate(groups):
        progress(f"{column} {group.name} ({number + 1} of {len(groups)})")
        train, inside, test = _split(data, column, group, held_out)
        if not len(test):
            continue
        tested.append(test)
        test_set = data.subset(test)
        choosers = [baselines.vendor(), *fit(data.subset(train), data.subset(inside)), baselines.oracle()]
        picked = {chooser.name: resolve(chooser.rank(test_set), test_set.latency_us) for chooser in choosers}
        # Within a family the draws of the bootstrap are problems; within a device families.
        within = np.zeros(len(test), dtype=np.intp) if column == FAMILY else clusters(test_set.families, held_out)
        scorer = Scorer(test_set, None, None, within, seed=seed)
        scores.append(GroupScore(group.name, len(train), tuple(scorer.score(c.name, picked[c.name]) for c in choosers)))
        cluster[test] = number
        for name, column_of in picked.items():
            columns.setdefault(name, np.full(len(data), -1, dtype=np.intp))[test] = column_of
    if not tested:
        raise DataError(f"no problem of {', '.join(sorted(held_out))} in the data; name families that it has")
    scored = np.unique(np.concatenate(tested))
    problems = data.subset(scored)
    overall = Scorer(problems, None, None, cluster[scored], seed=seed)
    choices = {name: column_of[scored] for name, column_of in columns.items()}
    rows = tuple(overall.score(name, choice) for name, choice in choices.items())
    return Generalization(column, tuple(scores), rows, problems, choices, tuple(sorted(held_out)))


def _with(values: Sequence[str], groups: list[Group], column: str) -> list[Group]:
    known = {value for group in groups for value in group.values}
    if unknown := sorted(set(values) - known):
        raise DataError(f"no {column} {', '.join(unknown)} in the data; it has {', '.join(sorted(known))}")
    return [group for group in groups if not values or not set(values).isdisjoint(group.values)]


def _split(
    data: TrainingSet, column: str, group: Group, held_out: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on, these and the group's own that are not held out, and rows to score."""
    if column == FAMILY:
        train, test = split(data, group.values)
        return train, train, test
    inside, test = np.arange(len(data)), group.rows
    if held_out:
        inside = rows_without(data, held_out, held_out_weights(data, held_out))
        test = group.rows[[not data.families[row].isdisjoint(held_out) for row in group.rows]]
    train = np.setdiff1d(inside, group.rows)
    if not len(train):
        raise DataError(f"holding out {column} {group.name} leaves nothing to train on; hold out less")
    return train, inside, test
