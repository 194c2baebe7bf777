"""Integer formulas that Python, numpy and C read alike.

Features and rules are written once, as text, over non-negative integers: ``ceil_div(m, 64) * ceil_div(n, 64)``.
The text is a small subset of Python, so that Python evaluates it as it stands, numpy evaluates it
over columns, and C gets the same expression with ``//`` spelt ``/``. Operands are never negative:
that is what makes the two divisions equal, and a formula that could subtract is refused.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from aks.core.errors import FormulaError

FUNCTIONS = ("ceil_div", "gcd", "min", "max", "next_pow2")
"""``gcd(16, a)`` is the largest power of two, up to 16, that divides a: how an address or a stride is aligned."""
_BINARY = {ast.Add: "+", ast.Mult: "*", ast.FloorDiv: "/", ast.Mod: "%"}
_COMPARE = {ast.LtE: "<=", ast.Lt: "<", ast.GtE: ">=", ast.Gt: ">", ast.Eq: "==", ast.NotEq: "!="}


def ceil_div(a: int, b: int) -> int:
    """Smallest integer that is at least ``a / b``, for ``a >= 0`` and ``b > 0``."""
    return (a + b - 1) // b


def next_pow2(a: int) -> int:
    """Smallest power of two that is at least ``a``, for ``a >= 1``."""
    return 1 << (a - 1).bit_length()


@lru_cache(maxsize=4096)
def parse(text: str) -> ast.expr:
    """Parse a formula and check that every node of it means the same in Python and in C.

    Raises
    ------
    FormulaError
        If the text is not an expression, or uses anything but integers, names, ``+ * // %``,
        comparisons, ``and or not`` and the functions in ``FUNCTIONS``.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise FormulaError(f"formula {text!r} is not an expression: {error.msg}") from error
    for node in ast.walk(tree):
        _check(node, text)
    return tree


def _check(node: ast.AST, text: str) -> None:
    match node:
        case ast.Constant(value=int(value)) if value >= 0:  # True and False are ints too, and allowed
            return
        case ast.Compare(ops=[op]) if type(op) in _COMPARE:
            return
        case ast.BinOp(op=op) if type(op) in _BINARY:
            return
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not()) | ast.Name() | ast.Load():
            return
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            return
        case ast.operator() | ast.cmpop() | ast.boolop() | ast.unaryop():
            return
    raise FormulaError(
        f"formula {text!r} uses {ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__!r}; "
        f"allowed: non-negative integers, names, + * // %, one comparison at a time, and/or/not, {', '.join(FUNCTIONS)}"
    )


def calls(text: str) -> frozenset[str]:
    """Functions that a formula calls."""
    return frozenset(node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name) and node.id in FUNCTIONS)


def names(text: str) -> frozenset[str]:
    """Variables that a formula reads."""
    return frozenset(
        node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name) and node.id not in FUNCTIONS
    )


@lru_cache(maxsize=4096)
def compile_python(text: str) -> Callable[[Mapping[str, int]], int]:
    """A function from a variable table to the formula's value, as an int."""
    code = compile(ast.Expression(parse(text)), f"<formula {text}>", "eval")
    namespace = {
        "__builtins__": {},
        "ceil_div": ceil_div,
        "gcd": math.gcd,
        "next_pow2": next_pow2,
        "min": min,
        "max": max,
    }
    return lambda variables: int(eval(code, namespace, variables))  # parse() allows arithmetic only


def fold(text: str, constants: Mapping[str, int]) -> str:
    """The formula with ``constants`` put in and everything that became constant evaluated.

    ``fold("k % (block_k * split_k) == 0", {"block_k": 64, "split_k": 2})`` is ``"k % 128 == 0"``.
    """
    return _fold_text(text, tuple(sorted(constants.items())))


@lru_cache(maxsize=16384)
def _fold_text(text: str, constants: tuple[tuple[str, int], ...]) -> str:
    # Cached: the rules of a few hundred configs are folded again for each set of problems.
    return ast.unparse(_fold(parse(text), dict(constants)))


