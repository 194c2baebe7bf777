"""The exported tree: typed nodes over integer features, the support it answers for, and its configs.

Everything that evaluates a tree (generated Python and C, the predictor, ``explain``) starts from this.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aks.core import formula
from aks.core.bounds import INT64_MAX, Box, interval
from aks.core.errors import ArtifactError, FormulaError
from aks.core.features import Feature

VENDOR = 0
"""Index of the vendor's config in every tree: legal for every problem, and the answer when abstaining."""

MAX_DEPTH = 64
"""Deeper trees are refused: the targets want 10 levels, and generated code nests."""

MAX_SLOWDOWN = 1_000_000
"""A leaf that expects more is refused: no measurement gives that."""


@dataclass(frozen=True, slots=True)
class Split:
    """Go left if the feature's value is at most ``threshold``."""

    feature: int
    threshold: int
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Leaf:
    """Configs by index, best first, the vendor last: the first legal one runs.

    expected_slowdown has one entry a config (latency over the oracle's, in training, 1 at least; None
    where it was not measured); count is the number of training problems that ended here. An abstaining leaf
    ranks the vendor alone.
    """

    ranking: tuple[int, ...]
    expected_slowdown: tuple[float | None, ...]
    count: int
    abstain: bool = False


Node = Split | Leaf


