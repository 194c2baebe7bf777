"""``aks train``: from a measurement file to ``selector.json``, with figures on held-out families."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aks.core.device import DeviceSpec
from aks.core.measurement import Regime
from aks.ops.op import Op
from aks.train.dataset import TrainingSet, from_frame, present_regimes, read_frames
from aks.train.examples import make_examples
from aks.train.fit import Fitted, Options, fit
from aks.train.forecast import errors
from aks.train.ladder import LADDER
from aks.train.latency import fit_latency_model
from aks.train.prior import NUM_BOOSTERS, Prior, make_prior, save_prior
from aks.train.scores import score_all, score_choice
from aks.train.splits import SAMPLE, held_out_weights, rows_without, split
from aks.train.transport import default_device

FORMAT, VERSION = "aks-selector", 1
SELECTOR_FILE, XGBOOST_FILE = "selector.json", "xgboost.json"
FORECAST_ERROR = "forecast_median_error"
"""Among the metrics: of the forecast of what the tree's answers take, relative, on held-out problems."""
_MIN_FAMILIES = 4
"""With fewer families than this, holding some out would leave too little to learn from."""


@dataclass(frozen=True)
class TrainResult:
    """What one training made.

    scores: figures on the held-out problems by chooser, empty if none were held out. metrics: the
    tree's, with its size. run_id: MLflow's, None if untracked.
    """

    selector_path: Path
    selector: dict[str, Any]
    fitted: Fitted
    training: TrainingSet
    held_out: TrainingSet | None
    scores: dict[str, dict[str, float]]
    metrics: dict[str, float]
    run_id: str | None = None


