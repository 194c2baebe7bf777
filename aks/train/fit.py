"""Everything that is learned, from training problems alone: latency model, portfolio, classifier, tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aks.train.classifier import RegretClassifier, fit_classifier
from aks.train.dataset import TrainingSet
from aks.train.distill import DistilledTree, distil, join_rows
from aks.train.examples import Examples, make_examples
from aks.train.growth import Shape
from aks.train.latency import fit_latency_model
from aks.train.leaves import LeafRule
from aks.train.portfolio import Portfolio, select_portfolio
from aks.train.teacher import imagine


@dataclass(frozen=True)
class Options:
    """What training can be told. Defaults were chosen by cross-validation over training families.

    num_imagined: problems that the latency model prices, between the measured ones. measured_weight: of
    a measured problem against an imagined one. num_rounds: of boosting, for the classifier.
    """

    seed: int = 0
    max_portfolio: int = 64
    num_imagined: int = 20000
    measured_weight: float = 5.0
    num_rounds: int = 60
    shape: Shape = field(default_factory=Shape)
    leaf: LeafRule = field(default_factory=LeafRule)


@dataclass(frozen=True)
class Fitted:
    """A selector: ``examples`` are the training problems over the portfolio's configs."""

    portfolio: Portfolio
    examples: Examples
    classifier: RegretClassifier
    tree: DistilledTree


def fit(
    training_set: TrainingSet,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    *,
    others: Sequence[TrainingSet] = (),
) -> Fitted:
    """Model latencies, choose the portfolio, fit the classifier and distil; deterministic for ``options``.

    others: training problems in other regimes, which the latency model learns from too.
    """
    seed = options.seed
    say(f"modelling latencies of {len(training_set.configs)} configs on {len(training_set)} problems")
    regimes = (training_set, *others)
    model = fit_latency_model(regimes, seed)
    imagined = imagine(training_set, model, options.num_imagined, seed, around=max(regimes, key=len))
    say(f"choosing at most {options.max_portfolio} of them")
    weight = len(imagined) / (options.measured_weight * len(training_set))
    portfolio = select_portfolio(training_set, options.max_portfolio, imagined=imagined, imagined_weight=weight)
    columns = np.array(portfolio.columns, dtype=np.intp)
    examples = make_examples(training_set, portfolio.columns)
    rows = join_rows(make_examples(training_set, range(len(training_set.configs))), imagined, options.measured_weight)
    may_split = np.array([feature.name in training_set.op.tree_features for feature in training_set.op.features])
    declared = np.concatenate([training_set.legal, imagined.inputs.legal])[:, columns]
    undeclared = np.concatenate([training_set.legal_undeclared, imagined.legal_undeclared])[:, columns]
    say(f"fitting the classifier over {len(columns)} configs")
    classifier = fit_classifier(rows.over(columns), declared, options.num_rounds, seed)
    say("distilling")
    tree = distil(
        replace(rows, features=rows.features * may_split),  # a constant cannot be split on
        columns,
        np.stack([declared, undeclared]),
        examples,
        options.shape,
        options.leaf,
        seed,
    )
    return Fitted(portfolio, examples, classifier, tree)
