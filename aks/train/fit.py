"""Everything that is learned, from training problems alone: latency model, portfolio, classifier, tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aks.core.device import DeviceSpec
from aks.core.forecast import Forecast
from aks.train.classifier import RegretClassifier, fit_classifier
from aks.train.dataset import TrainingSet
from aks.train.distill import DistilledTree, distil, join_rows
from aks.train.examples import Examples, make_examples
from aks.train.forecast import fit_forecast
from aks.train.growth import Shape
from aks.train.latency import LatencyModel, fit_latency_model
from aks.train.leaves import LeafRule
from aks.train.portfolio import Portfolio, select_portfolio
from aks.train.teacher import imagine
from aks.train.transport import carry_over, default_device, uncovered_facts


@dataclass(frozen=True)
class Options:
    """What training can be told. Defaults were chosen by cross-validation over training families.

    num_imagined: problems that the latency model prices, between the measured ones. measured_weight: of
    a measured problem against an imagined one. num_rounds: of boosting, for the classifier. guessed_leaf:
    the rule on devices that are unlike all that were measured: there a tree leans on the vendor.
    """

    seed: int = 0
    max_portfolio: int = 64
    num_imagined: int = 20000
    measured_weight: float = 5.0
    num_rounds: int = 60
    shape: Shape = field(default_factory=Shape)
    leaf: LeafRule = field(default_factory=LeafRule)
    guessed_leaf: LeafRule = field(default_factory=lambda: LeafRule(noise=0.05, max_harmed=0.1))


@dataclass(frozen=True)
class Fitted:
    """A selector for ``device``: ``examples`` are the training problems there over the portfolio's configs.

    uncovered: facts of the device that no measured one is near to; if there are any, the tree leans on the vendor.
    forecast: of what the tree's answers take.
    """

    device: DeviceSpec
    uncovered: tuple[str, ...]
    portfolio: Portfolio
    examples: Examples
    classifier: RegretClassifier
    tree: DistilledTree
    forecast: Forecast


def fit(
    training_set: TrainingSet,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    *,
    others: Sequence[TrainingSet] = (),
    device: DeviceSpec | None = None,
    model: LatencyModel | None = None,
) -> Fitted:
    """Model latencies, choose the portfolio, fit the classifier and distil; deterministic for ``options``.

    Parameters
    ----------
    others
        Training problems in other regimes, which the latency model learns from too.
    device
        For which the selector is, measured or not; by default the one that most problems were measured on.
        What was measured elsewhere is carried over to it.
    model
        What ``fit_latency_model`` made of the same problems, for whoever needs several devices.
    """
    seed = options.seed
    device = device or default_device(training_set)
    if model is None:
        say(f"modelling latencies of {len(training_set.configs)} configs on {len(training_set)} problems")
        model = fit_latency_model((training_set, *others), seed)
    uncovered = uncovered_facts(device, set(training_set.devices))
    here = carry_over(training_set, model, device)
    around = max((here, *others), key=len)
    imagined = imagine(here, model, options.num_imagined, device, seed, around=around)
    say(f"choosing at most {options.max_portfolio} of them")
    weight = len(imagined) / (options.measured_weight * len(here))
    portfolio = select_portfolio(here, options.max_portfolio, imagined=imagined, imagined_weight=weight)
    columns = np.array(portfolio.columns, dtype=np.intp)
    examples = make_examples(here, portfolio.columns)
    rows = join_rows(make_examples(here, range(len(here.configs))), imagined, options.measured_weight)
    names = here.op.tree_features + (here.op.partition_tree_features if device.is_partition else ())
    may_split = np.array([feature.name in names for feature in here.op.features])
    declared = np.concatenate([here.legal, imagined.inputs.legal])[:, columns]
    undeclared = np.concatenate([here.legal_undeclared, imagined.legal_undeclared])[:, columns]
    say(f"fitting the classifier over {len(columns)} configs")
    classifier = fit_classifier(rows.over(columns), declared, options.num_rounds, seed)
    say("distilling")
    tree = distil(
        replace(rows, features=rows.features * may_split),  # a constant cannot be split on
        columns,
        np.stack([declared, undeclared]),
        examples,
        options.shape,
        options.guessed_leaf if uncovered else options.leaf,
        seed,
    )
    forecast = fit_forecast(here.op, examples, tree(examples.inputs), seed)
    return Fitted(device, uncovered, portfolio, examples, classifier, tree, forecast)