def train(
    op: Op,
    data: Path | Sequence[Path],
    out: Path,
    *,
    regime: Regime | str = Regime.COLD,
    device: DeviceSpec | None = None,
    held_out: Collection[str] | None = None,
    options: Options | None = None,
    with_prior: bool = False,
    track: bool = True,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Train on ``data``, write ``selector.json`` and ``xgboost.json`` to ``out``, log one MLflow run.

    Parameters
    ----------
    device
        For which the selector is, measured or not; by default the one that most problems were measured
        on. It is scored on what was measured there, if anything.
    held_out
        Model families kept from training, to score on; None takes about a quarter of the families (none
        if there are fewer than four), an empty collection none.
    with_prior
        Also write what ``aks calibrate`` starts from: a latency model of the training problems, and which
        these are (12 MB). The selector is the same.
    tracking_uri
        None means the environment's, or else ``sqlite:///mlflow.db``.
    say
        Receives a line a stage.

    Raises
    ------
    DataError
        If the data cannot be read, or holding out leaves nothing to train on.
    """
    options = options or Options()
    frame, paths, sha256 = read_frames(data, op)
    everything = from_frame(frame, op, regime=regime, path=paths, sha256=sha256)
    names = default_held_out(everything, options.seed) if held_out is None else tuple(sorted(set(held_out)))
    train_rows, test_rows = split(everything, names)
    training = everything.subset(train_rows)
    device = device or default_device(training)
    test_rows = [row for row in test_rows if everything.devices[row] == device]
    test = everything.subset(test_rows) if test_rows else None
    others = _other_regimes(frame, everything, names)
    fitted = fit(training, options, say, others=others, device=device)
    prior = None
    if with_prior:
        say("fitting the prior")
        model = fit_latency_model((training, *others), options.seed, num_boosters=NUM_BOOSTERS)
        prior = make_prior(training, model)
    scores: dict[str, dict[str, float]] = {}
    metrics = describe_tree(fitted)
    if test is not None:
        say(f"scoring on {len(test)} problems of {', '.join(names)}")
        scores, held_out_metrics = score_held_out(fitted, test, options.seed)
        metrics = held_out_metrics | metrics

    path, selector = write_selector(
        out, fitted, training, everything, names, options, metrics=metrics, scores=scores, command=command, prior=prior
    )
    result = TrainResult(path, selector, fitted, training, test, scores, metrics)
    if not track:
        return result
    from aks.train.tracking import log_training  # mlflow takes seconds to import

    say("logging to MLflow")
    run_id = log_training(result, options, experiment=experiment or f"aks-{op.name}", tracking_uri=tracking_uri)
    return TrainResult(path, selector, fitted, training, test, scores, metrics, run_id)


def write_selector(
    out: Path,
    fitted: Fitted,
    training: TrainingSet,
    everything: TrainingSet,
    held_out: Collection[str],
    options: Options,
    *,
    metrics: dict[str, float] | None = None,
    scores: dict[str, dict[str, float]] | None = None,
    command: str = "",
    prior: Prior | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write ``selector.json`` and the files that it lists into ``out``; its path and content."""
    out.mkdir(parents=True, exist_ok=True)
    fitted.classifier.booster.save_model(out / XGBOOST_FILE)
    metrics = metrics or describe_tree(fitted)
    selector = describe(fitted, training, everything, held_out, options, metrics, scores or {}, command)
    selector["xgboost"] = {
        "file": XGBOOST_FILE,
        "sha256": hashlib.sha256((out / XGBOOST_FILE).read_bytes()).hexdigest(),
    }
    if prior is not None:
        selector["prior"] = save_prior(prior, out)
    path = out / SELECTOR_FILE
    path.write_text(json.dumps(selector, indent=1, allow_nan=False) + "\n")
    return path, selector


def _other_regimes(frame: pd.DataFrame, main: TrainingSet, held_out: Collection[str]) -> list[TrainingSet]:
    """Training problems in the regimes beside ``main``'s: of no held-out family, and with none of their weights."""
    others = [from_frame(frame, main.op, regime=name) for name in present_regimes(frame) if name != main.regime]
    weights = set().union(*(held_out_weights(entry, held_out) for entry in (main, *others)))
    kept = [other.subset(rows_without(other, held_out, weights)) for other in others]
    return [other for other in kept if len(other)]


def default_held_out(training_set: TrainingSet, seed: int = 0) -> tuple[str, ...]:
    """About a quarter of the model families, the same ones for a seed; none if there are fewer than four."""
    names = sorted(set().union(*training_set.families) - {SAMPLE})
    if len(names) < _MIN_FAMILIES:
        return ()
    order = np.random.default_rng(seed).permutation(names)
    return tuple(sorted(map(str, order[: len(names) // _MIN_FAMILIES])))


def score_held_out(
    fitted: Fitted, test: TrainingSet, seed: int = 0
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Scores of every chooser on ``test``, and the tree's own figures."""
    axis = test.op.problem_type.AXES[0]
    examples = make_examples(test, fitted.portfolio.columns)
    choices = {rung.name: rung.fit(fitted.examples, seed)(examples.inputs) for rung in LADDER}
    choices |= {"xgboost": fitted.classifier(examples.inputs), "tree": fitted.tree(examples.inputs)}
    scores = score_all(examples, choices, axis=axis)
    plain = make_examples(test, fitted.portfolio.columns, declared=False)
    undeclared = score_choice(plain, fitted.tree(plain.inputs), axis=axis)
    forecast_errors = errors(fitted.forecast, examples, choices["tree"])
    return scores, {
        **scores["tree"],
        "regret_lost_by_distilling": scores["tree"]["mean_regret"] - scores["xgboost"]["mean_regret"],
        FORECAST_ERROR: float(np.median(forecast_errors)),
        "forecast_p90_error": float(np.quantile(forecast_errors, 0.9)),
        **{f"undeclared_{name}": undeclared[name] for name in ("mean_regret", "geomean_speedup", "slower_share")},
    }


def describe_tree(fitted: Fitted) -> dict[str, float]:
    """Size of the tree. json_bytes: of its arrays in ``selector.json``; the manifest has those of the exported file."""
    tree = fitted.tree
    arrays = json.dumps(tree.to_json(), separators=(",", ":"))
    return {
        "num_nodes": len(tree.nodes.feature),
        "num_leaves": tree.nodes.num_leaves,
        "depth": tree.nodes.depth,
        "json_bytes": len(arrays),
        "abstaining_leaves": sum(leaf.abstain for leaf in tree.leaves.values()),
    }


def describe(
    fitted: Fitted,
    training: TrainingSet,
    everything: TrainingSet,
    held_out: Collection[str],
    options: Options,
    metrics: dict[str, float],
    scores: dict[str, dict[str, float]],
    command: str,
) -> dict[str, Any]:
    """The document ``selector.json``, but for the entry ``xgboost``."""
    op, source = training.op, everything.source
    return {
        "format": FORMAT,
        "version": VERSION,
        "op": op.name,
        "regime": training.regime.value,
        "device": fitted.device.to_row(),
        "devices": sorted({entry.name for entry in training.devices}),
        "uncovered_facts": list(fitted.uncovered),
        "space_fingerprint": op.space.fingerprint,
        "dataset": {
            "sha256": source.sha256,
            "path": source.path,
            "rows": source.rows,
            "problems": len(everything),
            "training_problems": len(training),
            "skipped_problems": source.skipped,
            "held_out_families": sorted(held_out),
            "environment": source.environment or {},
        },
        "features": [{"name": entry.name, "formula": entry.formula, "doc": entry.doc} for entry in op.features],
        "portfolio": [config.to_row() for config in fitted.examples.configs],
        "support": support_of(training),
        "tree": fitted.tree.to_json(),
        "forecast": replace(fitted.forecast, median_error=metrics.get(FORECAST_ERROR)).to_json(),
        "seed": options.seed,
        "command": command,
        "metrics": metrics,
        "ladder": scores,
    }


def support_of(training: TrainingSet) -> dict[str, Any]:
    """What the training problems cover: a range for each axis, the values seen of each attribute.

    True-or-false attributes are promises of the caller's: they decide what is legal, not what is known.
    """
    axes = training.axes
    rows = [problem.to_row() for problem in training.problems]
    choices = training.op.problem_type.CHOICES
    return {
        "axes": {
            name: [int(axes[:, index].min()), int(axes[:, index].max())]
            for index, name in enumerate(training.op.problem_type.AXES)
        },
        "choices": {
            name: [value for value in values if any(row[name] == value for row in rows)]
            for name, values in choices.items()
            if set(values) != {False, True}
        },
    }
