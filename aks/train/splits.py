"""Splits that keep whole model families, and whole weight shapes, on one side."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from aks.core.errors import DataError
from aks.train.dataset import TrainingSet

SAMPLE = "sample"
"""The family of random shapes: it is no model, so it may stay in training whatever is held out."""


def split(training_set: TrainingSet, held_out: Collection[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on and rows held out, such that training sees nothing of the families ``held_out``.

    A problem is held out if any of its families is. Training then loses, beside those, every problem
    that has a held-out problem's weights: all axes equal but the first (m), on any device.

    Raises
    ------
    DataError
        If a family is not in the data, or nothing is left to train on.
    """
    known = set().union(*training_set.families)
    unknown = sorted(set(held_out) - known)
    if unknown:
        raise DataError(f"no model family {', '.join(unknown)} in the data; it has {', '.join(sorted(known))}")
    is_held_out = np.array([not families.isdisjoint(held_out) for families in training_set.families], dtype=bool)
    train, test = _separate(training_set, is_held_out)
    if not len(train):
        raise DataError(
            f"holding out {', '.join(sorted(held_out))} leaves nothing to train on; hold out fewer families"
        )
    return train, test


def _separate(training_set: TrainingSet, is_held_out: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    weights = [tuple(axes) for axes in training_set.axes[:, 1:].tolist()]
    seen = {weights[row] for row in np.flatnonzero(is_held_out)}
    is_train = np.array([key not in seen for key in weights], dtype=bool) & ~is_held_out
    return np.flatnonzero(is_train), np.flatnonzero(is_held_out)


def family_folds(
    training_set: TrainingSet, num_folds: int = 4, seed: int = 0, *, sample_in_training: bool = True
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Cross-validation folds over families, of about equal size; each as ``split`` would make it.

    A problem of several families is held out once for each fold that has one of them. Data of fewer
    than two families is folded over its weight shapes (all axes but the first) instead.

    sample_in_training: random shapes are never held out.

    Raises
    ------
    DataError
        If there are too few weight shapes to hold any out.
    """
    groups: list[frozenset] = list(training_set.families)
    if sample_in_training:
        groups = [families - {SAMPLE} for families in groups]
    if len(set().union(*groups)) < 2:
        groups = [frozenset([tuple(axes)]) for axes in training_set.axes[:, 1:].tolist()]
    names, sizes = np.unique([repr(name) for group in groups for name in group], return_counts=True)
    if len(names) < 2:
        raise DataError(f"data has {len(names)} weight shape(s); at least 2 are needed to validate: collect more")

    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    load = np.zeros(min(num_folds, len(names)), dtype=np.int64)
    fold_of = {}
    for index in order:
        fold_of[str(names[index])] = int(load.argmin())
        load[load.argmin()] += sizes[index]
    folds = []
    for fold in range(len(load)):
        is_held_out = np.array([any(fold_of[repr(name)] == fold for name in group) for group in groups], dtype=bool)
        train, test = _separate(training_set, is_held_out)
        if len(train) and len(test):
            folds.append((train, test))
    if not folds:
        raise DataError("every fold leaves nothing to train on: the families share all their weight shapes")
    return folds
