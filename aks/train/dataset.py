"""Measured data as matrices: which problem, which config, what it cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import DataError
from aks.core.features import Feature, evaluate_columns
from aks.core.measurement import Regime, Status
from aks.core.problem import Problem
from aks.core.record import Environment, split_families
from aks.data.parquet import dataset_hash, read_frame
from aks.ops.op import Op

_UNTRUSTED = (Status.WRONG_RESULT.value, Status.NONDETERMINISTIC.value)
_TIMED = tuple(status.value for status in Status if status.timed)
_DEVICE_COLUMNS = ["device", *(field.name for field in fields(DeviceSpec) if field.name != "name")]


@dataclass(frozen=True)
class Source:
    """Where the measurements came from; ``skipped`` problems had no latency of the vendor's call."""

    path: str = ""
    sha256: str = ""
    rows: int = 0
    skipped: int = 0
    environment: dict[str, str] | None = None


@dataclass(frozen=True)
class TrainingSet:
    """P measured problems by C configs, in one regime. Column 0 is the baseline, ``op.vendor``.

    The other columns are what the data has of any regime and device, in the space's order.
    latency_us [P, C] float64: the median of all samples (coarse for configs that were raced out);
    ``inf`` where the config is illegal, failed or was never right; ``nan`` where nobody tried.
    legal [P, C] bool: what the op's rules say. legal_undeclared [P, C] bool: the same if the caller
    had declared nothing (every true-or-false attribute of the problem false).
    features [P, F] int64: ``op.features``. trusted [C] bool: False for a config that was once wrong
    or not deterministic, on any problem, device or regime; such a config is nobody's oracle and
    never enters a portfolio.
    """

    op: Op
    regime: Regime
    problems: tuple[Problem, ...]
    devices: tuple[DeviceSpec, ...]
    families: tuple[frozenset[str], ...]
    configs: tuple[Config, ...]
    latency_us: NDArray[np.float64]
    legal: NDArray[np.bool_]
    legal_undeclared: NDArray[np.bool_]
    features: NDArray[np.int64]
    trusted: NDArray[np.bool_]
    source: Source

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def axes(self) -> NDArray[np.int64]:
        """[P, A]: the problems' axes (m, n, k)."""
        names = self.op.problem_type.AXES
        return np.array([[getattr(problem, name) for name in names] for problem in self.problems], dtype=np.int64)

    @property
    def columns(self) -> dict[str, NDArray[np.int64]]:
        """What formulas may read of problems and devices: arrays [P] by name."""
        return variable_columns(self.problems, self.devices)

    @property
    def oracle_us(self) -> NDArray[np.float64]:
        """[P]: latency of the fastest measured config. A minimum over noisy medians, so a little too good."""
        return np.nanmin(np.where(self.trusted, self.latency_us, np.inf), axis=1)

    @property
    def known(self) -> NDArray[np.bool_]:
        """[C]: configs that were timed on some problem and never wrong: those that anything can be said of."""
        return self.trusted & np.isfinite(self.latency_us).any(axis=0)

    @property
    def baseline_us(self) -> NDArray[np.float64]:
        """[P]: latency of the vendor's call."""
        return self.latency_us[:, 0]

    def subset(self, rows: Sequence[int] | NDArray) -> TrainingSet:
        """The problems at ``rows`` (indices), in that order."""
        index = np.asarray(rows, dtype=np.intp)
        return replace(
            self,
            problems=tuple(self.problems[i] for i in index),
            devices=tuple(self.devices[i] for i in index),
            families=tuple(self.families[i] for i in index),
            latency_us=self.latency_us[index],
            legal=self.legal[index],
            legal_undeclared=self.legal_undeclared[index],
            features=self.features[index],
        )


def load(
    path: Path | Sequence[Path], op: Op, *, regime: Regime | str = Regime.COLD, also: Iterable[Config] = ()
) -> TrainingSet:
    """Read measurement files (one a device) of ``op``; ``also`` as in ``from_frame``.

    Raises
    ------
    DataError
        If a file is missing, damaged, altered, of another op, schema version or config space, or
        holds nothing of ``regime`` or nothing of the vendor's call.
    """
    frame, names, sha256 = read_frames(path, op)
    return from_frame(frame, op, regime=regime, path=names, sha256=sha256, also=also)


