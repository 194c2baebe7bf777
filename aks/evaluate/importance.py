"""Which facts of a GPU the choice on it rests on, and what so few devices can tell of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median_low
from typing import Any

import numpy as np
import pandas as pd

from aks.core import formula
from aks.core.device import DeviceSpec
from aks.evaluate.devices import MODEL, fastest_expected
from aks.evaluate.generalization import DEVICE, leave_one_out
from aks.evaluate.regret import Chooser, bootstrap_interval
from aks.ops.op import Op
from aks.train.dataset import TrainingSet, feature_matrix
from aks.train.latency import LatencyModel, fit_latency_model, variables_read

LEAST_VALUES = 3
"""Two values only tell one part of the devices from the other, which may differ in anything else."""
LEAST_DEVICES = 6
"""Of five, not even differences that all have one sign are beyond chance (sign test: 2 / 2**5 > 0.05)."""
_ALIKE = 0.95
"""Spearman's correlation, of either sign, from which on two facts rank the devices alike."""
_LINKED = ({"sm_count", "tflops_16bit", "gpu_sm_count"}, {"smem_bytes_per_sm", "smem_bytes_per_block"})
"""A partition has its SMs' share of the compute rate and no more SMs than its GPU, a block no more than its SM."""


@dataclass(frozen=True, slots=True)
class Change:
    """By how much mean regret rises on each held-out device; 0.01 is a percentage point.

    The interval of the mean holds 95 % of bootstrap rounds that draw devices. Over so few it is rather too
    narrow, and partitions of one GPU are no independent draws.
    """

    by_device: Mapping[str, float]
    mean: float
    interval: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, slots=True)
