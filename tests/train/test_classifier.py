from __future__ import annotations

import numpy as np
import pytest

from aks.train.classifier import fit_classifier, regret_objective, softmax, tune_classifier
from aks.train.examples import make_examples
from aks.train.splits import family_folds
from tests.train.conftest import OPTIONS

SETTINGS = {"max_depth": 3}


@pytest.fixture(scope="module")
def examples(training_set):
    measured = np.isfinite(training_set.latency_us).sum(axis=0)
    columns = [0, *(np.argsort(-measured[1:], kind="stable")[:5] + 1)]
    return make_examples(training_set, columns)


def expected_cost(margins, cost, legal):
    return (softmax(margins, legal) * cost).sum()


def test_gradient_matches_numeric_differentiation():
    rng = np.random.default_rng(0)
    margins, cost = rng.normal(size=(7, 5)), rng.exponential(0.3, size=(7, 5))
    legal = rng.random((7, 5)) < 0.7
    legal[:, 0] = True
    gradient, hessian = regret_objective(cost, legal)(margins.copy(), None)  # type: ignore[arg-type]
    step = 1e-5
    for p, j in np.ndindex(margins.shape):
        shift = np.zeros_like(margins)
        shift[p, j] = step
        up, middle, down = (expected_cost(margins + sign * shift, cost, legal) for sign in (1, 0, -1))
        assert gradient[p, j] == pytest.approx((up - down) / (2 * step), abs=1e-8)
        # The hessian is a bound on the size of the second derivative, and positive.
        assert hessian[p, j] >= abs(up - 2 * middle + down) / step**2 - 1e-4
    assert (hessian > 0).all()
    assert (gradient[~legal] == 0).all()


def test_softmax_gives_nothing_to_the_illegal_and_survives_large_margins():
    legal = np.array([[True, False, True]])
    assert softmax(np.array([[1000.0, 2000.0, 1000.0]]), legal).tolist() == [[0.5, 0.0, 0.5]]


def test_learns_to_beat_the_vendor_on_its_own_data(examples):
    model = fit_classifier(examples, SETTINGS, 30)
    choice = model(examples.inputs)
    assert examples.inputs.legal[np.arange(len(choice)), choice].all()
    vendor = examples.regret(np.zeros(len(examples), dtype=np.intp)).mean()
    assert examples.regret(choice).mean() < vendor / 3


def test_the_same_seed_gives_the_same_model(examples):
    settings = {"max_depth": 3, "colsample_bynode": 0.5}
    first, again, other = (fit_classifier(examples, settings, 5, seed) for seed in (1, 1, 2))
    assert first.booster.save_raw() == again.booster.save_raw() != other.booster.save_raw()


def test_stops_where_the_held_out_families_regret_least(training_set, examples):
    folds = family_folds(training_set, 2)
    tuned = tune_classifier(examples, folds, grid=[{"max_depth": 2}], rounds=OPTIONS.max_rounds)
    assert len(tuned.curve) == OPTIONS.max_rounds
    assert tuned.num_rounds == int(np.argmin(tuned.curve)) + 1
    for (train, test), model in zip(folds, tuned.fold_models, strict=True):
        again = fit_classifier(examples.rows(train), tuned.settings, tuned.num_rounds)
        held_out = examples.inputs.rows(test)
        assert np.array_equal(again(held_out), model(held_out))


def test_a_portfolio_of_the_vendor_alone_can_be_fitted(training_set):
    only = make_examples(training_set, [0])
    assert not fit_classifier(only, SETTINGS, 2)(only.inputs).any()