def _fold(node: ast.expr, constants: Mapping[str, int]) -> ast.expr:
    match node:
        case ast.Name(id=name) if name in constants:
            return ast.Constant(int(constants[name]))
        case ast.BoolOp(op=op, values=values):
            return _fold_bool(op, [_fold(value, constants) for value in values])
        case ast.UnaryOp(op=op, operand=operand):
            operands = [_fold(operand, constants)]
            folded: ast.expr = ast.UnaryOp(op, *operands)
        case ast.BinOp(left=left, op=op, right=right):
            operands = [_fold(left, constants), _fold(right, constants)]
            folded = ast.BinOp(operands[0], op, operands[1])
        case ast.Compare(left=left, ops=ops, comparators=[right]):
            operands = [_fold(left, constants), _fold(right, constants)]
            folded = ast.Compare(operands[0], ops, operands[1:])
        case ast.Call(func=func, args=args):
            operands = [_fold(arg, constants) for arg in args]
            folded = ast.Call(func, operands, [])
        case _:
            return node
    if not all(isinstance(operand, ast.Constant) for operand in operands):
        return folded
    value = compile_python(ast.unparse(folded))({})
    is_truth = isinstance(folded, ast.Compare | ast.UnaryOp)
    return ast.Constant(bool(value) if is_truth else value)


def _fold_bool(op: ast.boolop, values: list[ast.expr]) -> ast.expr:
    absorbing = isinstance(op, ast.Or)
    kept: list[ast.expr] = []
    for value in {ast.unparse(value): value for value in values}.values():  # each once, in order
        if isinstance(value, ast.Constant):
            if bool(value.value) is absorbing:
                return ast.Constant(absorbing)
            continue
        kept.append(value)
    if not kept:
        return ast.Constant(not absorbing)
    return kept[0] if len(kept) == 1 else ast.BoolOp(op, kept)


def tidy(text: str) -> str:
    """The formula without what is multiplied by 0, without factors of 1, and with one constant in a ``max``.

    Folding in a config leaves many of them.
    """
    return fold(ast.unparse(_Tidy().visit(ast.parse(text, mode="eval").body)), {})


class _Tidy(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        node = ast.BinOp(self.visit(node.left), node.op, self.visit(node.right))
        if isinstance(node.op, ast.Mult):
            for constant, other in ((node.left, node.right), (node.right, node.left)):
                match constant:
                    case ast.Constant(value=0):
                        return ast.Constant(0)
                    case ast.Constant(value=1):
                        return other
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        args = [self.visit(arg) for arg in node.args]
        match node.func:
            case ast.Name(id="max"):
                least = max((int(arg.value) for arg in args if isinstance(arg, ast.Constant)), default=0)  # type: ignore[arg-type]
                others = [arg for arg in args if not isinstance(arg, ast.Constant)]
                args = [*([ast.Constant(least)] if least or not others else []), *others]  # no value is negative
                if len(args) == 1:
                    return args[0]
        return ast.Call(node.func, args, [])


def emit_c(text: str) -> str:
    """The formula as a C99 expression over ``int64_t``; functions get the prefix ``aks_``."""
    return _emit_c(parse(text))


def _emit_c(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=int(value)):
            return str(int(value)) if int(value) < 2**31 else f"INT64_C({int(value)})"
        case ast.Name(id=name):
            return name
        case ast.BinOp(left=left, op=op, right=right):
            return f"({_emit_c(left)} {_BINARY[type(op)]} {_emit_c(right)})"
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"({_emit_c(left)} {_COMPARE[type(op)]} {_emit_c(right)})"
        case ast.BoolOp(op=op, values=values):
            return "(" + (" && " if isinstance(op, ast.And) else " || ").join(map(_emit_c, values)) + ")"
        case ast.UnaryOp(operand=operand):
            return f"(!{_emit_c(operand)})"
        case ast.Call(func=ast.Name(id=name), args=args):
            text = _emit_c(args[-1])
            for arg in reversed(args[:-1]):  # gcd, min and max take any number in Python, two in C
                text = f"aks_{name}({_emit_c(arg)}, {text})"
            return text if len(args) > 1 else f"aks_{name}({text})"
    raise FormulaError(f"cannot write {ast.dump(node)} as C")
