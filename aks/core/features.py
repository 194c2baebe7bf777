"""Feature tables: named integer formulas over a problem's axes and a device's facts."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from types import CodeType

from aks.core import formula


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of the selector and of the tree.

    The value is a non-negative integer that fits in int64. Training reads it through numpy, the
    exported trees through Python and C: all three from ``formula``.
    """

    name: str
    formula: str
    doc: str = ""

    def __post_init__(self) -> None:
        formula.parse(self.formula)


def evaluate(features: tuple[Feature, ...], variables: Mapping[str, int]) -> tuple[int, ...]:
    """Values of ``features``, in order, for one problem on one device."""
    return tuple(formula.compile_python(feature.formula)(variables) for feature in features)


def evaluate_columns(features: tuple[Feature, ...], columns):
    """Values of ``features`` over many problems.

    columns: mapping of variable name to int64 array [P] (or a scalar, which is broadcast).
    Returns an int64 array [P, F].
    """
    import numpy as np

    columns = {name: np.asarray(column, dtype=np.int64) for name, column in columns.items()}
    length = max((column.shape[0] for column in columns.values() if column.ndim), default=1)
    namespace = {
        "__builtins__": {},
        "ceil_div": formula.ceil_div,
        "next_pow2": lambda a: np.int64(1) << np.ceil(np.log2(np.maximum(a, 1))).astype(np.int64),
        "gcd": lambda *values: np.gcd.reduce(np.broadcast_arrays(*values)),
        "min": lambda *values: np.minimum.reduce(np.broadcast_arrays(*values)),
        "max": lambda *values: np.maximum.reduce(np.broadcast_arrays(*values)),
    }
    result = np.empty((length, len(features)), dtype=np.int64)
    for index, feature in enumerate(features):
        result[:, index] = eval(_elementwise(feature.formula), namespace, columns)  # Feature parsed it
    return result


@lru_cache(maxsize=4096)
def _elementwise(text: str) -> CodeType:
    # Cached: models ask for the same few formulas once for each of hundreds of configs.
    tree = ast.fix_missing_locations(_Elementwise().visit(ast.parse(text, mode="eval")))
    return compile(tree, f"<formula {text}>", "eval")


class _Elementwise(ast.NodeTransformer):
    """``and``, ``or`` and ``not`` as operators that arrays have, on the truth of their operands."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return reduce(lambda left, right: ast.BinOp(left, operator, right), map(self._truth, node.values))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        return ast.Compare(self.visit(node.operand), [ast.Eq()], [ast.Constant(0)])

    def _truth(self, node: ast.expr) -> ast.expr:
        return ast.Compare(self.visit(node), [ast.NotEq()], [ast.Constant(0)])
