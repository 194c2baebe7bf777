"""A tree as Python source: one function, nested ifs, nothing computed before a path needs it.

``tree.py`` is written from this, and the predictor compiles the same lines from ``tree.json``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aks.core import formula
from aks.core.plan import Branch, Choice, Plan, plan
from aks.core.tree import Parameter, Tree

PAD = "    "


@dataclass(frozen=True, slots=True)
class Actions:
    """What the function does at its ends; each is a statement.

    answer returns a config; outside is reached for problems outside the support (or invalid ones);
    abstain in leaves that abstain; illegal, if not empty, before the successor of a favourite that is
    not legal. check_types sends arguments that are not plain ints to ``outside`` too.
    """

    answer: Callable[[int], str]
    outside: str
    abstain: str
    illegal: str = ""
    check_types: bool = False


def function_lines(name: str, tree: Tree, actions: Actions, doc: str = "") -> Iterator[str]:
    """Source lines of ``def name(...)`` with the tree's parameters and their defaults."""
    arguments = [p.name if p.default is None else f"{p.name}={p.default!r}" for p in tree.parameters]
    yield f"def {name}({', '.join(arguments)}):"
    if doc:
        yield f'{PAD}"""{doc}"""'
    yield f"{PAD}if not ({' and '.join(_inside(tree, actions.check_types))}):"
    yield f"{PAD}{PAD}{actions.outside}"
    writer = _Expressions(tree.parameters)
    yield from _steps(plan(tree), PAD, writer, actions)


def argument_list(tree: Tree) -> str:
    """The parameters, in order, as the arguments of a call: ``m, n, k, dtype``."""
    return ", ".join(parameter.name for parameter in tree.parameters)


def _inside(tree: Tree, check_types: bool) -> Iterator[str]:
    for parameter in tree.parameters:
        name, known = parameter.name, tree.support[parameter.name]
        if parameter.choices:
            yield f"{name} == {known[0]!r}" if len(known) == 1 else f"{name} in {known!r}"
            continue
        if check_types:  # first: a text or None would fail in the comparison
            yield f"{name}.__class__ is int"
        yield f"{known[0]} <= {name} <= {known[1]}"


def _steps(steps: Plan, pad: str, writer: _Expressions, actions: Actions) -> Iterator[str]:
    # The left side returns, so the right side goes on at the same depth.
    while isinstance(steps, Branch):
        for name, value in steps.binds:
            yield f"{pad}{name} = {writer.text(value)}"
        yield f"{pad}if {writer.text(f'({steps.formula}) <= {steps.threshold}')}:"
        yield from _steps(steps.left, pad + PAD, writer, actions)
        steps = steps.right
    yield from _choice(steps, pad, writer, actions)


def _choice(choice: Choice, pad: str, writer: _Expressions, actions: Actions) -> Iterator[str]:
    if choice.abstain:
        yield f"{pad}{actions.abstain}"
        return
    for rank, (index, condition) in enumerate(choice.options):
        if rank == 1 and actions.illegal:
            yield f"{pad}{actions.illegal}"
        if condition == "True":
            yield f"{pad}{actions.answer(index)}"
        else:
            yield f"{pad}if {writer.text(condition)}:"
            yield f"{pad}{PAD}{actions.answer(index)}"


class _Expressions(ast.NodeTransformer):
    """Formulas as Python expressions: functions written out (a call costs more than arithmetic),
    attributes compared as the values that callers pass."""

    def __init__(self, parameters: tuple[Parameter, ...]):
        self.choices = {parameter.name: parameter for parameter in parameters if parameter.choices}

    def text(self, source: str) -> str:
        """The formula as Python."""
        # A copy: parse() caches its trees, and transformers write into what they visit.
        return ast.unparse(self.visit(ast.parse(source, mode="eval").body))

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        match node:
            case ast.Compare(left=ast.Name(id=name), comparators=[ast.Constant()]) if name in self.choices:
                parameter = self.choices[name]
                test = formula.compile_python(ast.unparse(node))
                kept = tuple(value for value in parameter.choices if test({name: parameter.variable(value)}))
                if set(parameter.choices) == {False, True} and len(kept) == 1:
                    return ast.parse(name if kept[0] else f"not {name}", mode="eval").body
                return ast.parse(
                    f"{name} == {kept[0]!r}" if len(kept) == 1 else f"{name} in {kept!r}", mode="eval"
                ).body
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_Name(self, node: ast.Name) -> ast.expr:
        parameter = self.choices.get(node.id)
        if parameter is None or not isinstance(parameter.choices[0], str):
            return node
        text = str(len(parameter.choices) - 1)
        for index, value in reversed(list(enumerate(parameter.choices[:-1]))):
            text = f"{index} if {node.id} == {value!r} else {text}"
        return ast.parse(text, mode="eval").body

    def visit_Call(self, node: ast.Call) -> ast.expr:
        args = [self.visit(arg) for arg in node.args]
        match node.func, args:
            case ast.Name(id="ceil_div"), [left, ast.Constant(value=int(by))]:
                return ast.BinOp(ast.BinOp(left, ast.Add(), ast.Constant(by - 1)), ast.FloorDiv(), ast.Constant(by))
            case ast.Name(id="ceil_div"), [left, right]:
                total = ast.BinOp(ast.BinOp(left, ast.Add(), right), ast.Sub(), ast.Constant(1))
                return ast.BinOp(total, ast.FloorDiv(), right)
            case ast.Name(id="next_pow2"), [inner]:
                bits = ast.Attribute(ast.BinOp(inner, ast.Sub(), ast.Constant(1)), "bit_length", ast.Load())
                return ast.BinOp(ast.Constant(1), ast.LShift(), ast.Call(bits, [], []))
        return ast.Call(node.func, args, [])
