"""``aks calibrate``: a selector for a new GPU within minutes; and how good that is, on recorded ones."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from aks.cli.collect import visible_device
from aks.cli.options import Data, OpName, RegimeName, Seed, command_line, data_paths, split_words
from aks.core.errors import DataError
from aks.core.measurement import Regime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from aks.core.device import DeviceSpec
    from aks.core.problem import Problem
    from aks.ops.op import Op
    from aks.train.dataset import TrainingSet
    from aks.train.picks import Pick
    from aks.train.prior import Prior

HELD_OUT = "exaone,falcon,gemma-2,gemma-3,glm-4,phi"
CANDIDATES, ROUND_SECONDS = 1500, 45.0
_PAUSE_SECONDS = 60.0

calibrate = typer.Typer(invoke_without_command=True)


@calibrate.callback()
def run(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(min=0.0, help="How long to measure, compiling and picking included.")] = 5.0,
    prior: Annotated[Path, typer.Option(help="Folder, or its selector.json, of 'aks train --prior'.")] = Path(
        "runs/gemm"
    ),
    device: Annotated[str, typer.Option(help="Row of devices.toml; with --plan-only and --measured, any row.")] = "",
    sms: Annotated[int | None, typer.Option(min=1, help="Of the GPU's SMs, so many: a partition.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for selector.json and the measurements.")] = Path("runs/calibrated"),
    plan_only: Annotated[Path | None, typer.Option(help="CSV file to write for 'aks collect --problems'.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Store or Parquet file: adapt to it, measure nothing.", exists=True)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Adapt a trained selector to the GPU of this machine in a few minutes; 'simulate' says how well that goes.

    Picks the problems, and for each the configs, on whose order the prior's models disagree; measures
    them; adapts; and so on. Writes selector.json for 'aks export'. Needs the 'gpu' and the 'train'
    extra. Where the GPU's host has not the latter: write a plan elsewhere, measure it there, adapt elsewhere.

    \b
    Examples:
      aks train --on-everything --prior
      aks calibrate --minutes 5 --out runs/a100
      aks calibrate --device a100 --plan-only plan.csv
      aks collect --problems plan.csv --out runs/a100.db
      aks calibrate --measured runs/a100.db --out runs/a100
    """
    if context.invoked_subcommand:
        return
    known = _read_prior(prior)
    if measured is not None:
        if plan_only is not None:
            raise typer.BadParameter("--measured adapts, --plan-only plans; leave one out")
        _write(known, *_read_measured(known, measured, device, sms), out, seed)
        return
    if plan_only is not None:
        picks = _pick(known, _named(device, sms) or visible_device("", sms), None, 60 * minutes, seed)
        _write_plan(known.op, picks, plan_only)
        print(f"{len(picks)} problems, {sum(len(one.configs) for one in picks)} candidates: written to {plan_only}")
        return
    target = visible_device(device, sms)
    found = _measure(known, target, minutes, out, seed)
    _write(known, target, found, out, seed)


def _named(device: str, sms: int | None) -> DeviceSpec | None:
    """The device of that name, or ``sms`` of its SMs; None without a name."""
    from aks.core.device import find_device

    if not device:
        return None
    return find_device(device).partition(sms) if sms else find_device(device)


def _read_prior(path: Path) -> Prior:
    from aks.export.selector import check_selector, read_selector
    from aks.ops import find_op
    from aks.train.prior import load_prior
    from aks.train.selector import SELECTOR_FILE

    path = path / SELECTOR_FILE if path.is_dir() else path
    selector, _ = read_selector(path)
    op = find_op(str(selector.get("op")))
    check_selector(selector, op)
    return load_prior(selector, path.parent, op)


