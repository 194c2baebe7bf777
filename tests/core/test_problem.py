"""Problems refuse what their op does not take, through every op of the registry."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from operator import attrgetter

import pytest

from aks.core.errors import InvalidProblemError
from aks.ops import OPS
from aks.ops.op import Op

every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))


def some_problem(op: Op):
    """A problem of ``op`` with every axis 64 and the first of each choice."""
    choices = {name: values[0] for name, values in op.problem_type.CHOICES.items()}
    return op.problem_type.from_row({axis: 64 for axis in op.problem_type.AXES} | choices)


@every_op
@pytest.mark.parametrize("value", [0, -1, 2**31, 1.0, "16", None, True])
def test_an_axis_is_a_positive_integer(op, value):
    problem = some_problem(op)
    for axis in problem.AXES:
        with pytest.raises(InvalidProblemError, match=rf"{axis}=.*from 1 to 2147483647"):
            replace(problem, **{axis: value})


@every_op
def test_axes_reach_their_limits(op):
    for value in (1, 2**31 - 1):
        problem = op.problem_type.from_row(some_problem(op).to_row() | {axis: value for axis in op.problem_type.AXES})
        assert all(getattr(problem, axis) == value for axis in problem.AXES)


@every_op
def test_a_choice_is_one_of_its_values(op):
    problem = some_problem(op)
    for name in problem.CHOICES:
        with pytest.raises(InvalidProblemError, match=f"{name}='fp7'; {name} must be one of"):
            replace(problem, **{name: "fp7"})


@every_op
def test_true_is_not_one(op):
    """``alignment=True`` would pass ``in (1, 2)``, and ``static_weights=1`` would print as no bool."""
    problem = some_problem(op)
    for name, values in problem.CHOICES.items():
        wrong = 1 if isinstance(values[0], bool) else True
        with pytest.raises(InvalidProblemError, match=name):
            replace(problem, **{name: wrong})


@every_op
def test_rows_round_trip_and_ignore_other_columns(op):
    problem = some_problem(op)
    assert op.problem_type.from_row(problem.to_row() | {"latency_us": 1.0}) == problem


@every_op
def test_a_missing_axis_is_named(op):
    row = some_problem(op).to_row()
    del row[op.problem_type.AXES[0]]
    with pytest.raises(InvalidProblemError, match=op.problem_type.AXES[0]):
        op.problem_type.from_row(row)


@every_op
def test_formulas_see_numbers_only(op):
    variables = some_problem(op).variables()
    assert set(variables) == set(some_problem(op).to_row())
    assert all(type(value) is int for value in variables.values())


@every_op
def test_a_problem_is_a_value(op):
    problem = some_problem(op)
    assert len({problem, some_problem(op)}) == 1
    assert problem.key() == some_problem(op).key()
    with pytest.raises(FrozenInstanceError):
        setattr(problem, problem.AXES[0], 1)
