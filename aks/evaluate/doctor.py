"""Whether what was recorded still holds: a few sentinel problems, measured again on the GPU at hand.

``choose_sentinels`` picks them of files of measurements and writes down what the tree's choice and the vendor's call
took, in the regime that the tree was trained for; ``examine`` has both measured again in that regime, and says what has
drifted. The file goes with one tree, by its hash.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from aks.core import artifact
from aks.core.bundle import TREE_FILE
from aks.core.config import Config
from aks.core.errors import AksError, ArtifactError
from aks.core.measurement import Regime
from aks.core.problem import Problem
from aks.core.record import Environment
from aks.ops.op import Op
from aks.runtime.predictor import Predictor

SENTINELS_FILE = "sentinels.json"
_FORMAT, _VERSION = "aks-sentinels", 2
LATENCY_DRIFT = 0.10
"""Median latency, of choices or of the vendor's call, may differ by so much from what was recorded."""
GAIN_DRIFT = 0.03
"""The median gain over the vendor's call may have become smaller by so much."""
SLOWER, LOSS, SHARE = 0.05, 0.10, 0.10
"""Choices that are slower than the vendor's call by so much, or lost so much of their gain; the share that is too many.

Runs differ by 1.6 % (data/gemm/README.md), so one problem says little: each criterion is over all of them.
"""

Measure = Callable[[Problem, Sequence[Config], Regime], Mapping[Config, float | str]]
"""Microseconds of each config on a problem in a regime, or what went wrong with it."""


@dataclass(frozen=True, slots=True)
class Sentinel:
    """A problem, the tree's choice for it, and what it and the vendor's call took, in microseconds."""

    problem: Problem
    config: Config
    config_us: float
    vendor_us: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """Sentinels as they were measured: in which regime, with which software.

    datasets: SHA-256 of the files of measurements that they come from, in hex, by the files' paths.
    """

    sentinels: list[Sentinel]
    environment: Environment
    regime: Regime
    datasets: dict[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentinel measured again; error says why it could not be."""

    sentinel: Sentinel
    config_us: float = 0.0
    vendor_us: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Checkup:
    """What ``examine`` found.

    latency_ratio and vendor_ratio are medians of measured over recorded latency; gain_ratio that of the gain over
    the vendor's call; slower counts choices that lose to it. remarks are to know, faults make it unfit.
    """

    findings: list[Finding]
    latency_ratio: float
    vendor_ratio: float
    gain_ratio: float
    slower: int
    faults: list[str]
    remarks: list[str]

    @property
    def is_fit(self) -> bool:
        """Whether the tree may go on as it is."""
        return not self.faults


def choose_sentinels(
    op: Op, predictor: Predictor, rows: Sequence[Mapping[str, Any]], datasets: Mapping[str, str], count: int = 30
) -> Recorded:
    """Problems of rows of measurements (``aks.core.record``) that are spread evenly over their axes.

    Those count for which the tree chooses a kernel that was measured to the end, as the vendor's call was, in the
    regime that the tree was trained for. datasets as of ``Recorded``.

    Raises
    ------
    ArtifactError
        If there are none.
    """
    regime = regime_of(predictor)
    measured = [row for row in rows if row["regime"] == regime.value]
    latencies: dict[Problem, dict[Config, list[float]]] = {}
    for row in measured:
        if row["status"] == "ok":
            problem, config = op.problem_type.from_row(dict(row)), op.config_type.from_row(dict(row))
            latencies.setdefault(problem, {}).setdefault(config, []).append(row["latency_us"])
    found = []
    for problem, known in latencies.items():
        config = predictor.predict(**problem.to_row())
        if config != op.vendor and config in known and op.vendor in known:
            found.append(Sentinel(problem, config, median(known[config]), median(known[op.vendor])))
    if not found:
        raise ArtifactError(
            f"{predictor.bundle.folder} chooses nothing of its own that these measurements have in regime "
            f"{regime.value!r}, for which it was trained"
        )
    newest = max(measured, key=lambda row: row["measured_at"])
    environment = Environment(**{name: newest[name] for name in Environment.__slots__})
    return Recorded(_spread(found, op.problem_type.AXES, count), environment, regime, dict(datasets))


def regime_of(predictor: Predictor) -> Regime:
    """The regime whose latencies the tree was trained on.

    Raises
    ------
    ArtifactError
        If its manifest names none.
    """
    named = predictor.bundle.manifest.get("regime")
    try:
        return Regime(named)
    except ValueError:
        raise ArtifactError(
            f"{predictor.bundle.folder} is of regime {named!r}; known: {', '.join(Regime)}; {artifact.REDO}"
        ) from None


def _spread(found: Sequence[Sentinel], axes: Sequence[str], count: int) -> list[Sentinel]:
    """So many, the first axis (rows) spread evenly on a log scale, the others in turn small and large."""
    left = sorted(found, key=lambda one: [getattr(one.problem, axis) for axis in axes])
    rows = [math.log(getattr(one.problem, axes[0])) for one in left]
    low, high = rows[0], rows[-1]
    chosen: list[Sentinel] = []
    for place in range(min(count, len(left))):
        wanted = low + (high - low) * place / max(1, count - 1)
        nearest = min(abs(row - wanted) for row in rows)
        ties = [at for at, row in enumerate(rows) if abs(row - wanted) == nearest]
        at = ties[place * 7 % len(ties)]
        chosen.append(left.pop(at))
        rows.pop(at)
    return sorted(chosen, key=lambda one: [getattr(one.problem, axis) for axis in axes])


def write_sentinels(predictor: Predictor, recorded: Recorded) -> Path:
    """Write them beside the predictor's tree. Returns the file."""
    folder = predictor.bundle.folder
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "op": predictor.tree.op,
        "device": predictor.tree.device,
        "tree_sha256": _tree_hash(folder),
        "regime": recorded.regime.value,
        "datasets": recorded.datasets,
        "environment": asdict(recorded.environment),
        "sentinels": [
            {
                "problem": one.problem.to_row(),
                "config": one.config.to_row(),
                "config_us": one.config_us,
                "vendor_us": one.vendor_us,
            }
            for one in recorded.sentinels
        ],
    }
    path = folder / SENTINELS_FILE
    path.write_bytes(artifact.dump(artifact.seal(document), indent=1))
    return path