def _read_measured(prior: Prior, path: Path, device: str, sms: int | None) -> tuple[DeviceSpec, TrainingSet]:
    """The one device that a file has measurements of, and these."""
    found = _measurements(prior, path)
    devices = set(found.devices)
    if len(devices) > 1:
        names = ", ".join(sorted(entry.name for entry in devices))
        raise DataError(f"{path} has measurements of {names}; wanted one device: collect each into a file of its own")
    target = devices.pop()
    wanted = _named(device, sms)
    if wanted and wanted != target:
        raise DataError(f"{path} has measurements of {target.name}; wanted {wanted.name}: leave --device out")
    return target, found


def _measurements(prior: Prior, path: Path) -> TrainingSet:
    from aks.collect.datafile import read_table
    from aks.core.artifact import digest
    from aks.train.dataset import from_frame

    frame = read_table(path, prior.op).to_pandas()
    return from_frame(frame, prior.op, regime=prior.regime, path=path.as_posix(), sha256=digest(path.read_bytes()))


def _measure(prior: Prior, device: DeviceSpec, minutes: float, out: Path, seed: int) -> TrainingSet | None:
    """Pick and measure in turns until the time is up; what the store has from an earlier call counts."""
    from aks.collect.environment import current_environment
    from aks.collect.runner import collect
    from aks.collect.sources import Workload

    out.mkdir(parents=True, exist_ok=True)
    store = out / "calibrate.db"
    deadline = monotonic() + 60 * minutes
    found = _measurements(prior, store) if store.is_file() else None
    asked: set[Problem] = set()
    while (left := deadline - monotonic()) > 0:
        picks = _pick(prior, device, found, min(ROUND_SECONDS, left), seed, asked)
        if not picks:
            break
        asked |= {one.problem for one in picks}
        summary = collect(
            prior.op,
            [Workload(one.problem, tuple(sorted(one.families))) for one in picks],
            out=store,
            device=device,
            environment=current_environment(),
            regimes=(prior.regime,),
            configs={one.problem: one.configs for one in picks},
            minutes=max(0.0, deadline - monotonic()) / 60,
        )
        if summary.candidates:
            found = _measurements(prior, store)
    return found


def _pick(
    prior: Prior,
    device: DeviceSpec,
    measured: TrainingSet | None,
    seconds: float,
    seed: int,
    asked: Collection[Problem] = (),
) -> list[Pick]:
    """Out of the prior's problems, at most ``CANDIDATES`` drawn by ``seed``."""
    import numpy as np

    from aks.train.calibrate import adapt, on_device
    from aks.train.picks import pick

    drawn = np.random.default_rng(seed).permutation(len(prior.problems))[:CANDIDATES]
    problems = [prior.problems[row] for row in drawn]
    candidates = on_device(prior, device, problems, [prior.families[row] for row in drawn], measured)
    # What was measured tells of its neighbours; what was asked for and gave nothing is not asked for again.
    timed = np.isfinite(candidates.latency_us)
    kept = [row for row, problem in enumerate(candidates.problems) if timed[row].any() or problem not in asked]
    return pick(adapt(prior, measured, seed), candidates.subset(kept), seconds)


def _write_plan(op: Op, picks: Sequence[Pick], path: Path) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            names = [*picks[0].problem.to_row(), "families", "configs"]
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for one in picks:
                configs = ";".join(config.key() for config in one.configs)
                families = ";".join(sorted(one.families))
                writer.writerow({**one.problem.to_row(), "families": families, "configs": configs})
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}; name a file in a folder that exists") from error


def _write(prior: Prior, device: DeviceSpec, measured: TrainingSet | None, out: Path, seed: int) -> None:
    from aks.train.calibrate import calibrate as fit_to
    from aks.train.fit import Options
    from aks.train.selector import write_selector

    options = Options(seed=seed)
    training, fitted = fit_to(prior, device, measured, options, lambda line: print(line, file=sys.stderr))
    seen = set[str]().union(*measured.families) if measured else set()
    held_out = [name for name in prior.held_out if name not in seen]
    path, selector = write_selector(out, fitted, training, training, held_out, options, command=command_line())
    tree = selector["metrics"]
    print(
        f"{len(measured) if measured else 0} problems measured on {device.name}; tree of {tree['num_leaves']:.0f} "
        f"leaves and {tree['depth']:.0f} levels: {path}"
    )


