"""Regret against minutes: calibration replayed on the recorded full matrix of a device that the prior never saw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import DataError
from aks.core.problem import Problem
from aks.train.calibrate import adapt, calibrate, expected, on_device
from aks.train.dataset import TrainingSet
from aks.train.examples import make_inputs
from aks.train.fit import Options
from aks.train.latency import LatencyModel, fit_latency_model
from aks.train.picks import Seconds, contenders, kinds, member_latencies, pick
from aks.train.prior import NUM_BOOSTERS, Prior, make_prior
from aks.train.splits import split

INFORMATIVE, RANDOM_ALL, RANDOM_FILTERED = "informative", "random, all configs", "random, same filter"
STRATEGIES = (INFORMATIVE, RANDOM_ALL, RANDOM_FILTERED)
MEASURED = "as measured"


@dataclass(frozen=True)
class Clock:
    """What a calibration's time goes into, in seconds: the assumptions of a replay.

    Kernels are compiled while others are measured, in the order of the plan. round: after so long the
    model is adapted and the next problems are picked. thinking: how long that takes; nothing is
    measured or compiled meanwhile. Random picks of all configs need none.
    """

    cost: Seconds = field(default_factory=Seconds)
    round: float = 30.0
    thinking: float = 3.0


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the curve. part: ``held out`` families, which nothing saw; ``unmeasured`` others; or ``all``."""

    device: str
    strategy: str
    minutes: float
    problems: int
    cells: int
    chooser: str
    part: str
    count: int
    mean_regret: float
    p95_regret: float


def simulate(
    data: TrainingSet,
    device: str,
    held_out: Collection[str],
    minutes: Sequence[float],
    *,
    strategies: Sequence[str] = STRATEGIES,
    options: Options | None = None,
    trees: bool = True,
    clock: Clock = Clock(),
    say: Callable[[str], None] = lambda _: None,
) -> list[Point]:
    """Replay the calibration of ``device`` for each strategy.

    ``trees``: of the informative picks, at the first and the last minute, the distilled tree is scored too.
    The prior sees the other devices only. No problem of the families ``held_out``, and none with
    their weights, is in the prior or among the candidates.

    Raises
    ------
    DataError
        If the data has no such device or families, or of no other device.
    """
    options = options or Options()
    names = sorted({entry.name for entry in data.devices})
    if device not in names or len(names) < 2:
        raise DataError(f"cannot hold out {device!r}: the data is of {', '.join(names)}; pass files of two or more")
    train, test = split(data, held_out)
    here = np.array([entry.name == device for entry in data.devices])
    elsewhere, pool = data.subset(train[~here[train]]), data.subset(train[here[train]])
    unseen = data.subset(test[here[test]])
    if not len(elsewhere) or not len(pool) or not len(unseen):
        raise DataError(f"holding out {device} and {', '.join(held_out)} leaves nothing to learn from or to score on")
    say(f"{device}: a prior of {len(elsewhere)} problems on other devices")
    prior = make_prior(elsewhere, fit_latency_model([elsewhere], options.seed, num_boosters=NUM_BOOSTERS))
    replay = _Replay(prior, pool, unseen, clock, options)
    points = []
    for strategy in strategies:
        for minute, measured, model, cells in replay.run(strategy, minutes):
            count = len(measured) if measured is not None else 0
            say(f"{device}, {strategy}: {minute:g} minutes, {count} problems, {cells} cells")
            regrets = {"model": replay.regrets(measured, model)}
            if trees and strategy == INFORMATIVE and minute in (min(minutes), max(minutes)):
                regrets["tree"] = replay.tree_regrets(measured)
            points += [
                Point(device, strategy, minute, count, cells, chooser, part, len(values), *_summary(values))
                for chooser, parts in regrets.items()
                for part, values in parts.items()
            ]
    return points


