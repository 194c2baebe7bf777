from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aks.core.errors import DataError
from aks.train.splits import SAMPLE, family_folds, split


def weights(training_set, rows) -> set[tuple[int, ...]]:
    return {tuple(axes) for axes in training_set.axes[rows, 1:].tolist()}


@pytest.fixture
def shared(training_set):
    """The set with shapes in common: alpha's problems are beta's too for every third row, and sample repeats some."""
    families = list(training_set.families)
    for row in range(0, len(families), 3):
        if "alpha" in families[row]:
            families[row] |= {"beta"}
    problems = list(training_set.problems)
    alpha, sample = (next(r for r, f in enumerate(families) if name in f) for name in ("alpha", SAMPLE))
    problems[sample] = replace(problems[sample], n=problems[alpha].n, k=problems[alpha].k, m=77)
    return replace(training_set, families=tuple(families), problems=tuple(problems))


@pytest.mark.parametrize("held_out", [("alpha",), ("beta",), ("alpha", "gamma")])
def test_nothing_of_a_held_out_family_is_seen(shared, held_out):
    train, test = split(shared, held_out)
    assert len(train) and len(test)
    assert all(shared.families[row] & set(held_out) for row in test)
    assert not any(shared.families[row] & set(held_out) for row in train)
    assert not weights(shared, train) & weights(shared, test)
    for row in set(range(len(shared))) - set(train) - set(test):  # what neither side has, shares weights
        assert weights(shared, [row]) <= weights(shared, test)


def test_holding_out_nothing_trains_on_everything(training_set):
    train, test = split(training_set, ())
    assert len(train) == len(training_set) and not len(test)


def test_unknown_and_all_families_are_refused(training_set):
    with pytest.raises(DataError, match="no model family omega"):
        split(training_set, ["omega"])
    with pytest.raises(DataError, match="nothing to train on"):
        split(training_set, set().union(*training_set.families))


def test_folds_hold_each_family_out_once_and_keep_the_sample(training_set):
    folds = family_folds(training_set, 2, seed=0)
    held_out = [set().union(*(training_set.families[row] for row in test)) for _, test in folds]
    assert set.union(*held_out) == {"alpha", "beta", "gamma", "delta"} and not set.intersection(*held_out)
    assert [len(test) for _, test in folds] == [128, 128]
    for train, test in folds:
        assert not weights(training_set, train) & weights(training_set, test)
        assert any(SAMPLE in training_set.families[row] for row in train)


def test_folds_over_shared_families_leak_nothing(shared):
    for train, test in family_folds(shared, 3, seed=1, sample_in_training=False):
        assert not weights(shared, train) & weights(shared, test)


def test_folds_are_the_same_for_a_seed_and_differ_between_seeds(training_set):
    def order(seed):
        return [test.tolist() for _, test in family_folds(training_set, 2, seed=seed)]

    assert order(3) == order(3)
    assert any(order(3) != order(seed) for seed in range(4, 9))


def test_one_family_is_folded_over_its_weights(training_set):
    one = training_set.subset([r for r, f in enumerate(training_set.families) if "alpha" in f])
    folds = family_folds(one, 2)
    assert len(folds) == 2
    for train, test in folds:
        assert not weights(one, train) & weights(one, test)
    with pytest.raises(DataError, match="weight shape"):
        family_folds(one.subset(np.flatnonzero((one.axes[:, 1:] == one.axes[0, 1:]).all(axis=1))))
