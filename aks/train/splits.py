"""Splits that keep whole model families, and whole weight shapes, on one side."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from aks.core.errors import DataError
from aks.train.dataset import TrainingSet

SAMPLE = "sample"
"""The family of random shapes: it is no model, so it may stay in training whatever is held out."""

Weights = tuple[int, ...]
"""All axes of a problem but the first (m); the first, if it has no other."""


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
    train = rows_without(training_set, held_out, held_out_weights(training_set, held_out))
    if not len(train):
        raise DataError(
            f"holding out {', '.join(sorted(held_out))} leaves nothing to train on; hold out fewer families"
        )
    return train, np.flatnonzero(is_held_out)


def held_out_weights(training_set: TrainingSet, held_out: Collection[str]) -> set[Weights]:
    """Weights of the problems that have one of the families ``held_out``."""
    pairs = zip(_weights(training_set), training_set.families, strict=True)
    return {weights for weights, families in pairs if not families.isdisjoint(held_out)}


def rows_without(
    training_set: TrainingSet, held_out: Collection[str], weights: Collection[Weights]
) -> NDArray[np.intp]:
    """Rows of none of the families ``held_out`` and none of ``weights``."""
    pairs = zip(_weights(training_set), training_set.families, strict=True)
    return np.flatnonzero([key not in weights and families.isdisjoint(held_out) for key, families in pairs])


def _weights(training_set: TrainingSet) -> list[Weights]:
    axes = training_set.axes
    return [tuple(row) for row in axes[:, min(1, axes.shape[1] - 1) :].tolist()]
