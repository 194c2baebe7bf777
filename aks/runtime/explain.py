"""Why the tree answers what it answers: the path, what each ranked config would cost, what forbids it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aks.core import formula
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.forecast import read_forecast
from aks.core.problem import Problem
from aks.core.tree import Parameter, Step, Tree
from aks.runtime.predictor import Predictor

if TYPE_CHECKING:
    from aks.ops.op import Op


@dataclass(frozen=True, slots=True)
class Candidate:
    """One config of the leaf's ranking. expected_slowdown is latency over the oracle's, in training."""

    config: Config
    expected_slowdown: float | None
    broken_rules: tuple[str, ...]

    @property
    def legal(self) -> bool:
        """Whether no rule forbids it for the problem."""
        return not self.broken_rules


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one problem is answered; ``str()`` is for people.

    candidates are in the leaf's order: the first legal one runs, the others are the runners-up.
    outside says what of the problem the training data did not cover: then, as in a leaf that
    abstains, the vendor's routine runs whatever the leaf ranks. latency_us: what the answer is expected to
    take; None outside, or without a forecast.
    """

    problem: Problem
    device: str
    chosen: Config
    path: tuple[Step, ...]
    count: int
    abstain: bool
    candidates: tuple[Candidate, ...]
    outside: tuple[str, ...]
    latency_us: float | None = None

    @property
    def expected_slowdown(self) -> float | None:
        """What the chosen config is expected to cost over the oracle; None if unknown."""
        if self.outside:
            return None
        found = [c.expected_slowdown for c in self.candidates if c.config == self.chosen]
        return found[0] if found else None

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def explain(predictor: Predictor, op: Op, problem: Problem) -> Explanation:
    """Explain what ``predictor`` answers for ``problem``, without counting it.

    Raises
    ------
    ArtifactError
        If the predictor's tree is for another op, or another config space than ``op`` has now.
    """
    tree, device = predictor.tree, predictor.bundle.device
    predictor.bundle.check_op(op.name, op.space.fingerprint)
    row = problem.to_row()
    path, leaf = tree.walk(row)
    forecast = None if tree.outside(row) else read_forecast(predictor.bundle)
    configs = [op.config_type.from_row(config) for config in tree.configs]
    candidates = tuple(
        Candidate(configs[index], slowdown, tuple(op.space.broken_rules(configs[index], problem, device)))
        for index, slowdown in zip(leaf.ranking, leaf.expected_slowdown, strict=True)
    )
    return Explanation(
        problem=problem,
        device=tree.device,
        chosen=configs[tree.choose(row)],
        path=tuple(_with_docs(path, op, device)),
        count=leaf.count,
        abstain=leaf.abstain,
        candidates=candidates,
        outside=tuple(_why_outside(tree, row)),
        latency_us=forecast.latency_us(problem.variables()) if forecast else None,
    )


def _with_docs(path: tuple[Step, ...], op: Op, device: DeviceSpec) -> Iterator[Step]:
    """The steps with what the op says of their features; a feature that it now computes otherwise gets none."""
    facts = device.variables()
    docs = {(feature.name, formula.fold(feature.formula, facts)): feature.doc for feature in op.features}
    for step in path:
        doc = docs.get((step.feature.name, step.feature.formula), "")
        yield replace(step, feature=replace(step.feature, doc=doc))


def _why_outside(tree: Tree, row: dict) -> Iterator[str]:
    parameters = {parameter.name: parameter for parameter in tree.parameters}
    for name in tree.outside(row):
        yield f"{name}={row[name]} is outside {_range(tree, parameters[name])}"


def _range(tree: Tree, parameter: Parameter) -> str:
    known = tree.support[parameter.name]
    return ", ".join(map(str, known)) if parameter.choices else f"{known[0]}..{known[1]}"


def _lines(e: Explanation) -> Iterator[str]:
    yield f"{e.problem.OP} on {e.device}: {e.problem.key()}"
    yield f"runs      {e.chosen.key()}{_expected(e.expected_slowdown)}"
    if e.latency_us is not None:
        yield f"takes     about {e.latency_us:.1f} us"
    yield f"support   {'inside' if not e.outside else 'outside, so the vendor runs: ' + '; '.join(e.outside)}"
    yield f"path      {'' if e.path else 'the tree is one leaf'}"
    for step in e.path:
        sign = "<=" if step.left else "> "
        note = f"   ({step.feature.doc})" if step.feature.doc else ""
        yield f"  {step.feature.name} = {step.value} {sign} {step.threshold}{note}"
    unsafe = ", too unsafe to answer: abstains to the vendor" if e.abstain else ""
    yield f"leaf      {e.count} training problems{unsafe}"
    for rank, candidate in enumerate(e.candidates, 1):
        broken = "" if candidate.legal else f"   illegal: needs {'; '.join(candidate.broken_rules)}"
        yield f"  {rank}. {candidate.config.key()}{_expected(candidate.expected_slowdown)}{broken}"


def _expected(slowdown: float | None) -> str:
    return "" if slowdown is None else f"   expected {slowdown:.3f}x the best"
