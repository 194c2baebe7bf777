"""A config: one way to run an op; and the space of all legal ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

from aks.core import formula
from aks.core.device import DeviceSpec
from aks.core.errors import IllegalConfigError
from aks.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Config:
    """Base of an op's config type: a frozen dataclass of ints and choices; unused knobs are 0.

    Formulas see a choice as its index in ``CHOICES``, and may name the choice itself in capitals
    (``kind == GEMV``).
    """

    OP: ClassVar[str] = ""
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The config in a mapping that has (at least) this type's fields.

        Raises
        ------
        IllegalConfigError
            If a field is missing or a choice is unknown.
        """
        known = {field.name for field in fields(cls)}
        try:
            config = cls(**{name: value for name, value in row.items() if name in known})
        except TypeError as error:
            raise IllegalConfigError(f"{cls.OP} config from {row!r}: {error}") from error
        for name, choices in cls.CHOICES.items():
            if getattr(config, name) not in choices:
                raise IllegalConfigError(
                    f"{cls.OP} config has {name}={getattr(config, name)!r}; {name} must be one of {choices}"
                )
        return config

    def to_row(self) -> dict[str, Any]:
        """Field names and values, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def variables(self) -> dict[str, int]:
        """The config as formulas see it, with each choice's name in capitals as a constant."""
        table: dict[str, int] = {}
        for choices in self.CHOICES.values():
            table |= {choice.upper(): index for index, choice in enumerate(choices)}
        for name, value in self.to_row().items():
            table[name] = self.CHOICES[name].index(value) if name in self.CHOICES else int(value)
        return table

    def key(self) -> str:
        """A short, stable text that identifies the config: knobs that are 0 are left out."""
        return " ".join(
            str(value) if name in self.CHOICES else f"{name}={value}" for name, value in self.to_row().items() if value
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A named condition that a config must meet, as a formula over config, problem and device.

    A rule that fails says ``name``: write it as the reason, "shared memory fits".
    """

    name: str
    formula: str

    def __post_init__(self) -> None:
        formula.parse(self.formula)


@dataclass(frozen=True)
class ConfigSpace:
    """All configs of an op, and the rules that say which are legal where.

    ``revision`` is raised when the kernels change what a config means or costs, so that
    measurements of the old kernels are not mixed with new ones.
    """

    op: str
    configs: tuple[Config, ...]
    rules: tuple[Rule, ...]
    revision: int = 1

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the space: 16 hex digits over its configs, rules and revision."""
        text = json.dumps(
            [
                self.op,
                self.revision,
                sorted(config.key() for config in self.configs),
                [(rule.name, rule.formula) for rule in self.rules],
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def places(self) -> dict[Config, int]:
        """The place of each config in ``configs``: whether one is in the space, and where, without a search."""
        return {config: place for place, config in enumerate(self.configs)}

    def broken_rules(self, config: Config, problem: Problem, device: DeviceSpec) -> list[str]:
        """Names of the rules that forbid ``config`` for ``problem`` on ``device``; empty if legal."""
        variables = device.variables() | problem.variables() | config.variables()
        return [rule.name for rule in self.rules if not formula.compile_python(rule.formula)(variables)]

    def legal(self, problem: Problem, device: DeviceSpec, among: Iterable[Config] | None = None) -> list[Config]:
        """Configs that no rule forbids, in the space's order; of those ``among`` which to look, by default all.

        What is not in the space is not legal.
        """
        known = device.variables() | problem.variables()
        rules = [formula.compile_python(rule.formula) for rule in self.rules]
        configs = (
            self.configs if among is None else sorted(self.places.keys() & set(among), key=self.places.__getitem__)
        )
        return [config for config in configs if all(rule(known | _config_variables(config)) for rule in rules)]

    def legality(self, config: Config, device: DeviceSpec) -> str:
        """The rules as one formula over the problem alone, config and device folded in.

        ``"True"`` if the config is legal for every problem, ``"False"`` if for none.
        """
        text = " and ".join(f"({rule.formula})" for rule in self.rules) or "True"
        return formula.tidy(formula.fold(text, device.variables() | config.variables()))

    def check(self, config: Config, problem: Problem, device: DeviceSpec) -> None:
        """Raise if ``config`` is not legal.

        Raises
        ------
        IllegalConfigError
            Naming the rules that are broken.
        """
        broken = self.broken_rules(config, problem, device)
        if broken:
            raise IllegalConfigError(
                f"config {config.key()!r} is illegal for {problem.key()!r} on {device.name}: needs {'; '.join(broken)}"
            )


@lru_cache(maxsize=16384)
def _config_variables(config: Config) -> dict[str, int]:
    return config.variables()
