"""The ladder: what anyone could do instead, each as a chooser over the same held-out problems."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from aks.core import formula
from aks.core.errors import DataError
from aks.core.tree import Tree
from aks.evaluate.regret import Chooser
from aks.export.selector import check_selector, read_portfolio, read_selector
from aks.ops.op import Op
from aks.train.classifier import RegretClassifier
from aks.train.dataset import TrainingSet
from aks.train.examples import Inputs, make_examples, make_inputs
from aks.train.ladder import LADDER

Classifier = Callable[[Inputs], NDArray[np.intp]]

VENDOR, XGBOOST, TREE = "vendor", "XGBoost selector", "exported tree"
ORACLE, PORTFOLIO_ORACLE = "oracle", "oracle over the portfolio"


def vendor() -> Chooser:
    """Always the vendor's call."""
    return Chooser(VENDOR, lambda data: np.zeros((len(data), 1), dtype=np.intp), note="what a user gets without us")


def oracle() -> Chooser:
    """The fastest measured config."""
    return Chooser(ORACLE, _fastest, note="the fastest measured config: no choice can beat it")


def portfolio_oracle(columns: Sequence[int]) -> Chooser:
    """The fastest measured config among ``columns``: what a perfect choice over the portfolio would reach."""
    kept = list(columns)

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        allowed = np.zeros(len(data.configs), dtype=bool)
        allowed[kept] = True
        return _fastest(data, allowed)

    return Chooser(PORTFOLIO_ORACLE, rank, note=f"the best that {len(kept)} configs allow")


def tree_chooser(tree: Tree, name: str = TREE, predict: Callable[..., Any] | None = None) -> Chooser:
    """A tree as it runs: its leaf's legal configs in order, or the vendor outside its support.

    predict, if given, is asked first (a ``Predictor``'s method, over the problem's fields): what is
    shipped is what is scored.
    """
    configs = [_config_key(row) for row in tree.configs]

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        column_of = {_config_key(config.to_row()): column for column, config in enumerate(data.configs)}
        columns = [column_of[key] for key in configs]
        ranking = np.full((len(data), len(configs) + 1), -1, dtype=np.intp)
        for row, problem in enumerate(data.problems):
            fields = problem.to_row()
            picks = [columns[index] for index in legal_ranking(tree, fields)]
            if predict is not None:
                picks.insert(0, column_of[_config_key(predict(**fields).to_row())])
            ranking[row, : len(picks)] = picks
        return ranking

    return Chooser(name, rank, note="the exported tree, through the predictor" if predict else "")


def legal_ranking(tree: Tree, problem: Mapping[str, Any]) -> list[int]:
    """Indices of the tree's configs that are legal in the problem's leaf, best first; [0] outside the support."""
    if tree.outside(problem):
        return [0]
    variables = tree.variables(problem)
    leaf = tree.walk(problem)[1]
    return [index for index in leaf.ranking if formula.compile_python(tree.legality[index])(variables)]


def supported_chooser(tree: Tree, name: str = TREE) -> Chooser:
    """Answers (the vendor, as a stand-in) inside the tree's support only."""

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        inside = [not tree.outside(problem.to_row()) for problem in data.problems]
        return np.where(inside, 0, -1).astype(np.intp)[:, None]

    return Chooser(f"{name}, inside its support", rank)


def class_chooser(name: str, choose: Classifier, columns: Sequence[int], note: str = "") -> Chooser:
    """A trained chooser of class indices (as ``aks.train`` makes them), over the configs at ``columns``."""
    column_of_class = np.array(columns, dtype=np.intp)

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        return column_of_class[choose(make_inputs(data, columns))][:, None]

    return Chooser(name, rank, note)


def learned_choosers(train: TrainingSet, columns: Sequence[int], seed: int = 0) -> list[Chooser]:
    """Every rung of ``aks.train.ladder``, fitted on ``train`` over the portfolio ``columns``."""
    examples = make_examples(train, columns)
    return [class_chooser(rung.description, rung.fit(examples, seed), columns) for rung in LADDER]


def xgboost_chooser(selector_path: Path, op: Op) -> Chooser:
    """The XGBoost selector that the tree was distilled from, as ``aks train`` wrote it.

    Raises
    ------
    DataError, ArtifactError
        If ``selector.json`` or the model beside it is missing, altered, or for another op or config space.
    """
    selector, _ = read_selector(selector_path)
    check_selector(selector, op)
    entry = selector.get("xgboost") or {}
    path = selector_path.parent / str(entry.get("file"))
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry.get("sha256"):
        raise DataError(f"{path} is missing or is not the model that {selector_path} names; write both: aks train")
    if [row["formula"] for row in selector["features"]] != [feature.formula for feature in op.features]:
        raise DataError(
            f"{selector_path} was trained on other features than {op.name} has now; write it again: aks train"
        )
    booster = xgb.Booster(model_file=path)
    classifier = RegretClassifier(booster, booster.num_boosted_rounds())
    portfolio = read_portfolio(selector, op)

    def rank(data: TrainingSet) -> NDArray[np.intp]:
        return class_chooser(XGBOOST, classifier, [data.configs.index(config) for config in portfolio]).rank(data)

    return Chooser(XGBOOST, rank, note="the classifier, too large to ship")


def _config_key(row: Mapping[str, Any]) -> tuple:
    return tuple(row.items())


def _fastest(data: TrainingSet, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    usable = data.trusted if allowed is None else data.trusted & allowed
    latency = np.where(usable & np.isfinite(data.latency_us), data.latency_us, np.inf)
    return latency.argmin(axis=1)[:, None]