def replay_measured(
    prior: Prior,
    truth: TrainingSet,
    measured_until: Callable[[float], TrainingSet | None],
    minutes: Sequence[float],
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Point]:
    """Score a calibration that was done: what the model knew at each of ``minutes``, on the ``truth`` of that device.

    measured_until: what was measured in so many minutes; None for nothing. ``held out`` are the families
    that the prior saw nothing of.

    Raises
    ------
    DataError
        If truth and measurements are of several devices, or truth has only one of: families that the prior saw,
        and families that it did not.
    """
    everything = measured_until(float("inf"))
    devices = {*truth.devices, *(everything.devices if everything is not None else ())}
    if len(devices) > 1:
        names = ", ".join(sorted(device.name for device in devices))
        raise DataError(f"the measurements and the data to score on are of {names}; wanted one device")
    train, test = split(truth, prior.held_out)
    if not len(train) or not len(test):
        lack = f"nothing {'else than' if len(test) else 'of'} {', '.join(prior.held_out) or 'held-out families'}"
        raise DataError(f"the data to score on has {lack}; wanted families that the prior saw, and others")
    replay = _Replay(prior, truth.subset(train), truth.subset(test), Clock(), Options(seed=seed))
    points = []
    for minute in minutes:
        measured = measured_until(minute)
        count = len(measured) if measured is not None else 0
        cells = int(np.isfinite(measured.latency_us).sum()) if measured is not None else 0
        say(f"{truth.devices[0].name}: {minute:g} minutes, {count} problems, {cells} cells")
        points += [
            Point(truth.devices[0].name, MEASURED, minute, count, cells, "model", part, len(values), *_summary(values))
            for part, values in replay.regrets(measured, adapt(prior, measured, seed)).items()
        ]
    return points


def _summary(regret: NDArray[np.float64]) -> tuple[float, float]:
    return (float(regret.mean()), float(np.quantile(regret, 0.95))) if len(regret) else (float("nan"), float("nan"))


def to_json(points: Sequence[Point], clock: Clock) -> dict[str, Any]:
    """All points, and what was assumed of time."""
    rows = [asdict(point) for point in points]
    return {
        "clock": asdict(clock),
        "points": [{name: None if value != value else value for name, value in row.items()} for row in rows],
    }


