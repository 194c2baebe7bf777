"""From a tree to the steps that generated code takes: what Python and C print, each in its own words.

Splits and rules that the support or the path already decides go away, and comparisons move to a
formula's argument (``aks.core.bounds``). Subtrees that choose alike become one. A part of a formula
that is needed again further down gets a name where it is first needed, so it is computed once, and
only on the paths that need it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from aks.core import formula
from aks.core.bounds import Box, narrow, peel, simplify
from aks.core.tree import VENDOR, Leaf, Node, Tree


@dataclass(frozen=True, slots=True)
class Branch:
    """Set the names in ``binds`` (name, formula), in order; then go left if ``formula <= threshold``."""

    formula: str
    threshold: int
    left: Plan
    right: Plan
    binds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Run the first option whose condition holds; the last condition is ``"True"``."""

    options: tuple[tuple[int, str], ...]
    abstain: bool


Plan = Branch | Choice


def plan(tree: Tree) -> Plan:
    """The steps for problems inside the tree's support."""
    return _bind(unnamed_plan(tree), {}, frozenset())


def unnamed_plan(tree: Tree) -> Plan:
    """The same steps with each formula written out: for readers that keep formulas in a table of their own."""
    return _plan(tree, tree.root, tree.box)


def _plan(tree: Tree, node: Node, box: Box) -> Plan:
    if isinstance(node, Leaf):
        return Choice(tuple(_options(tree, node, box)), node.abstain)
    text = tree.features[node.feature].formula
    below, above = narrow(box, text, node.threshold)
    if below is None or above is None:
        return _plan(tree, node.right if below is None else node.left, above or below or box)
    left, right = _plan(tree, node.left, below), _plan(tree, node.right, above)
    if left == right:
        return left
    inner, threshold = peel(text, node.threshold)
    return Branch(inner, threshold, left, right)


def _options(tree: Tree, leaf: Leaf, box: Box) -> Iterator[tuple[int, str]]:
    failed = {"False"}
    for index in leaf.ranking:
        condition = simplify(tree.legality[index], box)
        if condition == "True" or index == VENDOR:
            yield index, "True"
            return
        if condition not in failed:
            yield index, condition
        failed.add(condition)


def _bind(steps: Plan, names: dict[str, str], bound: frozenset[str]) -> Plan:
    """Name what is used again below. names: every name given so far; bound: the parts set on this path."""
    if isinstance(steps, Choice):
        return steps
    known = _texts(steps.formula) | bound
    again = {part for below in _formulas(steps.left) | _formulas(steps.right) for part in _shared(below, known)}
    namer = _Namer(names, bound, again)
    text = ast.unparse(namer.visit(ast.parse(steps.formula, mode="eval").body))
    bound |= namer.binds.keys()
    return Branch(
        text,
        steps.threshold,
        _bind(steps.left, names, bound),
        _bind(steps.right, names, bound),
        tuple((names[part], value) for part, value in namer.binds.items()),
    )


def _formulas(steps: Plan) -> set[str]:
    return {steps.formula} | _formulas(steps.left) | _formulas(steps.right) if isinstance(steps, Branch) else set()


def _shared(text: str, known: frozenset[str]) -> Iterator[str]:
    """The largest parts of a formula that are ``known``: what lies inside one needs no name for its sake."""
    if text in known:
        yield text
        return
    for part in _parts(text):
        yield from _shared(part, known)


@lru_cache(maxsize=4096)
def _parts(text: str) -> tuple[str, ...]:
    """The operands of a formula that are worth a name: calls and arithmetic."""
    nodes = ast.iter_child_nodes(formula.parse(text))
    return tuple(ast.unparse(node) for node in nodes if isinstance(node, ast.BinOp | ast.Call))


@lru_cache(maxsize=4096)
def _texts(text: str) -> frozenset[str]:
    own = {text} if isinstance(formula.parse(text), ast.BinOp | ast.Call) else set()
    return frozenset(own.union(*map(_texts, _parts(text))))


class _Namer(ast.NodeTransformer):
    """Replaces parts that have a name, or get one because they are needed ``again``."""

    def __init__(self, names: dict[str, str], bound: frozenset[str], again: set[str]):
        self.names, self.bound, self.again = names, bound, again
        self.binds: dict[str, str] = {}

    def visit(self, node: ast.AST) -> ast.AST:
        part = ast.unparse(node) if isinstance(node, ast.BinOp | ast.Call) else ""
        if part not in self.bound and part not in self.binds:
            node = self.generic_visit(node)
            if part not in self.again:
                return node
            self.names.setdefault(part, f"_t{len(self.names)}")
            self.binds[part] = ast.unparse(node)
        return ast.Name(self.names[part], ast.Load())
