"""A problem: one op with its axes, dtypes and attributes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from aks.core.errors import InvalidProblemError


@dataclass(frozen=True, slots=True)
class Problem:
    """Base of an op's problem type: a frozen dataclass of ints, bools and choices.

    A subclass names its op, its integer axes (each at least 1) and, for each attribute that is not
    an axis, the values that it may take. Formulas see a choice as its index in ``CHOICES``.
    """

    OP: ClassVar[str] = ""
    AXES: ClassVar[tuple[str, ...]] = ()
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def __post_init__(self) -> None:
        for axis in self.AXES:
            value = getattr(self, axis)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise InvalidProblemError(
                    f"{self.OP} problem has {axis}={value!r}; {axis} must be an integer from 1 to 2147483647"
                )
        for name, choices in self.CHOICES.items():
            value = getattr(self, name)
            if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
                raise InvalidProblemError(f"{self.OP} problem has {name}={value!r}; {name} must be one of {choices}")

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The problem in a mapping that has (at least) this type's fields.

        Raises
        ------
        InvalidProblemError
            If a field without a default is missing, or a value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in row.items() if name in known})
        except TypeError as error:
            raise InvalidProblemError(f"{cls.OP} problem from {row!r}: {error}") from error

    def to_row(self) -> dict[str, Any]:
        """Field names and values, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def variables(self) -> dict[str, int]:
        """The problem as formulas see it: axes as they are, choices as their index or number."""
        table: dict[str, int] = {}
        for name, value in self.to_row().items():
            table[name] = self.CHOICES[name].index(value) if isinstance(value, str) else int(value)
        return table

    def key(self) -> str:
        """A short, stable text that identifies the problem: its database key and its display name."""
        return " ".join(f"{name}={value}" for name, value in self.to_row().items())