def read_frames(path: Path | Sequence[Path], op: Op) -> tuple[pd.DataFrame, str, str]:
    """All rows of measurement files, the files' names, and a hash of their contents.

    Raises
    ------
    DataError
        If a file is missing, damaged, altered, or of another op, schema version or config space.
    """
    paths = [path] if isinstance(path, Path) else [Path(entry) for entry in path]
    frame = pd.concat([read_frame(entry, op) for entry in paths], ignore_index=True)
    digests = [dataset_hash(entry) for entry in paths]
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return frame, " ".join(entry.as_posix() for entry in paths), sha256


def present_regimes(frame: pd.DataFrame) -> list[Regime]:
    """Regimes that ``frame`` has rows of, in the order of ``Regime``."""
    found = set(frame["regime"])
    return [regime for regime in Regime if regime.value in found]


def from_frame(
    frame: pd.DataFrame,
    op: Op,
    *,
    regime: Regime | str = Regime.COLD,
    path: str = "",
    sha256: str = "",
    also: Iterable[Config] = (),
) -> TrainingSet:
    """Pivot rows (``Record.to_row``) into a ``TrainingSet``; several runs of one cell are pooled.

    Configs that no row has, in whatever regime, get no column, unless they are among ``also``: those of
    a tree, say, that is to be scored on this data.

    A run that timed a config outweighs one that failed to launch it (a worker may die of its
    neighbour's fault), but a wrong result outweighs everything.

    Raises
    ------
    DataError
        As ``load``.
    """
    _check_columns(frame, op, path)
    untrusted = frame.loc[frame["status"].isin(_UNTRUSTED)]
    problem_columns = [field.name for field in fields(op.problem_type)]
    config_columns = [field.name for field in fields(op.config_type)]
    known = [_known(key, op) for key in _factorize(frame, config_columns)[1]]
    others = sorted({*known, *also} - {op.vendor}, key=op.space.places.__getitem__)
    configs = (op.vendor, *others)
    column_of = {config: index for index, config in enumerate(configs)}

    rows = frame.loc[frame["regime"] == str(Regime(regime))]
    if rows.empty:
        raise DataError(f"{path or 'data'} has no rows of regime {str(regime)!r}; it has {set(frame['regime'])}")
    row_index, row_keys = _factorize(rows, [*_DEVICE_COLUMNS, *problem_columns])
    problems = [op.problem_type.from_row(key) for key in row_keys]
    devices = [DeviceSpec.from_row(key) for key in row_keys]
    config_index, config_keys = _factorize(rows, config_columns)
    column_index = np.array([column_of[_known(key, op)] for key in config_keys])[config_index]

    latency_us = _pool(row_index, column_index, rows, (len(problems), len(configs)))
    families: list[frozenset[str]] = [frozenset()] * len(problems)
    for index, text in set(zip(row_index.tolist(), rows["families"], strict=True)):
        families[index] |= frozenset(split_families(text))
    trusted = np.ones(len(configs), dtype=bool)
    for key in _factorize(untrusted, config_columns)[1]:
        trusted[column_of[_known(key, op)]] = False

    source = Source(path, sha256, len(frame), int((~np.isfinite(latency_us[:, 0])).sum()), _environment(rows))
    training_set = lay_out(op, Regime(regime), problems, devices, families, configs, latency_us, trusted, source)
    kept = np.flatnonzero(np.isfinite(training_set.baseline_us))
    if not len(kept):
        raise DataError(f"{path or 'data'} has no latency of the vendor's call {op.vendor.key()!r} in {str(regime)!r}")
    return training_set.subset(kept)


def lay_out(
    op: Op,
    regime: Regime,
    problems: Sequence[Problem],
    devices: Sequence[DeviceSpec],
    families: Sequence[frozenset[str]],
    configs: Sequence[Config],
    latency_us: NDArray[np.float64],
    trusted: NDArray[np.bool_],
    source: Source,
) -> TrainingSet:
    """The set, with what the op's rules and formulas say of it; what is illegal gets ``inf``, whatever it took."""
    legal = legality(op, configs, problems, devices)
    return TrainingSet(
        op=op,
        regime=regime,
        problems=tuple(problems),
        devices=tuple(devices),
        families=tuple(families),
        configs=tuple(configs),
        latency_us=np.where(legal, latency_us, np.inf),
        legal=legal,
        legal_undeclared=legality(op, configs, [undeclared(problem) for problem in problems], devices),
        features=feature_matrix(op, problems, devices),
        trusted=trusted,
        source=source,
    )


