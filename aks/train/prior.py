"""The prior: what is known of an op before a device is measured. A latency model, and which problems matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xgboost as xgb

from aks.core.artifact import digest
from aks.core.config import Config
from aks.core.errors import AksError, ArtifactError
from aks.core.measurement import Regime
from aks.core.problem import Problem
from aks.core.record import split_families
from aks.ops.op import Op
from aks.train.dataset import TrainingSet
from aks.train.latency import LatencyModel

PROBLEMS_FILE, BOOSTER_FILE = "problems.parquet", "latency-{}.ubj"
NUM_BOOSTERS = 4
"""More than a selector's model has: their disagreement is what picking goes by."""
_REDO = "write it again: aks train --prior"


@dataclass(frozen=True)
class Prior:
    """problems [P]: those that training had, with their families, without any latency.

    configs: those that were timed and never wrong, the vendor's first. held_out: families that training
    saw nothing of.
    """

    model: LatencyModel
    regime: Regime
    configs: tuple[Config, ...]
    problems: tuple[Problem, ...]
    families: tuple[frozenset[str], ...]
    held_out: tuple[str, ...] = ()

    @property
    def op(self) -> Op:
        """What it is a prior of."""
        return self.model.op


def make_prior(training_set: TrainingSet, model: LatencyModel) -> Prior:
    """The prior that a model of ``training_set`` is: problems once each, whatever device they were measured on."""
    families: dict[Problem, frozenset[str]] = {}
    for problem, names in zip(training_set.problems, training_set.families, strict=True):
        families[problem] = families.get(problem, frozenset()) | names
    configs = tuple(config for config, known in zip(training_set.configs, training_set.known, strict=True) if known)
    return Prior(model, training_set.regime, configs, tuple(families), tuple(families.values()))


def save_prior(prior: Prior, folder: Path) -> dict[str, Any]:
    """Write its files into ``folder``; the entry ``prior`` of ``selector.json``, which lists and hashes them."""
    rows = [
        {**problem.to_row(), "families": ";".join(sorted(names))}
        for problem, names in zip(prior.problems, prior.families, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(folder / PROBLEMS_FILE)
    names = [BOOSTER_FILE.format(index) for index in range(len(prior.model.boosters))]
    for name, booster in zip(names, prior.model.boosters, strict=True):
        booster.save_model(folder / name)
    return {
        "problems": PROBLEMS_FILE,
        "boosters": names,
        "configs": [config.to_row() for config in prior.configs],
        "sha256": {name: digest((folder / name).read_bytes()) for name in (PROBLEMS_FILE, *names)},
    }


def load_prior(selector: Mapping[str, Any], folder: Path, op: Op) -> Prior:
    """The prior beside a ``selector.json`` that was checked to be of ``op``.

    Raises
    ------
    ArtifactError
        If the selector has none, or a file of it is missing, altered or damaged.
    """
    entry = selector.get("prior")
    if not isinstance(entry, dict):
        raise ArtifactError(f"the selector in {folder} has no prior; {_REDO}")
    try:
        for name, wanted in entry["sha256"].items():
            if digest((folder / name).read_bytes()) != wanted:
                raise ArtifactError(f"{folder / name} was altered: its sha256 is not selector.json's; {_REDO}")
        missing = {entry["problems"], *entry["boosters"]} - set(entry["sha256"])
        if missing:
            raise ArtifactError(f"{folder} has no sha256 of {', '.join(sorted(missing))}; {_REDO}")
        rows = pd.read_parquet(folder / entry["problems"]).to_dict("records")
        boosters = [xgb.Booster(model_file=str(folder / name)) for name in entry["boosters"]]
        for booster in boosters:
            booster.set_param({"nthread": 1})
        return Prior(
            LatencyModel(op, tuple(boosters)),
            Regime(selector["regime"]),
            tuple(op.config_type.from_row(row) for row in entry["configs"]),
            tuple(op.problem_type.from_row({str(name): value for name, value in row.items()}) for row in rows),
            tuple(frozenset(split_families(row["families"])) for row in rows),
            tuple(map(str, selector["dataset"]["held_out_families"])),
        )
    except ArtifactError:
        raise
    except (AksError, KeyError, TypeError, ValueError, AttributeError, OSError, xgb.core.XGBoostError) as error:
        raise ArtifactError(f"the prior in {folder} cannot be read: {type(error).__name__} {error}; {_REDO}") from error