@calibrate.command()
def simulate(
    op: OpName = "gemm",
    data: Data = None,
    devices: Annotated[str, typer.Option(help="Comma-separated devices of the data; default: each of them.")] = "",
    minutes: Annotated[str, typer.Option(help="Where to score, comma-separated.")] = "0,0.5,1,2,5",
    held_out: Annotated[str, typer.Option(help="Families that neither prior nor picks see.")] = HELD_OUT,
    trees: Annotated[bool, typer.Option(help="Score our trees too, at the first and the last minute.")] = True,
    measured: Annotated[
        Path | None,
        typer.Option(help="Instead: score what this calibration measured, minute by minute, on --data.", exists=True),
    ] = None,
    prior: Annotated[Path, typer.Option(help="With --measured: the prior that it started from.")] = Path("runs/gemm"),
    regime: RegimeName = Regime.COLD,
    seed: Seed = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
) -> None:
    """Replay calibration on recorded devices: regret against minutes, next to random picks.

    Each device is held out in turn: the prior learns from the others. What a minute buys is an
    assumption, written with the figures. With --measured a calibration that was done is scored
    instead, by the times of its measurements; pauses between its calls do not count.

    \b
    Examples:
      aks calibrate simulate --devices h200-48sm,h100-80gb-hbm3 --minutes 0,0.25,0.5,1 --json curve.json
      aks calibrate simulate --measured runs/a100/calibrate.db --prior runs/gemm --data data/gemm/a100.parquet
    """
    from aks.evaluate.calibration import Clock, replay_measured, to_json
    from aks.evaluate.calibration import simulate as replay
    from aks.evaluate.tables import print_calibration
    from aks.ops import find_op
    from aks.train.dataset import load
    from aks.train.fit import Options

    try:
        marks = sorted({float(word) for word in split_words(minutes, "minutes")})
    except ValueError:
        raise typer.BadParameter(f"minutes is {minutes!r}; write numbers, comma-separated") from None
    clock, points = Clock(), []

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    if measured is not None:
        known = _read_prior(prior)
        truth = load(data_paths(known.op.name, data), known.op, regime=known.regime)
        points = replay_measured(known, truth, _measured_until(known, measured), marks, seed=seed, say=say)
    else:
        known_op = find_op(op)
        everything = load(data_paths(known_op.name, data), known_op, regime=regime)
        present = sorted({entry.name for entry in everything.devices})
        families, options = split_words(held_out, "held-out"), Options(seed=seed)
        for name in split_words(devices, "devices", present) if devices else present:
            points += replay(everything, name, families, marks, options=options, trees=trees, clock=clock, say=say)
    print_calibration(points)
    if json_out:
        json_out.write_text(json.dumps(to_json(points, clock), indent=1) + "\n")


def _measured_until(prior: Prior, path: Path) -> Callable[[float], TrainingSet | None]:
    """What a file has of its first so many minutes; pauses of a minute and more do not count."""
    import pandas as pd

    from aks.collect.datafile import read_table
    from aks.train.dataset import from_frame

    frame = read_table(path, prior.op).to_pandas()
    frame = frame[frame["regime"] == prior.regime.value].sort_values("measured_at", kind="stable")
    steps = pd.to_datetime(frame["measured_at"]).diff().dt.total_seconds().fillna(0.0)
    minutes = steps.where(steps < _PAUSE_SECONDS, 0.0).cumsum() / 60

    def until(minute: float) -> TrainingSet | None:
        part = frame[minutes < minute]
        return from_frame(part, prior.op, regime=prior.regime, path=path.as_posix()) if len(part) else None

    return until
