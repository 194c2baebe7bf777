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
