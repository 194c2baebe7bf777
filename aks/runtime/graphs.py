"""Which CUDA graphs a model needs: where the launches of its layers change with the batch, and what padding costs.

A captured graph has its number of rows baked in, as kernel arguments and grids: a smaller batch is padded to it and
costs what it costs. So the graphs to capture are those at the upper ends of intervals of m in which that cost is
within a bound of each batch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from aks.core import formula
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import GraphError
from aks.core.problem import Problem
from aks.ops import find_op
from aks.ops.op import Op
from aks.runtime.predictor import Predictor

Predictors = Mapping[str, Predictor]
"""By the name of their op. An op without one is left to PyTorch, as it is where no tree fits the GPU."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Layers that pose the same problem of some op: ``count`` of them, by the name of the first.

    The m of ``problem`` does not matter. Where the tree of its op names a kernel, that runs, and after it ``then``:
    layers that are fused only behind a fused one. Where the tree leaves it to PyTorch, ``instead`` runs: layers that
    would have been fused, which the trees of their own ops know.
    """

    name: str
    problem: Problem
    count: int = 1
    instead: tuple[Layer, ...] = ()
    then: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """What runs a layer: the config, the values of its kernel's variant, and the programs of its grid.

    A vendor's routine has no variant and 0 programs: which kernel it launches, its library alone knows. parts are
    the launches of the layer's ``instead``, if config is the vendor's, else of its ``then``.
    """

    config: Config
    variant: tuple[int, ...] = ()
    programs: int = 0
    parts: tuple[Launch, ...] = ()


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """The first m at which a layer is launched otherwise than at m - 1."""

    m: int
    layer: Layer
    before: Launch
    after: Launch

    @property
    def changed(self) -> str:
        """``config``, ``kernel`` (another variant of the config's) or ``grid``: the first of these that differs."""
        old, new = self._differing
        if old.config != new.config:
            return "config"
        return "kernel" if old.variant != new.variant else "grid"

    @property
    def _differing(self) -> tuple[Launch, Launch]:
        """The launch that differs, and what it was: the layer's own, or the first of its parts."""
        old, new = self.before, self.after
        while replace(old, parts=()) == replace(new, parts=()):
            old, new = next((one, other) for one, other in zip(old.parts, new.parts, strict=True) if one != other)
        return old, new

    def __str__(self) -> str:
        old, new = self._differing
        match self.changed:
            case "config":
                what = f"{old.config.key()} -> {new.config.key()}"
            case "kernel":
                what = f"another kernel of {new.config.key()}"
            case _:
                what = f"{old.programs} -> {new.programs} programs"
        return f"m={self.m} {self.layer.name}: {what}"


@dataclass(frozen=True, slots=True)
class Interval:
    """Batches of ``first`` to ``top`` rows, for which the graph of ``top`` rows is replayed.

    padding is the cost of the top over that of the cheapest batch, minus 1 and at least 0. Of the breakpoints, those
    at ``first`` are where the interval begins; over the others it reaches because they cost less than the bound.
    """

    first: int
    top: int
    padding: float
    breakpoints: tuple[Breakpoint, ...]


@dataclass(frozen=True)
class Plan:
    """Intervals that cover every m from 1 to the highest top.

    costs[m - 1] is what a batch of m rows costs unpadded.
    """

    intervals: tuple[Interval, ...]
    costs: tuple[float, ...]

    @property
    def tops(self) -> tuple[int, ...]:
        """Rows of the graphs, ascending."""
        return tuple(interval.top for interval in self.intervals)

    @property
    def worst_padding(self) -> float:
        """The most that a batch pays for being padded, as a fraction of its own cost."""
        return max(interval.padding for interval in self.intervals)

    @property
    def mean_padding(self) -> float:
        """What padding adds to the cost of all batches together, each m once; negative where it saves."""
        padded = sum(self.costs[part.top - 1] * (part.top - part.first + 1) for part in self.intervals)
        return padded / sum(self.costs) - 1

    @property
    def mean_rows(self) -> float:
        """Rows computed over rows asked for, minus 1, over all batches, each m once."""
        padded = sum(part.top * (part.top - part.first + 1) for part in self.intervals)
        return padded / sum(range(1, len(self.costs) + 1)) - 1

    def with_tops(self, tops: Sequence[int]) -> Plan:
        """The same batches with graphs of other sizes, to compare: of ``powers_of_two``, say.

        Raises
        ------
        GraphError
            If the tops do not ascend from at least 1 to this plan's highest.
        """
        found = [point for interval in self.intervals for point in interval.breakpoints]
        return Plan(_intervals(tops, self.costs, found), self.costs)

    def __str__(self) -> str:
        lines = [
            f"{len(self.intervals)} graphs for batches of 1 to {self.tops[-1]} rows; padding costs "
            f"{self.worst_padding:.1%} at most, {self.mean_padding:.1%} on average"
        ]
        for part in self.intervals:
            starts = [point for point in part.breakpoints if point.m == part.first]
            # Whole configs would fill the screen: they are in the breakpoints.
            why = ", ".join(f"{point.changed} of {point.layer.name}" for point in starts)
            why = why or ("" if part.first == 1 else "padding costs too much")
            lines.append(f"  {part.first:>5} to {part.top:<5} +{part.padding:.1%}  {why}".rstrip())
        return "\n".join(lines)


def launches(layer: Layer, max_m: int, predictors: Predictors, device: DeviceSpec) -> list[Launch]:
    """How a layer is launched with 1, 2, … ``max_m`` rows.

    Every m is asked of the tree: exact by construction, rules and all, at about 10 µs each. The predictors' counts
    stay as they are.
    """
    _check([layer], max_m, predictors)
    return list(_launches(layer, max_m, _silent(predictors), device))


def breakpoints(layers: Sequence[Layer], max_m: int, predictors: Predictors, device: DeviceSpec) -> list[Breakpoint]:
    """All m from 2 to ``max_m`` at which some layer's launch changes, ascending.

    Raises
    ------
    GraphError
        If there are no layers, or no predictor for any, or max_m is below 1.
    """
    _check(layers, max_m, predictors)
    silent, found = _silent(predictors), []
    for layer in layers:
        pairs = pairwise(_launches(layer, max_m, silent, device))
        found += [Breakpoint(m, layer, old, new) for m, (old, new) in enumerate(pairs, start=2) if old != new]
    return sorted(found, key=lambda point: point.m)


def stretch_tops(points: Sequence[Breakpoint], max_m: int) -> list[int]:
    """Upper ends of the stretches of m in which no layer's launch changes, ascending: the finest graphs worth having.

    Within a stretch of kernels of ours, a batch that is padded is launched as it would be by itself. A norm has a
    program for each row, so with it there is a stretch for each m: leave norms out to see those of the other layers.
    """
    return sorted({max_m, *(point.m - 1 for point in points if point.m <= max_m)})


def plan(
    layers: Sequence[Layer],
    max_m: int,
    predictors: Predictors,
    device: DeviceSpec,
    *,
    padding: float = 0.05,
    max_graphs: int | None = None,
    cost: Callable[[int], float] | None = None,
) -> Plan:
    """The fewest graphs for batches of 1 to ``max_m`` rows with which no batch pays more than ``padding``.

    Parameters
    ----------
    layers : sequence of Layer
        Of one step.
    predictors : mapping
        By the names of the layers' ops.
    padding : float
        How much more than its own cost a batch may pay in the graph of its interval: 0.05 is 5 %. The fewest if
        cost never falls as m grows; else the bound holds, with more graphs than need be.
    max_graphs : int, optional
        No more than so many: neighbours are merged, the cheapest merge first. The bound is then exceeded where it
        must be, as ``Plan.worst_padding`` says.
    cost : callable, optional
        Cost of a step of m rows, in any unit: a measured latency (``measured_cost``), best of all. Without it the
        price of the layers' launches by the GPU's facts alone (``Op.analytic_ns``). That takes a vendor's routine
        for one of 128 rows a tile, and knows nothing of the step's other kernels, nor of those that PyTorch runs
        between layers that are not fused: good for a first plan.

    Raises
    ------
    GraphError
        If there are no layers, or no predictor for any, max_m or max_graphs is below 1, padding is negative, or a cost
        is not positive.
    """
    _check(layers, max_m, predictors)
    if padding < 0 or (max_graphs is not None and max_graphs < 1):
        raise GraphError(f"padding {padding}, max_graphs {max_graphs}; wanted from 0 up, and from 1 up or None")
    points = breakpoints(layers, max_m, predictors, device)
    costs = tuple(map(cost, range(1, max_m + 1)) if cost else _analytic_costs(layers, max_m, predictors, device))
    if not all(value > 0 for value in costs):
        raise GraphError(f"a step of {1 + costs.index(min(costs))} rows costs {min(costs)}; wanted more than 0")
    tops = _fewest_tops(costs, padding)
    while max_graphs is not None and len(tops) > max_graphs:
        del tops[min(range(len(tops) - 1), key=lambda place: _padding_without(tops, place, costs))]
    return Plan(_intervals(tops, costs, points), costs)


def powers_of_two(max_m: int) -> list[int]:
    """1, 2, 4, … and ``max_m``: the sizes that serving engines capture."""
    return [*(1 << power for power in range((max_m - 1).bit_length())), max_m]


def _fewest_tops(costs: Sequence[float], padding: float) -> list[int]:
    """From the highest m down: the largest m that the graphs so far do not serve within the bound is the next."""
    tops = [len(costs)]
    for m in range(len(costs) - 1, 0, -1):
        if costs[tops[-1] - 1] > (1 + padding) * costs[m - 1]:
            tops.append(m)
    return tops[::-1]


def _padding_without(tops: Sequence[int], place: int, costs: Sequence[float]) -> float:
    return _padding(tops[place - 1] + 1 if place else 1, tops[place + 1], costs)


def _padding(first: int, top: int, costs: Sequence[float]) -> float:
    return max(0.0, costs[top - 1] / min(costs[first - 1 : top]) - 1)


def _intervals(tops: Sequence[int], costs: Sequence[float], points: Sequence[Breakpoint]) -> tuple[Interval, ...]:
    if not tops or tops[0] < 1 or tops[-1] != len(costs) or any(low >= high for low, high in pairwise(tops)):
        raise GraphError(f"graphs of {list(tops)} rows; wanted ascending from 1 up, the last {len(costs)}")
    return tuple(
        Interval(first, top, _padding(first, top, costs), tuple(p for p in points if first <= p.m <= top))
        for first, top in ((low + 1, high) for low, high in pairwise([0, *tops]))
    )


def _analytic_costs(layers: Sequence[Layer], max_m: int, predictors: Predictors, device: DeviceSpec) -> list[float]:
    """Nanoseconds of all layers' launches at each m, by the facts alone."""
    total, silent = [0.0] * max_m, _silent(predictors)
    for layer in layers:
        for index, launch in enumerate(_launches(layer, max_m, silent, device)):
            total[index] += _cost(layer, launch, index + 1, device)
    return total


def _cost(layer: Layer, launch: Launch, m: int, device: DeviceSpec) -> float:
    op = find_op(layer.problem.OP)
    parts = zip(_followers(layer, launch.config, op), launch.parts, strict=True)
    cost = sum(_cost(part, run, m, device) for part, run in parts)
    if launch.config != op.vendor or not layer.instead:
        cost += _price(op, launch.config, device)(_at(layer.problem, m).variables())
    return layer.count * cost


@lru_cache(maxsize=1024)
def _price(op: Op, config: Config, device: DeviceSpec) -> Callable[[dict[str, int]], int]:
    return formula.compile_python(formula.fold(op.analytic_ns, config.variables() | device.variables()))


def _launches(layer: Layer, max_m: int, predictors: Predictors, device: DeviceSpec) -> Iterator[Launch]:
    for m in range(1, max_m + 1):
        yield _launch(layer, m, predictors, device)


def _launch(layer: Layer, m: int, predictors: Predictors, device: DeviceSpec) -> Launch:
    op, problem = find_op(layer.problem.OP), _at(layer.problem, m)
    predictor = predictors.get(op.name)
    config = predictor.configs[predictor.select(**problem.to_row())] if predictor else op.vendor
    parts = tuple(_launch(part, m, predictors, device) for part in _followers(layer, config, op))
    spec = op.launch_spec
    if not spec.config_has_kernel(config):
        return Launch(config, parts=parts)
    variables = problem.variables()
    programs = spec.count_programs(config, variables, device.sm_count)
    return Launch(config, spec.variant_values(config, variables), programs, parts)


def _followers(layer: Layer, config: Config, op: Op) -> tuple[Layer, ...]:
    return layer.instead if config == op.vendor else layer.then


def _at(problem: Problem, m: int) -> Problem:
    return replace(problem, **{"m": m})


def _silent(predictors: Predictors) -> dict[str, Predictor]:
    """Those of the same trees that count for themselves: what is planned was not served."""
    return {name: Predictor(known.bundle, find_op(name).config_type) for name, known in predictors.items()}


def ops_of(layers: Sequence[Layer]) -> set[str]:
    """Names of the ops that layers, or those that run with them or instead, pose problems of."""
    below = [part for layer in layers for part in (*layer.instead, *layer.then)]
    return {layer.problem.OP for layer in layers} | (ops_of(below) if below else set())


def _check(layers: Sequence[Layer], max_m: int, predictors: Predictors) -> None:
    if not layers or max_m < 1:
        raise GraphError(
            f"{len(layers)} layers, batches of up to {max_m} rows; wanted at least one of each: "
            "patch the model first (aks.patch)"
        )
    if not ops_of(layers) & set(predictors):
        raise GraphError(
            f"predictors of {', '.join(sorted(predictors)) or 'no op'}; wanted of {', '.join(sorted(ops_of(layers)))}"
        )