def carry_sentinels(source: Path, target: Path) -> bool:
    """Copy the sentinels of one folder to another that has the same tree. Returns whether there were any."""
    path = source / SENTINELS_FILE
    # A damaged file is not worth carrying, and no reason to fail: 'aks doctor' says what it lacks.
    try:
        known = path.exists() and artifact.parse(path.read_bytes(), path).get("tree_sha256")
    except ArtifactError:
        known = None
    if known != _tree_hash(target):
        return False
    if source.resolve() != target.resolve():
        shutil.copyfile(path, target / SENTINELS_FILE)
    return True


def read_sentinels(op: Op, folder: Path) -> Recorded:
    """The sentinels of an exported folder.

    Raises
    ------
    ArtifactError
        If there are none, or they are of another tree or damaged.
    """
    path = folder / SENTINELS_FILE
    redo = "write them of its measurements: aks data sentinels"
    try:
        document = json.loads(path.read_text())
        if (document["format"], document["version"]) != (_FORMAT, _VERSION):
            raise ArtifactError(f"{path} has another format or version; {redo}")
        if artifact.seal(document) != document:
            raise ArtifactError(f"{path} was altered: its content does not match its sha256; {redo}")
        if document["tree_sha256"] != _tree_hash(folder):
            raise ArtifactError(f"{path} is of another tree than {TREE_FILE} beside it; {redo}")
        sentinels = [
            Sentinel(
                op.problem_type.from_row(row["problem"]),
                op.config_type.from_row(row["config"]),
                float(row["config_us"]),
                float(row["vendor_us"]),
            )
            for row in document["sentinels"]
        ]
        if not sentinels:
            raise ArtifactError(f"{path} names no problem; {redo}")
        datasets = {str(name): str(sha256) for name, sha256 in document["datasets"].items()}
        return Recorded(sentinels, Environment(**document["environment"]), Regime(document["regime"]), datasets)
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no {SENTINELS_FILE}; {redo}") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error!r}; {redo}") from error


def examine(op: Op, recorded: Recorded, present: Environment, measure: Measure) -> Checkup:
    """Measure sentinels in their regime and compare: one after the other, choice and vendor's call side by side."""
    findings = [_examine(op, one, recorded.regime, measure) for one in recorded.sentinels]
    good = [finding for finding in findings if not finding.error]
    faults = [
        f"{one.sentinel.config.key()} on {one.sentinel.problem.key()}: {one.error}" for one in findings if one.error
    ]
    latency, vendor, gain, slower = 1.0, 1.0, 1.0, 0
    if good:
        latency = median(one.config_us / one.sentinel.config_us for one in good)
        vendor = median(one.vendor_us / one.sentinel.vendor_us for one in good)
        gain = median(map(_gain, good))
        slower = sum(one.config_us > one.vendor_us * (1 + SLOWER) for one in good)
        for what, ratio in (("choices", latency), ("the vendor's calls", vendor)):
            if abs(ratio - 1) > LATENCY_DRIFT:
                faults.append(
                    f"{what} take {ratio:.2f} times what was recorded: other clocks, other work, other kernels?"
                )
        if gain < 1 - GAIN_DRIFT:
            faults.append(f"the gain over the vendor's calls is {gain:.3f} of what was recorded")
        lost = sum(_gain(one) < 1 - LOSS for one in good)
        if lost > SHARE * len(good):
            faults.append(
                f"{lost} of {len(good)} choices lost more than {LOSS:.0%} of their gain over the vendor's call"
            )
        if slower > SHARE * len(good):
            faults.append(f"{slower} of {len(good)} choices are more than {SLOWER:.0%} slower than the vendor's call")
    was, now = asdict(recorded.environment), asdict(present)
    remarks = [f"{name} was {was[name]}, is {now[name]}" for name in was if was[name] != now[name]]
    return Checkup(findings, latency, vendor, gain, slower, faults, remarks)


def _examine(op: Op, sentinel: Sentinel, regime: Regime, measure: Measure) -> Finding:
    try:
        found = measure(sentinel.problem, (op.vendor, sentinel.config), regime)
    except AksError as error:  # a kernel that faults takes the process's GPU with it: so do all that follow
        return Finding(sentinel, error=str(error))
    config, vendor = found.get(sentinel.config, "was not measured"), found.get(op.vendor, "was not measured")
    if isinstance(config, str) or isinstance(vendor, str):
        return Finding(sentinel, error=config if isinstance(config, str) else f"the vendor's call {vendor}")
    return Finding(sentinel, config, vendor)


def _gain(one: Finding) -> float:
    """The gain over the vendor's call now, over that which was recorded."""
    return (one.vendor_us / one.config_us) / (one.sentinel.vendor_us / one.sentinel.config_us)


def _tree_hash(folder: Path) -> str:
    return artifact.digest((folder / TREE_FILE).read_bytes())
