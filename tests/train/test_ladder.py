from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest

from aks.train.examples import make_examples
from aks.train.ladder import LADDER, fit_nearest, fit_static, fit_table
from aks.train.portfolio import select_portfolio
from aks.train.splits import split


@pytest.fixture(scope="module")
def sides(training_set):
    train, test = split(training_set, ["gamma"])
    columns = select_portfolio(training_set.subset(train), 6).columns
    return [make_examples(training_set.subset(rows), columns) for rows in (train, test)]


@pytest.mark.parametrize("rung", LADDER, ids=attrgetter("name"))
def test_answers_legally_on_problems_it_never_saw_and_the_same_again(sides, rung):
    train, test = sides
    choice = rung.fit(train, 0)(test.inputs)
    assert choice.shape == (len(test),)
    assert test.inputs.legal[np.arange(len(test)), choice].all()
    assert np.array_equal(rung.fit(train, 0)(test.inputs), choice)


@pytest.mark.parametrize("rung", [rung for rung in LADDER if rung.name != "static"], ids=attrgetter("name"))
def test_learns_its_own_examples(sides, rung):
    train, _ = sides
    vendor = train.regret(np.zeros(len(train), dtype=np.intp)).mean()
    assert train.regret(rung.fit(train, 0)(train.inputs)).mean() < vendor / 2


def test_static_is_the_best_single_config(sides):
    train, _ = sides
    chosen = train.regret(fit_static(train)(train.inputs)).mean()
    slowdown = train.cost.mean(axis=0)
    used = fit_static(train)(train.inputs).max()
    assert slowdown[used] == slowdown.min()
    assert chosen <= train.regret(np.zeros(len(train), dtype=np.intp)).mean()


@pytest.mark.parametrize("fit", [fit_nearest, fit_table])
def test_a_known_problem_is_looked_up(sides, fit):
    train, _ = sides
    one = train.rows(np.array([10]))
    best = np.where(one.inputs.legal, np.nan_to_num(one.latency_us, nan=np.inf), np.inf).argmin(axis=1)
    assert np.array_equal(fit(one)(train.inputs.rows(np.array([10]))), best)
