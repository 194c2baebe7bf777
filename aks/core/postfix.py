"""Formulas as postfix programs: flat lists of integers that a stack machine reads without a parser.

``m % 64 == 0`` over the variables (m, n) is ``[VARIABLE, 0, CONSTANT, 64, MODULO, CONSTANT, 0, EQ]``, each
operation by its place in ``OPERATIONS``. The native dispatcher evaluates them; ``evaluate`` says what they mean.
Where a formula means nothing, because it divides by 0 or leaves int64, so does its program: what is exported
was proven not to (``aks.core.bounds``).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence

from aks.core import formula
from aks.core.errors import FormulaError

CONSTANT, VARIABLE = 0, 1
_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "multiply": operator.mul,
    "divide": operator.floordiv,
    "modulo": operator.mod,
    "le": operator.le,
    "lt": operator.lt,
    "ge": operator.ge,
    "gt": operator.gt,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": lambda a, b: a != 0 and b != 0,
    "or": lambda a, b: a != 0 or b != 0,
    "ceil_div": formula.ceil_div,
    "gcd": math.gcd,
    "min": min,
    "max": max,
}
_UNARY: dict[str, Callable[[int], int]] = {"not": operator.not_, "next_pow2": formula.next_pow2}
OPERATIONS = ("constant", "variable", *_BINARY, *_UNARY)
"""By code. ``constant`` and ``variable`` are followed by a value and by the place of a variable."""
MAX_STACK = 32
"""Values that a program may hold at once; a formula that nests deeper is refused."""

_AST_NAMES: dict[type, str] = {
    ast.Add: "add",
    ast.Mult: "multiply",
    ast.FloorDiv: "divide",
    ast.Mod: "modulo",
    ast.LtE: "le",
    ast.Lt: "lt",
    ast.GtE: "ge",
    ast.Gt: "gt",
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.And: "and",
    ast.Or: "or",
}


def compile_postfix(text: str, variables: Sequence[str]) -> list[int]:
    """The formula as a program over ``variables``, by place.

    Raises
    ------
    FormulaError
        If the formula is none, reads a variable that is not there, or nests too deeply.
    """
    program = list(_write(formula.parse(text), {name: place for place, name in enumerate(variables)}))
    if _depth(program) > MAX_STACK:
        raise FormulaError(f"formula {text!r} needs a stack of {_depth(program)}; write it with less nesting")
    return program


def _write(node: ast.expr, places: dict[str, int]):
    match node:
        case ast.Constant(value=int(value)):
            yield from (CONSTANT, int(value))
        case ast.Name(id=name):
            if name not in places:
                raise FormulaError(f"unknown variable {name!r}; known: {', '.join(places)}")
            yield from (VARIABLE, places[name])
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            yield from _fold_left(_AST_NAMES[type(op)], [left, right], places)
        case ast.BoolOp(op=op, values=values):
            yield from _fold_left(_AST_NAMES[type(op)], values, places)
        case ast.UnaryOp(operand=operand):
            yield from _write(operand, places)
            yield OPERATIONS.index("not")
        case ast.Call(func=ast.Name(id=name), args=args):
            if (name in _UNARY) != (len(args) == 1) or (name == "ceil_div" and len(args) != 2):
                raise FormulaError(f"{name} does not take {len(args)} arguments")
            if name in _UNARY:
                yield from _write(args[0], places)
                yield OPERATIONS.index(name)
            else:
                yield from _fold_left(name, args, places)
        case _:
            raise FormulaError(f"cannot write {ast.dump(node)} as a program")


def _fold_left(name: str, operands: Sequence[ast.expr], places: dict[str, int]):
    yield from _write(operands[0], places)
    for operand in operands[1:]:
        yield from _write(operand, places)
        yield OPERATIONS.index(name)


def _depth(program: Sequence[int]) -> int:
    deepest = depth = 0
    for code, _ in _steps(program):
        depth += 1 if code in (CONSTANT, VARIABLE) else -1 if OPERATIONS[code] in _BINARY else 0
        deepest = max(deepest, depth)
    return deepest


def _steps(program: Sequence[int]):
    codes = iter(program)
    for code in codes:
        yield code, next(codes) if code in (CONSTANT, VARIABLE) else 0


def evaluate(program: Sequence[int], values: Sequence[int]) -> int:
    """The program's value: the slow, plain reading that the native dispatcher must agree with."""
    stack: list[int] = []
    for code, value in _steps(program):
        if code == CONSTANT:
            stack.append(value)
        elif code == VARIABLE:
            stack.append(values[value])
        elif (name := OPERATIONS[code]) in _UNARY:
            stack.append(int(_UNARY[name](stack.pop())))
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(int(_BINARY[name](left, right)))
    return stack[0]
