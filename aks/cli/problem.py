"""A problem as words of the command line: ``m=16 n=4096 k=4096 dtype=fp16``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from aks.core.errors import InvalidProblemError
from aks.core.problem import Problem
from aks.ops.op import Op


def parse_problem(op: Op, words: Sequence[str]) -> Problem:
    """The problem of ``op`` that ``words`` (each ``name=value``) describe.

    Raises
    ------
    InvalidProblemError
        If a word is not ``name=value``, a name is unknown, given twice or missing, or a value is not allowed.
    """
    row = parse_attributes([op], words)
    missing = [field.name for field in fields(op.problem_type) if field.default is MISSING and field.name not in row]
    if missing:
        raise InvalidProblemError(f"{op.name} problem lacks {', '.join(missing)}; write {_example(op)}")
    return op.problem_type.from_row(row)


def parse_attributes(ops: Sequence[Op], words: Sequence[str]) -> dict[str, Any]:
    """Values of ``words`` (each ``name=value``), of fields that problems of at least one of ``ops`` have.

    Raises
    ------
    InvalidProblemError
        If a word is not ``name=value``, or a name is unknown or given twice.
    """
    values: dict[str, Any] = {}
    having = {field.name: op for op in reversed(ops) for field in fields(op.problem_type)}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in having or name in values:
            reason = "is given twice" if name in values else f"must be name=value with a name of {', '.join(having)}"
            said = " or ".join(op.name for op in ops)
            raise InvalidProblemError(f"{said} problem has {word!r}, which {reason}; write {_example(ops[0])}")
        values[name] = _value(having[name], name, text)
    return values


def _value(op: Op, name: str, text: str) -> Any:
    for choice in op.problem_type.CHOICES.get(name, ()):
        if text.lower() == str(choice).lower():
            return choice
    try:
        return int(text)
    except ValueError:
        return text  # the problem's own check says what it must be


def _example(op: Op) -> str:
    return " ".join(
        f"{axis}={size}" for axis, size in zip(op.problem_type.AXES, (16, 4096, 4096, 64, 64), strict=False)
    )
