"""What is known of a formula over a box of problems: its interval, and the comparisons that follow.

A box maps variables (and formulas already compared on the way) to closed intervals. Exporting uses
it three times: to prove that no formula overflows int64 or divides by zero inside the support, to
drop splits and rules that the support or the path already decides, and to compare a formula's
argument instead of its value (``n * k * 2 // 1024 <= 7`` is ``n * k <= 4095``).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from aks.core import formula
from aks.core.errors import FormulaError

Interval = tuple[int, int]
Box = Mapping[str, Interval]

INT64_MAX = 2**63 - 1


def interval(text: str, box: Box) -> Interval:
    """Bounds of a formula over ``box``; sound, not always tight.

    Raises
    ------
    FormulaError
        If a value on the way may exceed int64, a divisor may be 0, the argument of ``next_pow2``
        may be 0, or a variable is not in ``box``.
    """
    try:
        return _interval(formula.parse(text), box)
    except FormulaError as error:
        raise FormulaError(f"formula {text!r}: {error}") from None


def _interval(node: ast.expr, box: Box) -> Interval:
    match node:
        case ast.Constant(value=int(value)):
            low = high = int(value)
        case ast.Name(id=name):
            if name not in box:
                raise FormulaError(f"unknown variable {name!r}; known: {', '.join(box)}")
            low, high = box[name]
        case ast.BoolOp(op=op, values=values):
            # The truth of every part is its value clipped to 0 or 1.
            parts = [tuple(min(1, bound) for bound in _interval(value, box)) for value in values]
            pick = min if isinstance(op, ast.And) else max
            low, high = pick(part[0] for part in parts), pick(part[1] for part in parts)
        case ast.UnaryOp(operand=operand):
            least, most = _interval(operand, box)
            low, high = int(most == 0), int(least == 0)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            low, high = _compare(op, _interval(left, box), _interval(right, box))
        case ast.BinOp(left=left, op=op, right=right):
            low, high = _arithmetic(op, _interval(left, box), _interval(right, box))
        case ast.Call(func=ast.Name(id=name), args=args):
            low, high = _call(name, [_interval(arg, box) for arg in args])
        case _:
            raise FormulaError(f"no bounds for {ast.unparse(node)!r}")
    if high > INT64_MAX:
        raise FormulaError(f"{ast.unparse(node)!r} may reach {high}, which int64 does not hold")
    return low, high


def _arithmetic(op: ast.operator, left: Interval, right: Interval) -> Interval:
    match op:
        case ast.Add():
            return left[0] + right[0], left[1] + right[1]
        case ast.Mult():
            return left[0] * right[0], left[1] * right[1]
    if right[0] == 0:
        raise FormulaError("a divisor may be 0")
    if isinstance(op, ast.FloorDiv):
        return left[0] // right[1], left[1] // right[0]
    return left if left[1] < right[0] else (0, min(left[1], right[1] - 1))


def _call(name: str, args: list[Interval]) -> Interval:
    match name, args:
        case "ceil_div", [left, right]:
            total = _arithmetic(ast.Add(), left, right)
            if total[1] - 1 > INT64_MAX:
                raise FormulaError(f"the sum inside ceil_div may reach {total[1] - 1}, which int64 does not hold")
            return _arithmetic(ast.FloorDiv(), (total[0] - 1, total[1] - 1), right)
        case "next_pow2", [(low, high)]:
            if low == 0:
                raise FormulaError("next_pow2 takes values >= 1, and its argument may be 0")
            return formula.next_pow2(low), formula.next_pow2(high)
        case "gcd", [_, _, *_]:
            sure = [high for low, high in args if low]  # gcd(0, a) is a
            return min(1, len(sure)), min(sure) if sure else max(high for _, high in args)
        case (("min" | "max"), [_, _, *_]):
            pick = min if name == "min" else max
            return pick(low for low, _ in args), pick(high for _, high in args)
    raise FormulaError(f"{name} does not take {len(args)} arguments")


def _compare(op: ast.cmpop, left: Interval, right: Interval) -> Interval:
    match op:
        case ast.LtE():
            surely, never = left[1] <= right[0], left[0] > right[1]
        case ast.Lt():
            surely, never = left[1] < right[0], left[0] >= right[1]
        case ast.GtE() | ast.Gt():
            return _compare(ast.LtE() if isinstance(op, ast.GtE) else ast.Lt(), right, left)
        case ast.Eq():
            surely, never = left[0] == left[1] == right[0] == right[1], left[1] < right[0] or left[0] > right[1]
        case _:
            low, high = _compare(ast.Eq(), left, right)
            return 1 - high, 1 - low
    return int(surely), int(not never)


def peel(text: str, threshold: int) -> tuple[str, int]:
    """A simpler formula and threshold with the same answer to ``formula <= threshold``.

    Exact for all non-negative operands: ``x // c <= t`` is ``x <= t * c + c - 1``, and so on inwards.
    A threshold below 0 comes back as -1: the answer is always no.
    """
    node, threshold = _peel(formula.parse(text), threshold)
    return ast.unparse(node), max(threshold, -1)


def _peel(node: ast.expr, limit: int) -> tuple[ast.expr, int]:
    match node:
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=ast.Constant(value=int(by))):
            return _peel(left, limit * by + by - 1)
        case ast.Call(func=ast.Name(id="ceil_div"), args=[left, ast.Constant(value=int(by))]):
            return _peel(left, limit * by)
        case ast.Call(func=ast.Name(id="next_pow2"), args=[inner]) if limit >= 1:
            return _peel(inner, 1 << (limit.bit_length() - 1))
        case ast.BinOp(left=ast.Constant(value=int(by)), op=ast.Mult(), right=inner) if by:
            return _peel(inner, limit // by)
        case ast.BinOp(left=inner, op=ast.Mult(), right=ast.Constant(value=int(by))) if by:
            return _peel(inner, limit // by)
        case ast.BinOp(left=ast.Constant(value=int(add)), op=ast.Add(), right=inner):
            return _peel(inner, limit - add)
        case ast.BinOp(left=inner, op=ast.Add(), right=ast.Constant(value=int(add))):
            return _peel(inner, limit - add)
        case ast.Call(func=ast.Name(id="max"), args=[ast.Constant(value=int(floor)), inner]) if floor <= limit:
            return _peel(inner, limit)
        case ast.Call(func=ast.Name(id="min"), args=[ast.Constant(value=int(cap)), inner]) if cap > limit:
            return _peel(inner, limit)
    return node, limit


def narrow(box: Box, text: str, threshold: int) -> tuple[dict[str, Interval] | None, dict[str, Interval] | None]:
    """The box where ``formula <= threshold`` and the box where not; None for one that is empty."""
    inner, limit = peel(text, threshold)
    low, high = box[inner] if inner in box else interval(inner, box)
    below = {**box, inner: (low, min(high, limit))} if low <= limit else None
    above = {**box, inner: (max(low, limit + 1), high)} if high > limit else None
    return below, above


def simplify(text: str, box: Box) -> str:
    """A formula that is true for the same problems of ``box``, without what the box already decides."""
    return formula.fold(ast.unparse(_simplify(formula.parse(text), box)), {})


def _simplify(node: ast.expr, box: Box) -> ast.expr:
    match node:
        case ast.BoolOp(op=op, values=values):
            return ast.BoolOp(op, [_simplify(value, box) for value in values])
        case ast.UnaryOp(op=op, operand=operand):
            return ast.UnaryOp(op, _simplify(operand, box))
        case ast.Compare(left=left, ops=[op], comparators=[ast.Constant(value=int(value))]):
            return _threshold(node, left, op, value, box)
        case ast.Compare(left=ast.Constant(value=int(value)), ops=[op], comparators=[right]):
            mirrored = {ast.LtE: ast.GtE, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.Gt: ast.Lt}
            return _threshold(node, right, mirrored.get(type(op), type(op))(), value, box)
    return _decided(node, box)


def _decided(node: ast.expr, box: Box) -> ast.expr:
    low, high = _interval(node, box)
    return ast.Constant(bool(low)) if low == high else node


def _threshold(node: ast.expr, left: ast.expr, op: ast.cmpop, value: int, box: Box) -> ast.expr:
    if isinstance(op, ast.Eq | ast.NotEq):
        return _decided(node, box)
    inner, limit = peel(ast.unparse(left), value - isinstance(op, ast.Lt | ast.GtE))
    below, above = narrow(box, inner, limit)
    wants_below = isinstance(op, ast.LtE | ast.Lt)
    if below is None or above is None:
        return ast.Constant((above is None) is wants_below)
    order = ast.LtE() if wants_below else ast.Gt()
    return ast.Compare(formula.parse(inner), [order], [ast.Constant(limit)])