def round_slowdown(value: float | None) -> float | None:
    """An expected slowdown in whole percent, no finer than two runs agree on; 1 for less, which is noise."""
    return None if value is None else max(1.0, round(value, 2))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of ``predict``: an axis (no choices) or an attribute; required if it has no default."""

    name: str
    choices: tuple[Any, ...] = ()
    default: Any = None

    def variable(self, value: Any) -> int:
        """The value as formulas see it: a text is its index in the choices."""
        return self.choices.index(value) if isinstance(value, str) else int(value)

    def value(self, variable: int) -> Any:
        """The value that formulas see so; ``variable`` itself if there is none."""
        return next((choice for choice in self.choices if self.variable(choice) == variable), variable)


@dataclass(frozen=True, slots=True)
class Step:
    """One split on the way to a leaf."""

    feature: Feature
    value: int
    threshold: int

    @property
    def left(self) -> bool:
        """Whether the value went left."""
        return self.value <= self.threshold


@dataclass(frozen=True)
class Tree:
    """A tree for one op on one device. The device's facts are already folded into every formula.

    support gives, for an axis, its lowest and highest value in the training data, and for an
    attribute the values it had; attributes that are not named take all their values. legality has a
    formula over the problem for each config.

    Raises
    ------
    ArtifactError
        If parts contradict each other, or a formula could overflow int64 inside the support.
    """

    op: str
    device: str
    space_fingerprint: str
    parameters: tuple[Parameter, ...]
    support: dict[str, tuple[Any, ...]]
    config_choices: dict[str, tuple[str, ...]]
    configs: tuple[dict[str, Any], ...]
    legality: tuple[str, ...]
    features: tuple[Feature, ...]
    root: Node

    def __post_init__(self) -> None:
        self._check_names()
        self._check_support()
        self._check_formulas()
        if not self.configs or len(self.configs) != len(self.legality):
            raise ArtifactError(f"{len(self.configs)} configs but {len(self.legality)} legality formulas")
        for row in self.configs:
            _check_config(row, self.configs[VENDOR], self.config_choices)
        for node in self.nodes():
            _check_node(node, len(self.features), len(self.configs))

    @cached_property
    def box(self) -> Box:
        """Interval of every variable inside the support."""
        box = {}
        for parameter in self.parameters:
            values = [parameter.variable(value) for value in self.support[parameter.name]]
            box[parameter.name] = (min(values), max(values))
        return box

    def nodes(self) -> Iterator[Node]:
        """All nodes, each before its children, left before right.

        Raises
        ------
        ArtifactError
            If the tree is deeper than ``MAX_DEPTH``.
        """
        stack = [(self.root, 0)]
        while stack:
            node, depth = stack.pop()
            if depth > MAX_DEPTH:
                raise ArtifactError(f"the tree is deeper than {MAX_DEPTH} levels; distil a smaller one")
            yield node
            if isinstance(node, Split):
                stack += [(node.right, depth + 1), (node.left, depth + 1)]

    @property
    def levels(self) -> int:
        """The most splits that a problem passes."""

        def below(node: Node) -> int:
            return 1 + max(below(node.left), below(node.right)) if isinstance(node, Split) else 0

        return below(self.root)

    def calls(self, function: str) -> bool:
        """Whether some formula of the tree calls this function of ``formula.FUNCTIONS``."""
        texts = [*(feature.formula for feature in self.features), *self.legality]
        return any(function in formula.calls(text) for text in texts)

    def variables(self, problem: Mapping[str, Any]) -> dict[str, int]:
        """The problem (field names and values) as formulas see it."""
        return {parameter.name: parameter.variable(problem[parameter.name]) for parameter in self.parameters}

    def outside(self, problem: Mapping[str, Any]) -> list[str]:
        """What of the problem lies outside the support: axis and attribute names; empty if nothing."""
        return [parameter.name for parameter in self.parameters if not self._supports(parameter, problem)]

    def _supports(self, parameter: Parameter, problem: Mapping[str, Any]) -> bool:
        value, known = problem[parameter.name], self.support[parameter.name]
        return value in known if parameter.choices else known[0] <= value <= known[1]

    def walk(self, problem: Mapping[str, Any]) -> tuple[tuple[Step, ...], Leaf]:
        """The splits that the problem passes, and the leaf where it ends."""
        variables, node, path = self.variables(problem), self.root, []
        while isinstance(node, Split):
            feature = self.features[node.feature]
            path.append(Step(feature, formula.compile_python(feature.formula)(variables), node.threshold))
            node = node.left if path[-1].left else node.right
        return tuple(path), node

    def choose(self, problem: Mapping[str, Any]) -> int:
        """Index of the config that runs: the slow, plain reading that generated code must agree with."""
        if self.outside(problem):
            return VENDOR
        variables = self.variables(problem)
        for index in self.walk(problem)[1].ranking:
            if formula.compile_python(self.legality[index])(variables):
                return index
        return VENDOR

    def _check_names(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        for name in [self.op, *names, *self.configs[VENDOR], *self.config_choices] if self.configs else names:
            if not (isinstance(name, str) and name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
                raise ArtifactError(f"the tree uses the name {name!r}, which is not a plain identifier")
        if len(set(names)) != len(names) or any(name.startswith("_") or name in formula.FUNCTIONS for name in names):
            raise ArtifactError(f"parameters {names} are not distinct plain names")

    def _check_support(self) -> None:
        if list(self.support) != [parameter.name for parameter in self.parameters]:
            raise ArtifactError(f"support covers {list(self.support)}; it must name each parameter once, in order")
        for parameter in self.parameters:
            known = self.support[parameter.name]
            for value in (*parameter.choices, *known):
                if not isinstance(value, str | int) or (isinstance(value, int) and not 0 <= value <= INT64_MAX):
                    raise ArtifactError(f"{parameter.name} may be {value!r}; wanted texts or integers >= 0")
            if parameter.choices:
                if not known or not set(known) <= set(parameter.choices):
                    raise ArtifactError(f"support has {parameter.name} in {known}; choices: {parameter.choices}")
                if parameter.default is not None and parameter.default not in parameter.choices:
                    raise ArtifactError(f"{parameter.name} defaults to {parameter.default!r}, which is no choice of it")
            elif len(known) != 2 or any(type(value) is not int for value in known) or not 1 <= known[0] <= known[1]:
                raise ArtifactError(f"support has {parameter.name} in {known}; wanted [lowest >= 1, highest]")
            elif parameter.default is not None and type(parameter.default) is not int:
                raise ArtifactError(f"{parameter.name} defaults to {parameter.default!r}; wanted an integer")

    def _check_formulas(self) -> None:
        for text in [feature.formula for feature in self.features] + list(self.legality):
            try:
                interval(text, self.box)
            except FormulaError as error:
                raise ArtifactError(
                    f"{error}; over the support {self.support}: narrow the support or change the formula"
                ) from error


def _check_config(row: dict[str, Any], first: dict[str, Any], choices: dict[str, tuple[str, ...]]) -> None:
    if list(row) != list(first):
        raise ArtifactError(f"config {row} has other fields than {list(first)}")
    for name, value in row.items():
        if value not in choices[name] if name in choices else type(value) is not int:
            raise ArtifactError(f"config {row} has {name}={value!r}; wanted {choices.get(name, 'an integer')}")


def _check_node(node: Node, num_features: int, num_configs: int) -> None:
    if isinstance(node, Split):
        if not (0 <= node.feature < num_features and 0 <= node.threshold < INT64_MAX):
            raise ArtifactError(
                f"split on feature {node.feature} at {node.threshold}: the tree has {num_features} features, "
                "and thresholds are integers from 0 below 2^63 - 1"
            )
        return
    ranking = node.ranking
    if not ranking or ranking[-1] != VENDOR or len(set(ranking)) != len(ranking):
        raise ArtifactError(f"leaf ranks {ranking}; wanted distinct configs, the vendor (0) last")
    if not all(0 <= index < num_configs for index in ranking) or (node.abstain and ranking != (VENDOR,)):
        raise ArtifactError(f"leaf ranks {ranking} of {num_configs} configs (abstain={node.abstain})")
    if len(node.expected_slowdown) != len(ranking) or node.count < 0:
        raise ArtifactError(f"leaf ranks {ranking} but expects {node.expected_slowdown} (count {node.count})")
    if not all(value is None or 1 <= value <= MAX_SLOWDOWN for value in node.expected_slowdown):
        raise ArtifactError(f"leaf expects slowdowns {node.expected_slowdown}; wanted 1 to {MAX_SLOWDOWN}, or None")
