"""Everything that is learned, from training problems alone: portfolio, classifier, teacher, tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aks.train.classifier import RegretClassifier, Tuned, fit_classifier, tune_classifier
from aks.train.dataset import TrainingSet
from aks.train.distill import DistilledTree, distil, tune_tree
from aks.train.examples import CostRule, Examples, make_examples
from aks.train.growth import Shape
from aks.train.latency import fit_latency_model
from aks.train.leaves import LeafRule
from aks.train.portfolio import Portfolio, select_portfolio
from aks.train.splits import SAMPLE, family_folds
from aks.train.teacher import Teacher, imagine


@dataclass(frozen=True)
class Options:
    """What training can be told.

    num_imagined: problems that the teacher labels for the tree. max_rounds: of boosting, for the classifier.
    """

    seed: int = 0
    max_portfolio: int = 40
    num_folds: int = 4
    num_imagined: int = 5000
    max_rounds: int = 100
    shape: Shape = field(default_factory=Shape)
    cost: CostRule = field(default_factory=CostRule)
    leaf: LeafRule = field(default_factory=LeafRule)


@dataclass(frozen=True)
class Fitted:
    """A selector: ``examples`` are the training problems over the portfolio's configs."""

    portfolio: Portfolio
    examples: Examples
    classifier: RegretClassifier
    tuned: Tuned
    tree: DistilledTree


def fit(training_set: TrainingSet, options: Options, say: Callable[[str], None] = lambda _: None) -> Fitted:
    """Choose the portfolio, tune and fit the classifier, and distil it; deterministic for ``options``.

    Hyper-parameters are chosen by cross-validation over the families of ``training_set``.

    Raises
    ------
    DataError
        If there are too few weight shapes to validate on.
    """
    seed = options.seed
    say(f"choosing a portfolio for {len(training_set)} problems")
    portfolio = select_portfolio(training_set, options.max_portfolio)
    examples = make_examples(training_set, portfolio.columns, options.cost)
    folds = family_folds(training_set, options.num_folds, seed)
    say(f"tuning the classifier over {len(portfolio.columns)} configs and {len(folds)} folds of families")
    tuned = tune_classifier(examples, folds, seed, rounds=options.max_rounds)
    classifier = fit_classifier(examples, tuned.settings, tuned.num_rounds, seed)
    say(f"modelling latencies of {len(training_set.configs)} configs, and distilling")
    fold_teachers = [
        Teacher(model, fit_latency_model(training_set.subset(train), seed), examples.configs, options.cost)
        for model, (train, _) in zip(tuned.fold_models, folds, strict=True)
    ]
    teacher = Teacher(classifier, fit_latency_model(training_set, seed), examples.configs, options.cost)
    imagined = imagine(training_set, examples.configs, options.num_imagined, seed)
    settings = tune_tree(examples, folds, fold_teachers, imagined, options.shape)
    tree = distil(
        examples,
        training_set.legal_undeclared[:, list(portfolio.columns)],
        family_groups(training_set),
        imagined,
        teacher,
        settings,
        options.shape,
        options.leaf,
    )
    return Fitted(portfolio, examples, classifier, tuned, tree)


def family_groups(training_set: TrainingSet) -> NDArray[np.intp]:
    """[P]: a number for the family of each problem, the first by name; random shapes count by weights."""
    names = [
        min(families - {SAMPLE}, default=f"{SAMPLE} {tuple(axes)}")
        for families, axes in zip(training_set.families, training_set.axes[:, 1:].tolist(), strict=True)
    ]
    return np.unique(np.array(names), return_inverse=True)[1]
