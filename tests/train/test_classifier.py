from __future__ import annotations

import numpy as np
import pytest

from aks.train.classifier import RegretClassifier, fit_classifier, regret_objective, softmax
from aks.train.examples import Examples, Inputs, make_examples
from aks.train.growth import Rows


def fitted(examples: Examples, num_rounds: int, seed: int = 0, **parameters: float) -> RegretClassifier:
    features = examples.inputs.features.astype(np.float32)
    count = len(examples)
    rows = Rows(features, examples.cost, np.ones(count), np.ones(count, dtype=bool))
    return fit_classifier(rows, examples.inputs.legal, num_rounds, seed, **parameters)


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
    model = fitted(examples, 30, max_depth=3)
    choice = model(examples.inputs)
    assert examples.inputs.legal[np.arange(len(choice)), choice].all()
    vendor = examples.regret(np.zeros(len(examples), dtype=np.intp)).mean()
    assert examples.regret(choice).mean() < vendor / 3


def test_the_same_seed_gives_the_same_model(examples):
    first, again, other = (fitted(examples, 5, seed, max_depth=3, colsample_bynode=0.5) for seed in (1, 1, 2))
    assert first.booster.save_raw() == again.booster.save_raw() != other.booster.save_raw()


def test_a_portfolio_of_the_vendor_alone_can_be_fitted(training_set):
    only = make_examples(training_set, [0])
    assert not fitted(only, 2)(only.inputs).any()


def test_a_heavier_row_counts_for_more():
    legal = np.ones((2, 2), dtype=bool)
    cost = np.array([[0.0, 0.3], [0.2, 0.0]])
    nothing = np.zeros((1, 1), dtype=np.int64)
    choices = []
    for weight in ([1.0, 1.0], [1.0, 5.0]):
        rows = Rows(np.zeros((2, 1), dtype=np.float32), cost, np.array(weight), np.ones(2, dtype=bool))
        choices.append(int(fit_classifier(rows, legal, 20)(Inputs(nothing, nothing, legal[:1], {}))[0]))
    assert choices == [0, 1]
