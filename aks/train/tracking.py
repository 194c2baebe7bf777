"""One training as one MLflow run. The only module that imports mlflow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict
from io import StringIO
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb

# mlflow reads these when it is imported: by default it sends usage data, and wants a git to be installed.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import mlflow.xgboost as mlflow_xgboost
from matplotlib.figure import Figure
from mlflow.data.pandas_dataset import from_pandas
from mlflow.models import infer_signature

from aks.train import classifier, latency, pictures
from aks.train.dataset import TrainingSet
from aks.train.examples import make_examples
from aks.train.fit import Options
from aks.train.ladder import LADDER
from aks.train.selector import TrainResult

DEFAULT_URI = "sqlite:///mlflow.db"
ALIAS = "champion"
"""Names the newest version of the registered model, ``models:/aks-gemm-h200@champion``."""

_DESCRIPTIONS = {
    "vendor": "the vendor's call",
    **{rung.name: rung.description for rung in LADDER},
    "xgboost": "XGBoost, expected-regret objective",
    "tree": "**the distilled tree**",
    "portfolio_oracle": "oracle over the portfolio",
    "oracle": "oracle",
}
_NOISY_LOGGERS = ("mlflow", "alembic")


def log_training(result: TrainResult, options: Options, *, experiment: str, tracking_uri: str | None = None) -> str:
    """Log parameters, metrics, data, model, tree and pictures; register the model. Returns the run's id.

    tracking_uri: None means MLFLOW_TRACKING_URI, or else ``sqlite:///mlflow.db``. Inside ``mlflow
    run`` the run that mlflow has started is used, whatever its experiment.
    """
    mlflow.set_tracking_uri(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    with _quiet():
        if "MLFLOW_RUN_ID" not in os.environ:
            mlflow.set_experiment(experiment_id=_experiment_id(experiment))
        with mlflow.start_run(run_name=_run_name(result)) as run:
            mlflow.set_tags(_tags(result) | {"mlflow.note.content": describe(result)})
            mlflow.log_params(_params(result, options))
            _log_metrics(result)
            _log_datasets(result)
            _log_artifacts(result)
            _log_model(result)
    return run.info.run_id


def log_figures(
    name: str,
    *,
    experiment: str,
    tracking_uri: str | None = None,
    description: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
) -> str:
    """Log one run that trains nothing to keep, such as an evaluation; its id.

    description is Markdown; tracking_uri as for ``log_training``.
    """
    mlflow.set_tracking_uri(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    with _quiet():
        if "MLFLOW_RUN_ID" not in os.environ:
            mlflow.set_experiment(experiment_id=_experiment_id(experiment))
        with mlflow.start_run(run_name=name) as run:
            mlflow.set_tag("mlflow.note.content", description)
            mlflow.log_params(dict(params))
            mlflow.log_metrics(dict(metrics))
            for file, table in tables.items():
                mlflow.log_table(table, file)
            for file, figure in figures.items():
                mlflow.log_figure(figure, f"pictures/{file}")
    return run.info.run_id


@contextmanager
def _quiet() -> Iterator[None]:
    """mlflow tells about each migration and version that it makes, and hints at nulls; a caller wants the outcome."""
    loggers = [getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="mlflow")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _experiment_id(name: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("sqlite:///"):
        return mlflow.create_experiment(name)
    # Beside the database: the default is the directory that the command happens to run in.
    root = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns"
    return mlflow.create_experiment(name, artifact_location=(root / name).as_uri())


def _run_name(result: TrainResult) -> str:
    selector = result.selector
    name = f"{selector['op']} {'+'.join(selector['devices'])} {selector['regime']}"
    if "mean_regret" in result.metrics:
        name += f", regret {100 * result.metrics['mean_regret']:.2f} %"
    return name


def _tags(result: TrainResult) -> dict[str, str]:
    selector = result.selector
    return {
        "op": selector["op"],
        "device": ", ".join(selector["devices"]),
        "regime": selector["regime"],
        "held_out": ", ".join(selector["dataset"]["held_out_families"]) or "none",
        "dataset_sha256": selector["dataset"]["sha256"],
        "space_fingerprint": selector["space_fingerprint"],
        "command": selector["command"],
    }


def describe(result: TrainResult) -> str:
    """The run's description: what was trained, and the ladder as a Markdown table."""
    selector, metrics, data = result.selector, result.metrics, result.selector["dataset"]
    lines = [
        f"Selector for **{selector['op']}** on {', '.join(selector['devices'])}, regime {selector['regime']}: "
        f"{len(selector['portfolio'])} configs, {metrics['num_leaves']:.0f} leaves, depth {metrics['depth']:.0f}, "
        f"trained on {data['training_problems']} of {data['problems']} problems.",
        "",
    ]
    if not result.scores:
        return "\n".join([*lines, "No families were held out, so there are no figures."])
    lines += [
        f"Held-out families: {', '.join(data['held_out_families'])} ({metrics['problems']:.0f} problems).",
        "",
        "| chooser | mean regret | p95 | p99 | slower than vendor | speed-up |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result.scores.items():
        regrets = " | ".join(f"{100 * row[key]:.2f} %" for key in ("mean_regret", "p95_regret", "p99_regret"))
        lines.append(
            f"| {_DESCRIPTIONS[name]} | {regrets} | {100 * row['slower_share']:.1f} % | {row['geomean_speedup']:.3f} |"
        )
    return "\n".join(lines)


def _params(result: TrainResult, options: Options) -> dict[str, Any]:
    selector = result.selector
    groups = {name: value for name, value in asdict(options).items() if isinstance(value, dict)}
    groups |= {"classifier": classifier.PARAMETERS, "latency_model": latency.PARAMETERS}
    plain = {name: value for name, value in asdict(options).items() if name not in groups}
    return {
        "op": selector["op"],
        "device": ", ".join(selector["devices"]),
        "regime": selector["regime"],
        "held_out": ", ".join(selector["dataset"]["held_out_families"]),
        **plain,
        **{f"{group}.{name}": value for group, row in groups.items() for name, value in row.items()},
    }


def _log_metrics(result: TrainResult) -> None:
    """One group a chooser (the interface folds at ``/``), and the curve of the portfolio."""
    fitted = result.fitted
    rows = {**result.scores, "tree": {**result.scores.get("tree", {}), **result.metrics}}
    mlflow.log_metrics({f"{name}/{key}": float(value) for name, row in rows.items() for key, value in row.items()})
    for size, regret in enumerate(fitted.portfolio.curve, start=1):
        mlflow.log_metric("portfolio/training_regret", regret, step=size)


def _log_datasets(result: TrainResult) -> None:
    data = result.selector["dataset"]
    for context, part in (("training", result.training), ("held out", result.held_out)):
        if part is None:
            continue
        dataset = from_pandas(
            _problem_table(part),
            source=data["path"].split(" ")[0],
            name=f"{result.selector['op']} {'+'.join(result.selector['devices'])}, {context}",
            digest=data["sha256"][:16],
        )
        mlflow.log_input(dataset, context=context.replace(" ", "_"), tags={"sha256": data["sha256"]})


def _problem_table(part: TrainingSet) -> pd.DataFrame:
    """A row a problem: what it is, whose it is, and what the vendor and the best config took."""
    table = pd.DataFrame([problem.to_row() for problem in part.problems])
    table["families"] = [";".join(sorted(families)) for families in part.families]
    table["vendor_us"], table["oracle_us"] = part.baseline_us, part.oracle_us
    return table


def _log_artifacts(result: TrainResult) -> None:
    fitted, training = result.fitted, result.training
    mlflow.log_artifact(str(result.selector_path))
    names = [feature.name for feature in training.op.features]
    configs = [config.key() for config in fitted.examples.configs]
    mlflow.log_text(fitted.tree.to_text(names, configs), "tree.txt")
    mlflow.log_figure(pictures.portfolio_curve(fitted.portfolio.curve), "pictures/portfolio_curve.png")
    mlflow.log_figure(pictures.feature_importance(fitted, names), "pictures/feature_importance.png")
    choosers = {"XGBoost": fitted.classifier, "distilled tree": fitted.tree}
    figure = pictures.choice_map(training, fitted, choosers)
    if figure is not None:
        mlflow.log_figure(figure, "pictures/choice_map.png")
    if result.held_out is None:
        return
    examples = make_examples(result.held_out, fitted.portfolio.columns)
    choices = {"vendor": np.zeros(len(examples), dtype=np.intp)}
    choices |= {name: choose(examples.inputs) for name, choose in choosers.items()}
    axis = training.op.problem_type.AXES[0]
    mlflow.log_figure(pictures.regret_by_band(examples, choices, axis), "pictures/regret_by_band.png")
    ladder = pd.DataFrame([{"chooser": name, **row} for name, row in result.scores.items()])
    mlflow.log_table(ladder, "ladder.json")


def _log_model(result: TrainResult) -> None:
    """Log the classifier, with the selector beside it, and register it under ``ALIAS``."""
    fitted, selector = result.fitted, result.selector
    name = f"aks-{selector['op']}-{'-'.join(selector['devices'])}"
    features = fitted.examples.inputs.features[:5].astype(np.float32)
    with redirect_stderr(StringIO()):  # "Successfully registered model" is printed, not logged
        model = mlflow_xgboost.log_model(
            fitted.classifier.booster,
            name="xgboost",
            model_format="json",
            signature=infer_signature(features, fitted.classifier.booster.predict(xgb.DMatrix(features))),
            pip_requirements=[f"xgboost=={xgb.__version__}"],  # else mlflow loads the model in a process to find out
            registered_model_name=name,
            metadata={"xgboost_sha256": selector["xgboost"]["sha256"], "dataset_sha256": selector["dataset"]["sha256"]},
        )
    client = mlflow.MlflowClient()
    version = str(model.registered_model_version)
    client.update_model_version(name, version, describe(result))
    client.set_registered_model_alias(name, ALIAS, version)
    for key, value in _tags(result).items():
        client.set_model_version_tag(name, version, key, value)