def _check_columns(frame: pd.DataFrame, op: Op, path: str) -> None:
    needed = {"regime", "status", "latency_us", "samples_us", "families", "space_fingerprint", *_DEVICE_COLUMNS}
    needed |= {field.name for kind in (op.problem_type, op.config_type, Environment) for field in fields(kind)}
    missing = sorted(needed - set(frame.columns))
    if missing:
        raise DataError(f"{path or 'data'} lacks the columns {', '.join(missing)}; it is no file of 'aks data merge'")
    if frame.empty:
        raise DataError(f"{path or 'data'} has no rows; collect some with 'aks collect'")
    foreign = set(frame["space_fingerprint"]) - {op.space.fingerprint}
    if foreign:
        raise DataError(
            f"{path or 'data'} has rows of config space {sorted(foreign)}; {op.name!r} now has "
            f"{op.space.fingerprint!r}: measure again with 'aks collect'"
        )


def _factorize(frame: pd.DataFrame, columns: list[str]) -> tuple[NDArray[np.intp], list[dict]]:
    """Number the distinct rows of ``columns`` in order of appearance: index per row, and the rows."""
    index = frame.groupby(columns, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    distinct = frame.loc[:, columns].drop_duplicates()
    values = zip(*(distinct[name].to_list() for name in columns), strict=True)
    return index, [dict(zip(columns, row, strict=True)) for row in values]


def _known(key: dict, op: Op) -> Config:
    config = op.config_type.from_row(key)
    if config not in op.space.places:
        raise DataError(f"data has a config that is not in the space of {op.name!r}: {config.key()!r}")
    return config


def _pool(row: NDArray, column: NDArray, rows: pd.DataFrame, shape: tuple[int, int]) -> NDArray[np.float64]:
    """[P, C] medians; cells measured by several runs get the median of all their samples."""
    latency_us = np.full(shape, np.nan)
    status = rows["status"].to_numpy(dtype=object)
    timed = np.isin(status, _TIMED)
    latency_us[row[~timed], column[~timed]] = np.inf
    # A full measurement beats the first few samples of a run that raced the config out.
    for chosen in (timed & (status == Status.RACED_OUT.value), status == Status.OK.value):
        cells = row[chosen] * shape[1] + column[chosen]
        medians = rows["latency_us"].to_numpy(dtype=np.float64)[chosen]
        latency_us.flat[cells] = medians
        _, first, counts = np.unique(cells, return_index=True, return_counts=True)
        samples = rows["samples_us"].to_numpy(dtype=object)[chosen]
        for cell in cells[first[counts > 1]]:
            latency_us.flat[cell] = median([s for entry in samples[cells == cell] for s in entry])
    wrong = np.isin(status, _UNTRUSTED)
    latency_us[row[wrong], column[wrong]] = np.inf
    return latency_us


def _environment(rows: pd.DataFrame) -> dict[str, str]:
    return {field.name: ", ".join(sorted(set(rows[field.name].astype(str)))) for field in fields(Environment)}


def undeclared(problem: Problem) -> Problem:
    """The problem of a caller who promises nothing: every true-or-false attribute is False."""
    promises = {name: False for name, choices in problem.CHOICES.items() if set(choices) == {False, True}}
    return replace(problem, **promises)


def variable_columns(problems: Iterable[Problem], devices: Iterable[DeviceSpec]) -> dict[str, NDArray[np.int64]]:
    """Variables of each problem on its device: arrays [P] by name."""
    table = [device.variables() | problem.variables() for problem, device in zip(problems, devices, strict=True)]
    return {name: np.array([row[name] for row in table], dtype=np.int64) for name in (table[0] if table else ())}


def feature_matrix(op: Op, problems: Iterable[Problem], devices: Iterable[DeviceSpec]) -> NDArray[np.int64]:
    """``op.features`` [P, F] of each problem on its device."""
    return evaluate_columns(op.features, variable_columns(problems, devices))


def legality(
    op: Op, configs: Sequence[Config], problems: Sequence[Problem], devices: Sequence[DeviceSpec]
) -> NDArray[np.bool_]:
    """[P, C]: whether ``op.space``'s rules allow each config for each problem on its device."""
    columns = variable_columns(problems, devices)
    result = np.zeros((len(problems), len(configs)), dtype=bool)
    for device in set(devices):
        rows = np.array([index for index, other in enumerate(devices) if other == device])
        here = {name: values[rows] for name, values in columns.items()}
        holds: dict[str, NDArray[np.bool_]] = {}  # many configs share one folded formula
        for index, config in enumerate(configs):
            text = op.space.legality(config, device)
            if text not in holds:
                holds[text] = evaluate_columns((Feature("legal", text),), here)[:, 0] != 0
            result[rows, index] = holds[text]
    return result
