from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aks.core.errors import DataError
from aks.train.splits import SAMPLE, held_out_weights, rows_without, split


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


def test_other_regimes_lose_what_is_held_out_in_any(training_set):
    part = training_set.subset(range(0, len(training_set), 3))
    forbidden = held_out_weights(training_set, {"alpha"})
    kept = part.subset(rows_without(part, {"alpha"}, forbidden))
    assert len(kept) and not any("alpha" in families for families in kept.families)
    assert not forbidden & {tuple(axes) for axes in kept.axes[:, 1:].tolist()}
    assert len(rows_without(part, (), ())) == len(part)


def test_where_problems_have_one_axis_it_is_what_sides_must_not_share(training_set, monkeypatch):
    monkeypatch.setattr(type(training_set), "axes", property(lambda self: training_axes[self.problems[0].n]))
    rows = training_set.subset([0, 1, 2])
    rows = replace(rows, families=(frozenset({"a"}), frozenset({"b"}), frozenset({"b"})))
    training_axes = {rows.problems[0].n: np.array([[7], [7], [9]])}
    train, test = split(rows, ("a",))
    assert train.tolist() == [2] and test.tolist() == [0]
