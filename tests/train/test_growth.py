from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.train.growth import Rows, Shape, _just_above, grow, refine, threshold_between


def make_rows(features, cost, weight=None) -> Rows:
    count = len(cost)
    return Rows(
        np.asarray(features, dtype=np.float32).reshape(count, -1),
        np.asarray(cost, dtype=np.float64),
        np.ones(count) if weight is None else np.asarray(weight, dtype=np.float64),
        np.ones(count, dtype=bool),
    )


def random_rows(seed: int, count: int = 80) -> Rows:
    rng = np.random.default_rng(seed)
    return make_rows(rng.integers(0, 12, (count, 3)), rng.exponential(0.2, (count, 4)), rng.random(count) + 0.1)


def total_cost(tree, rows) -> float:
    """Of the best class of each leaf."""
    reached = tree.leaves(rows.features)
    weighted = rows.cost * rows.weight[:, None]
    return float(sum(weighted[reached == leaf].sum(axis=0).min() for leaf in np.unique(reached)))


def test_finds_an_obvious_rule():
    x = np.arange(40)
    noise = np.random.default_rng(0).integers(0, 9, 40)
    rows = make_rows(np.column_stack([noise, x]), np.where(x[:, None] < 17, [0.0, 0.2], [0.2, 0.0]))
    tree = grow(rows, Shape(max_leaves=2))
    assert tree.feature.tolist() == [1, -1, -1] and 16 < tree.threshold[0] <= 17
    assert refine(tree, rows, Shape(max_leaves=2)).feature.tolist() == [1, -1, -1]


def test_refining_mends_a_bad_split():
    # The variance of many alike classes hides the two that matter; the cost of the choice does not.
    x = np.arange(80)
    cost = np.zeros((80, 12))
    cost[:, 0] = np.where(x < 45, 0.0, 0.2)
    cost[:, 1] = np.where(x < 45, 0.2, 0.0)
    cost[:, 2:] = np.where(x[:, None] < 20, 0.25, 0.1)
    rows, shape = make_rows(x, cost), Shape(max_leaves=2)
    grown = grow(rows, shape)
    assert abs(grown.threshold[0] - 20) <= 1
    refined = refine(grown, rows, shape)
    assert abs(refined.threshold[0] - 45) <= 1
    assert total_cost(refined, rows) == 0.0 < total_cost(grown, rows)


def test_refining_finds_a_rule_that_pays_only_at_the_second_split():
    # Exclusive or: no single split lowers the cost of the best class, but each does below the right root.
    x, y = np.meshgrid(np.arange(8), np.arange(8))
    features = np.column_stack([x.ravel(), y.ravel()])
    odd = (features[:, 0] < 3) ^ (features[:, 1] < 5)
    rows = make_rows(features, np.where(odd[:, None], [0.0, 0.2], [0.2, 0.0]))
    shape = Shape(max_leaves=8)
    assert total_cost(refine(grow(rows, shape), rows, shape), rows) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_refining_never_costs_more_and_drops_what_decides_nothing(seed):
    rows, shape = random_rows(seed), Shape(max_depth=6, max_leaves=24, min_weight=0.5)
    grown = grow(rows, shape)
    refined = refine(grown, rows, shape)
    assert total_cost(refined, rows) <= total_cost(grown, rows) + 1e-9
    assert refined.depth <= grown.depth and refined.num_leaves <= grown.num_leaves
    assert set(np.unique(refined.leaves(rows.features))) == set(np.flatnonzero(refined.feature < 0))
    assert np.array_equal(refined.left[refined.feature >= 0], np.flatnonzero(refined.feature >= 0) + 1)  # preorder


def test_nothing_to_gain_is_one_leaf():
    rows = make_rows([1, 2, 3, 4], [[0.1, 0.2]] * 4)
    shape = Shape(max_leaves=4, min_weight=0.05)
    assert refine(grow(rows, shape), rows, shape).num_leaves == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [Shape(3, 20, 0.1), Shape(10, 7, 0.1), Shape(10, 50, 6.0)])
def test_limits_are_kept(seed, shape):
    rows = random_rows(seed)
    tree = grow(rows, shape)
    assert tree.depth <= shape.max_depth and tree.num_leaves <= shape.max_leaves
    support = np.bincount(tree.leaves(rows.features), rows.weight, minlength=len(tree.feature))[tree.feature < 0]
    assert support.min() >= shape.min_weight - 1e-6


def test_the_same_seed_gives_the_same_tree():
    rows, shape = random_rows(3), Shape(max_leaves=12, min_weight=0.2)
    first, again = (refine(grow(rows, shape, seed=5), rows, shape) for _ in range(2))
    assert np.array_equal(first.threshold, again.threshold) and np.array_equal(first.feature, again.feature)


def test_many_distinct_values_share_thresholds_and_still_separate():
    x = np.arange(5000)
    rows, shape = make_rows(x, np.where(x[:, None] < 2500, [0.0, 0.2], [0.2, 0.0])), Shape(max_leaves=2)
    assert refine(grow(rows, shape), rows, shape).threshold[0] == pytest.approx(2500, abs=1)


@given(st.integers(0, 2**40), st.integers(1, 2**24))
def test_a_threshold_separates_even_neighbouring_floats(low, step):
    a, b = np.float32(low), np.float32(low + step)
    if a < b:
        threshold = threshold_between(a, b)
        assert a < threshold <= b
    up = np.nextafter(a, np.float32(np.inf), dtype=np.float32)
    assert a < threshold_between(a, up) <= up


@given(st.floats(0, 2.0**60), st.floats(0, 2.0**60, width=32))
def test_at_most_a_value_and_below_the_float_above_it_are_the_same(value, x):
    assert (x <= value) == (np.float32(x) < _just_above(value))