class FactImportance:
    """Facts that change together, and what rests on them.

    spans: by fact, largest value / least over all devices, which have num_values distinct (combinations
    of) values. permuted: choosing with what each other device has, in turn; dropped: training and
    choosing with the same values everywhere; None for facts that are not put to the test. untold says why
    these devices cannot tell, whatever the intervals are; it is empty if they can.
    """

    spans: Mapping[str, float]
    num_values: int
    permuted: Change | None = None
    dropped: Change | None = None
    untold: str = ""

    @property
    def name(self) -> str:
        """The facts, comma-separated."""
        return ", ".join(self.spans)

    @property
    def changes(self) -> dict[str, Change]:
        """What was put to the test, by how."""
        return {how: change for how in ("permuted", "dropped") if (change := getattr(self, how)) is not None}

    @property
    def told(self) -> tuple[str, ...]:
        """How an effect shows, so far as one may be claimed: ``permuted``, ``dropped``, both or neither."""
        return () if self.untold else tuple(how for how, change in self.changes.items() if change.clear)

    @property
    def verdict(self) -> str:
        """What may be claimed of the facts, and why no more."""
        if not self.told:
            return f"cannot be told: {self.untold or '0 is in both intervals'}"
        others = [f"; {how}: cannot be told, 0 is in the interval" for how in self.changes if how not in self.told]
        return f"an effect, {' and '.join(self.told)}{''.join(others)}"

    def to_json(self) -> dict[str, Any]:
        """All figures as plain lists and mappings."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Importance:
    """mean_regret: the latency model's with all facts, by held-out device, which was trained on the others."""

    mean_regret: Mapping[str, float]
    facts: tuple[FactImportance, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain lists and mappings."""
        return {"mean_regret": dict(self.mean_regret), "facts": [row.to_json() for row in self.facts]}

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat row for each test of each fact: by how much mean regret rises, in the mean and on each device."""
        return [
            {
                "facts": row.name,
                "how": how,
                "regret_change": change.mean,
                "low": change.interval[0],
                "high": change.interval[1],
                "verdict": row.verdict,
                **change.by_device,
            }
            for row in self.facts
            for how, change in row.changes.items()
        ]


def fact_importance(
    data: TrainingSet,
    *,
    held_out: Sequence[str] = (),
    values: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Importance:
    """Hold out each device in turn: what does the latency model's choice lose there without a fact?

    Facts enter by features and the roofline alone: which configs are legal, and what they take, stays as
    it is on the true device. Facts that belong together by construction change together (one SM with the
    compute rate of 132 is no GPU), and so do facts that rank the devices alike: these devices cannot tell
    one from the other. Each device counts once, however many problems were measured on it. Facts that neither
    the model nor a rule reads are left out. ``held_out`` and ``values`` as in ``leave_one_out``.

    Raises
    ------
    DataError
        As ``leave_one_out``.
    """
    devices = sorted(set(data.devices), key=lambda device: device.name)
    groups = fact_groups(data.op, devices)
    result = leave_one_out(
        data,
        DEVICE,
        lambda train, _: _choosers(train, groups, devices, seed),
        held_out=held_out,
        values=values,
        seed=seed,
        progress=progress,
    )
    regret = {entry.group: {row.chooser: row.score.mean_regret for row in entry.rows} for entry in result.groups}
    tested = [_tested(facts, devices, regret, seed) for facts in groups]
    return Importance({name: of[MODEL] for name, of in regret.items()}, (*tested, *_untested(data.op, groups, devices)))


def with_facts(data: TrainingSet, facts: Mapping[str, int]) -> TrainingSet:
    """The same measurements as if all devices had these facts: other features, but the same legality and latencies."""
    changed = {device: replace(device, **facts) for device in set(data.devices)}
    devices = tuple(changed[device] for device in data.devices)
    return replace(data, devices=devices, features=feature_matrix(data.op, data.problems, devices))


def fact_groups(op: Op, devices: Sequence[DeviceSpec]) -> list[tuple[str, ...]]:
    """Facts that differ between ``devices`` and that a model of ``op`` reads; those that go together in one tuple.

    They do by construction, or because they rank the devices alike, whether up or down.
    """
    read = variables_read(op)
    read = read.union(*(link for link in _LINKED if link & read))
    facts = [fact for fact in devices[0].variables() if fact in read]
    varying = [fact for fact in facts if len({getattr(device, fact) for device in devices}) > 1]
    correlation = pd.DataFrame([_values(varying, device) for device in devices]).corr(method="spearman").abs()

    def together(one: str, other: str) -> bool:
        return bool(correlation.at[one, other] >= _ALIKE) or any({one, other} <= link for link in _LINKED)

    groups: list[set[str]] = []
    for fact in varying:
        kin = [group for group in groups if any(together(fact, other) for other in group)]
        groups = [*(group for group in groups if group not in kin), {fact}.union(*kin)]
    in_order = [tuple(fact for fact in varying if fact in group) for group in groups]
    return sorted(in_order, key=lambda facts: varying.index(facts[0]))


def _choosers(
    train: TrainingSet, groups: Sequence[tuple[str, ...]], devices: Sequence[DeviceSpec], seed: int
) -> list[Chooser]:
    """The latency model's choice; with each value that a device has of each group; and without each group."""
    model = fit_latency_model([train], seed)
    choosers = [_chooser(MODEL, train, model, {})]
    for facts in groups:
        had = {_named(values): values for values in (_values(facts, device) for device in devices)}
        choosers += [_chooser(name, train, model, values) for name, values in had.items()]
        typical = {fact: median_low(getattr(device, fact) for device in devices) for fact in facts}
        alike = with_facts(train, typical)
        choosers.append(_chooser(_without(facts), alike, fit_latency_model([alike], seed), typical))
    return choosers


def _chooser(name: str, train: TrainingSet, model: LatencyModel, facts: Mapping[str, int]) -> Chooser:
    return Chooser(name, lambda data: fastest_expected(train, model, with_facts(data, facts)))


def _values(facts: Sequence[str], device: DeviceSpec) -> dict[str, int]:
    return {fact: getattr(device, fact) for fact in facts}


def _named(values: Mapping[str, int]) -> str:
    return ", ".join(f"{fact}={value}" for fact, value in values.items())


def _without(facts: Sequence[str]) -> str:
    return f"without {', '.join(facts)}"


def _tested(
    facts: tuple[str, ...], devices: Sequence[DeviceSpec], regret: Mapping[str, Mapping[str, float]], seed: int
) -> FactImportance:
    """regret: mean regret by held-out device and chooser."""
    had = {device.name: _named(_values(facts, device)) for device in devices}
    permuted = {name: fmean(of[had[other]] for other in had if other != name) for name, of in regret.items()}
    dropped = {name: of[_without(facts)] for name, of in regret.items()}
    return replace(
        _described(facts, devices, _untold(had, len(regret))),
        permuted=_change({name: permuted[name] - of[MODEL] for name, of in regret.items()}, seed),
        dropped=_change({name: dropped[name] - of[MODEL] for name, of in regret.items()}, seed),
    )


def _change(by_device: Mapping[str, float], seed: int) -> Change:
    differences = np.array(list(by_device.values()))
    interval = bootstrap_interval(differences, np.arange(len(differences)), seed)
    return Change(by_device, float(differences.mean()), interval)


def _untold(had: Mapping[str, str], num_held_out: int) -> str:
    """Why no interval would do; had: what each device has."""
    counts = Counter(had.values()).most_common()
    if len(counts) < LEAST_VALUES:
        apart = ", ".join(name for name, values in had.items() if values == counts[-1][0])
        return f"{len(counts)} values, which only tell {apart} from the rest"
    if num_held_out < LEAST_DEVICES:
        return f"fewer than {LEAST_DEVICES} devices held out"
    return ""


def _untested(op: Op, tested: Sequence[tuple[str, ...]], devices: Sequence[DeviceSpec]) -> list[FactImportance]:
    """A row for facts that are the same on all devices, and one for those that rules alone read."""
    read, ruled = variables_read(op), frozenset().union(*(formula.names(rule.formula) for rule in op.space.rules))
    left = [fact for fact in devices[0].variables() if not any(fact in facts for facts in tested)]
    rows = {
        "the same on all": [fact for fact in left if fact in read],
        "rules alone read them, and what is legal stays": [fact for fact in left if fact in ruled - read],
    }
    return [_described(facts, devices, untold) for untold, facts in rows.items() if facts]


def _described(facts: Sequence[str], devices: Sequence[DeviceSpec], untold: str) -> FactImportance:
    table = {fact: [getattr(device, fact) for device in devices] for fact in facts}
    spans = {fact: max(values) / min(values) for fact, values in table.items()}
    return FactImportance(spans, len(set(zip(*table.values(), strict=True))), untold=untold)