@dataclass(frozen=True)
class _Replay:
    """pool: the recorded problems that may be picked; unseen: those of the held-out families."""

    prior: Prior
    pool: TrainingSet
    unseen: TrainingSet
    clock: Clock
    options: Options

    @property
    def device(self) -> DeviceSpec:
        return self.pool.devices[0]

    def run(
        self, strategy: str, minutes: Sequence[float]
    ) -> Iterator[tuple[float, TrainingSet | None, LatencyModel, int]]:
        """At each of ``minutes``: what was measured until then, the model adapted to it, and how many cells."""
        races = self._races(strategy, 60 * max(minutes))
        for minute in sorted(minutes):
            taken = {problem: configs for problem, configs, end in races if end <= 60 * minute}
            measured = self._measured(taken)
            yield minute, measured, adapt(self.prior, measured, self.options.seed), sum(map(len, taken.values()))

    def _races(self, strategy: str, deadline: float) -> list[tuple[Problem, tuple[Config, ...], float]]:
        """What is measured before ``deadline``, in order, and when each race ends: seconds from the start."""
        cost = self.clock.cost
        races: list[tuple[Problem, tuple[Config, ...], float]] = []
        compiled: set[tuple[int, Config]] = set()
        kind = dict(zip(self.pool.problems, kinds(self.pool).tolist(), strict=True))
        now = 0.0
        while now < deadline and len(races) < len(self.pool):
            measured = self._measured({problem: configs for problem, configs, _ in races})
            end = now + self.clock.round
            now += self.clock.thinking if strategy != RANDOM_ALL else 0.0
            compiling = now
            for problem, configs in self._next(strategy, measured, end - now):
                new = {(kind[problem], config) for config in configs[1:]} - compiled
                compiled |= new
                compiling += cost.kernel * len(new)
                now = max(now, compiling) + cost.race + cost.config * len(configs)
                races.append((problem, configs, now))
                if now >= end:
                    break
        return races

    def _next(
        self, strategy: str, measured: TrainingSet | None, seconds: float
    ) -> Iterator[tuple[Problem, tuple[Config, ...]]]:
        """Problems to measure and their configs, at least as many as ``seconds`` suffice for."""
        candidates = on_device(self.prior, self.device, self.pool.problems, self.pool.families, measured)
        if strategy == INFORMATIVE:
            model = adapt(self.prior, measured, self.options.seed)
            # Compiling overlaps with measuring, so the time may suffice for more than the plan says.
            picks = pick(model, candidates, 2 * seconds, self.clock.cost)
            yield from ((one.problem, one.configs) for one in picks)
            return
        timed = np.isfinite(candidates.latency_us)
        order = np.random.default_rng(self.options.seed).permutation(len(self.pool))
        some = candidates.subset([row for row in order if not timed[row].any()])
        wanted = some.legal if strategy == RANDOM_ALL else contenders(member_latencies(self.prior.model, some))
        for problem, row in zip(some.problems, wanted, strict=True):
            yield problem, tuple(config for config, take in zip(some.configs, row, strict=True) if take)

    def _measured(self, taken: dict[Problem, tuple[Config, ...]]) -> TrainingSet | None:
        """The recorded cells of what was taken; the others as if nobody had tried."""
        if not taken:
            return None
        rows = [row for row, problem in enumerate(self.pool.problems) if problem in taken]
        part = self.pool.subset(rows)
        tried = np.array([[config in taken[problem] for config in part.configs] for problem in part.problems])
        return replace(part, latency_us=np.where(tried | ~part.legal, part.latency_us, np.nan))

    def regrets(self, measured: TrainingSet | None, model: LatencyModel) -> dict[str, NDArray[np.float64]]:
        """Of the model's choice, a measured problem's by its measurements, by part of the device's problems."""
        return self._by_part(measured, lambda data: self._model_choice(data, measured, model))

    def tree_regrets(self, measured: TrainingSet | None) -> dict[str, NDArray[np.float64]]:
        """Of the distilled tree's choice, by part of the device's problems."""
        _, fitted = calibrate(self.prior, self.device, measured, self.options)

        def choose(data: TrainingSet) -> NDArray[np.intp]:
            columns = np.array([data.configs.index(config) for config in fitted.examples.configs])
            return columns[fitted.tree(make_inputs(data, columns.tolist()))]

        return self._by_part(measured, choose)

    def _model_choice(self, data: TrainingSet, measured: TrainingSet | None, model: LatencyModel) -> NDArray[np.intp]:
        filled = expected(on_device(self.prior, self.device, data.problems, data.families, measured), model)
        place = {problem: row for row, problem in enumerate(filled.problems)}
        filled = filled.subset([place[problem] for problem in data.problems])
        columns = np.array([data.configs.index(config) for config in filled.configs])
        # What was recorded for nobody cannot be scored.
        usable = np.isfinite(data.latency_us[:, columns]) & filled.trusted
        return columns[np.where(usable, filled.latency_us, np.inf).argmin(axis=1)]

    def _by_part(
        self, measured: TrainingSet | None, choose: Callable[[TrainingSet], NDArray[np.intp]]
    ) -> dict[str, NDArray[np.float64]]:
        known = set(measured.problems) if measured is not None else set()
        regret = {name: _regret(data, choose(data)) for name, data in (("unseen", self.unseen), ("pool", self.pool))}
        fresh = np.array([problem not in known for problem in self.pool.problems], dtype=bool)
        return {
            "held out": regret["unseen"],
            "unmeasured": regret["pool"][fresh],
            "all": np.concatenate([regret["unseen"], regret["pool"]]),
        }


def _regret(data: TrainingSet, column: NDArray[np.intp]) -> NDArray[np.float64]:
    """[P]: of the chosen columns; one that cannot run gives way to the vendor's call."""
    chosen_us = data.latency_us[np.arange(len(data)), column]
    return np.where(np.isfinite(chosen_us), chosen_us, data.baseline_us) / data.oracle_us - 1
