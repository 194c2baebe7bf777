"""``tree.json``: small, and nothing of the tree lost."""

from __future__ import annotations

import json
import random
from operator import attrgetter

import pytest

from aks.core import artifact, formula, tree_json
from aks.core.device import find_device
from aks.core.errors import ArtifactError
from aks.core.features import Feature
from aks.core.tree import MAX_SLOWDOWN, Leaf, Node, Parameter, Split, Tree, round_slowdown
from aks.export.tree import lower
from aks.ops import OPS
from aks.ops.op import Op
from tests.selectors import random_selector

GEMM, H200 = OPS["gemm"], find_device("h200")
every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))


def reread(tree: Tree) -> Tree:
    return tree_json.from_json(json.loads(artifact.dump(tree_json.to_json(tree))))


def stump(*leaves: Leaf, configs: int = 3) -> Tree:
    """A tree over m that has the leaves, from left to right."""
    root: Node = leaves[-1]
    for number, leaf in reversed(list(enumerate(leaves[:-1]))):
        root = Split(0, number, leaf, root)
    return Tree(
        op="gemm",
        device="h200",
        space_fingerprint="0" * 16,
        parameters=(Parameter("m"),),
        support={"m": (1, 64)},
        config_choices={"kind": ("vendor", "own")},
        configs=({"kind": "vendor", "size": 0}, *({"kind": "own", "size": i} for i in range(1, configs))),
        legality=("True",) * configs,
        features=(Feature("m", "m"),),
        root=root,
    )


def large_tree(leaves: int, configs: int) -> Tree:
    """Over the first configs of gemm, and as random as measurements are: about 2.5 configs ranked in a leaf."""
    rng = random.Random(0)
    portfolio = GEMM.space.configs[:configs]
    features = tuple(Feature(f.name, formula.fold(f.formula, H200.variables())) for f in GEMM.features)

    def grow(count: int) -> Node:
        if count > 1:
            threshold = int(10 ** rng.uniform(0, 5))
            return Split(rng.randrange(len(features)), threshold, grow(count // 2), grow(count - count // 2))
        ranking = (*rng.sample(range(1, configs), rng.choice((0, 1, 1, 2, 3))), 0)
        slowdowns = tuple(round_slowdown(1 + rng.expovariate(6)) for _ in ranking)
        return Leaf(ranking, slowdowns, rng.randrange(12), len(ranking) == 1 and rng.random() < 0.5)

    made = lower(random_selector(0), GEMM, H200)
    return Tree(
        op=GEMM.name,
        device="h200",
        space_fingerprint=made.space_fingerprint,
        parameters=made.parameters,
        support=made.support,
        config_choices=made.config_choices,
        configs=tuple(config.to_row() for config in portfolio),
        legality=tuple(GEMM.space.legality(config, H200) for config in portfolio),
        features=features,
        root=grow(leaves),
    )


def test_550_leaves_over_64_configs_fit_the_limit():
    tree = large_tree(550, 64)
    assert reread(tree) == tree
    assert len(artifact.dump(tree_json.to_json(tree))) <= 16 * 1024


def test_more_configs_than_symbols_are_refused():
    count = len(tree_json.SYMBOLS)
    widest = stump(Leaf((count - 1, 0), (1.0, 1.0), 1), configs=count)
    assert reread(widest) == widest
    with pytest.raises(ArtifactError, match=r"at most 90 configs.*max_portfolio"):
        tree_json.to_json(stump(Leaf((count, 0), (1.0, 1.0), 1), configs=count + 1))


@every_op
@pytest.mark.parametrize("seed", range(5))
def test_lowered_trees_survive(op: Op, seed: int):
    tree = lower(random_selector(seed, op=op, levels=7, portfolio=30), op, H200)
    assert reread(tree) == tree


@pytest.mark.parametrize("leaves", [1, 2, 3])
def test_small_trees_survive(leaves: int):
    tree = stump(*(Leaf((2, 1, 0), (None, 1.0, 1.01 + i), i) for i in range(leaves - 1)), Leaf((0,), (None,), 0, True))
    assert reread(tree) == tree


def test_slowdowns_are_kept_in_percent():
    document = tree_json.to_json(stump(Leaf((2, 1, 0), (1.0, 1.0149, None), 4), Leaf((0,), (3.5,), 1)))
    assert document["leaves"]["expected_slowdown"] == [0, 1, -1, 250]
    for thousandths in (*range(3000), 10**6 + 1, (MAX_SLOWDOWN - 1) * 1000):
        value = round_slowdown(1 + thousandths / 1000)
        tree = stump(Leaf((0,), (value,), 1))
        assert reread(tree) == tree


def test_slowdowns_below_1_are_noise_when_exported_and_refused_in_a_tree():
    assert [round_slowdown(value) for value in (None, 0.9, 0.9999, 1.0004)] == [None, 1.0, 1.0, 1.0]
    for value in (0.999, float("nan"), MAX_SLOWDOWN * 1.1):
        with pytest.raises(ArtifactError, match="slowdowns"):
            stump(Leaf((0,), (value,), 1))
