from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.train.growth import Rows, Shape, collapse_strengths, grow, prune, threshold_between


def make_rows(features, cost, weight=None, measured=None) -> Rows:
    count = len(cost)
    return Rows(
        np.asarray(features, dtype=np.float32).reshape(count, -1),
        np.asarray(cost, dtype=np.float64),
        np.ones(count) if weight is None else np.asarray(weight, dtype=np.float64),
        np.ones(count, dtype=bool) if measured is None else measured,
    )


def random_rows(seed: int, count: int = 80) -> Rows:
    rng = np.random.default_rng(seed)
    return make_rows(rng.integers(0, 12, (count, 3)), rng.exponential(0.2, (count, 4)), rng.random(count) + 0.1)


def total_cost(tree, rows) -> float:
    leaves = tree.leaves(rows.features)
    choice = tree.totals[leaves].argmin(axis=1)
    return float((rows.cost[np.arange(len(choice)), choice] * rows.weight).sum())


def test_finds_an_obvious_rule():
    x = np.arange(40)
    cost = np.where(x[:, None] < 17, [0.0, 0.5], [0.5, 0.0])
    noise = np.random.default_rng(0).integers(0, 9, 40)
    tree = grow(make_rows(np.column_stack([noise, x]), cost), Shape(max_leaves=2))
    assert (tree.feature[0], tree.threshold[0]) == (1, 16.5)
    assert tree.totals[tree.left[0]].argmin() == 0 and tree.totals[tree.right[0]].argmin() == 1


def test_finds_a_rule_that_pays_only_at_the_second_split():
    # Exclusive or: no single split lowers the cost of the best class.
    x, y = np.meshgrid(np.arange(8), np.arange(8))
    features = np.column_stack([x.ravel(), y.ravel()])
    odd = (features[:, 0] < 3) ^ (features[:, 1] < 5)
    rows = make_rows(features, np.where(odd[:, None], [0.0, 0.3], [0.3, 0.0]))
    tree = grow(rows, Shape(max_leaves=4, guidance=0.3))
    assert total_cost(tree, rows) == 0.0
    assert grow(rows, Shape(max_leaves=4, guidance=0.0)).num_leaves >= 1


def test_ties_go_to_the_lower_feature_and_nothing_to_gain_is_no_split():
    x = np.array([1, 2, 3, 4])
    rows = make_rows(np.column_stack([x, x]), [[0, 1], [0, 1], [1, 0], [1, 0]])
    assert grow(rows, Shape(min_weight=0.05)).feature[0] == 0
    assert grow(make_rows(x, [[0.1, 0.2]] * 4), Shape(min_weight=0.05)).num_leaves == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [Shape(3, 20, 0.1), Shape(10, 7, 0.1), Shape(10, 50, 6.0)])
def test_limits_are_kept(seed, shape):
    rows = random_rows(seed)
    tree = grow(rows, shape)
    assert tree.depth <= shape.max_depth and tree.num_leaves <= shape.max_leaves
    support = np.bincount(tree.leaves(rows.features), rows.weight, minlength=len(tree.feature))[tree.feature < 0]
    assert support.min() >= shape.min_weight - 1e-9


def test_light_rows_give_little_support():
    x = np.arange(20)
    cost = np.where(x[:, None] < 10, [0.0, 1.0], [1.0, 0.0])
    weight = np.where(x < 10, 0.1, 1.0)  # one in all on the left of the obvious split
    rows = make_rows(x, cost, weight)
    assert grow(rows, Shape(max_leaves=2, min_weight=0.9)).threshold[0] == 9.5
    assert grow(rows, Shape(max_leaves=2, min_weight=2.0)).threshold[0] != 9.5


def test_many_distinct_values_share_bins_and_still_separate():
    x = np.arange(5000)
    rows = make_rows(x, np.where(x[:, None] < 2500, [0.0, 0.5], [0.5, 0.0]))
    tree = grow(rows, Shape(max_leaves=2))
    assert abs(tree.threshold[0] - 2500) <= 5000 / 128
    small = np.where(x < 4000, x % 4, x)  # frequent values keep bins of their own
    rows = make_rows(small, np.where(small[:, None] < 2, [0.0, 0.5], [0.5, 0.0]))
    assert grow(rows, Shape(max_leaves=2)).threshold[0] == 1.5


def test_every_row_reaches_the_leaf_that_counted_it():
    rows = random_rows(5)
    tree = grow(rows, Shape(min_weight=0.05))
    leaves = tree.leaves(rows.features)
    for leaf in np.flatnonzero(tree.feature < 0):
        members = leaves == leaf
        assert tree.totals[leaf] == pytest.approx((rows.cost * rows.weight[:, None])[members].sum(axis=0))


@given(st.integers(0, 2**40), st.integers(1, 2**24))
def test_a_threshold_separates_even_neighbouring_floats(low, step):
    a, b = np.float32(low), np.float32(low + step)
    if a < b:
        threshold = threshold_between(a, b)
        assert a < threshold <= b
    up = np.nextafter(a, np.float32(np.inf), dtype=np.float32)
    assert a < threshold_between(a, up) <= up


def brute_force_price(tree, node_price: float, node: int = 0) -> tuple[float, int]:
    """Least risk + price * leaves over all prunings, and its fewest leaves."""
    risk = tree.totals[node].min() / tree.weight[0]
    if tree.feature[node] < 0:
        return risk + node_price, 1
    left, right = (brute_force_price(tree, node_price, int(side[node])) for side in (tree.left, tree.right))
    split = (left[0] + right[0], left[1] + right[1])
    return (risk + node_price, 1) if risk + node_price <= split[0] + 1e-12 else split


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("price", [0.0, 1e-3, 4e-3, 1e-2, 1.0])
def test_pruning_is_optimal_for_its_price(seed, price):
    tree = grow(random_rows(seed), Shape(min_weight=0.05))
    pruned = prune(tree, collapse_strengths(tree), price, 1000)
    best, leaves = brute_force_price(tree, price)
    risk = pruned.totals[pruned.feature < 0].min(axis=1).sum() / pruned.weight[0]
    assert risk + price * pruned.num_leaves == pytest.approx(best)
    assert pruned.num_leaves == leaves


def test_pruning_to_a_number_of_leaves():
    rows = random_rows(1)
    tree = grow(rows, Shape(min_weight=0.05))
    strengths = collapse_strengths(tree)
    costs = []
    for limit in (40, 15, 6, 1):
        pruned = prune(tree, strengths, 0.0, limit)
        assert pruned.num_leaves <= limit
        costs.append(total_cost(pruned, rows))
    assert costs == sorted(costs)
