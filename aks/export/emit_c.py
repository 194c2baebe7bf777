"""``tree.h``: the tree as a C99 header (C++ too) without allocation or dependencies."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aks.core import formula
from aks.core.errors import ArtifactError
from aks.core.plan import Branch, Choice, Plan, plan
from aks.core.tree import VENDOR, Parameter, Tree
from aks.export.header import Origin, header_lines

PAD = "    "

# Shared by the headers of all ops, so a program may include several.
_FUNCTIONS = """\
#ifndef AKS_FORMULA_FUNCTIONS
#define AKS_FORMULA_FUNCTIONS
static inline int64_t aks_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t aks_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t aks_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t aks_next_pow2(int64_t a) {
    a -= 1;
    a |= a >> 1; a |= a >> 2; a |= a >> 4; a |= a >> 8; a |= a >> 16; a |= a >> 32;
    return a + 1;
}
#endif"""
_GCD = """\
#ifndef AKS_FORMULA_GCD
#define AKS_FORMULA_GCD
static inline int64_t aks_gcd(int64_t a, int64_t b) {
    while (b) { const int64_t rest = a % b; a = b; b = rest; }
    return a;
}
#endif"""


def emit_c(tree: Tree, origin: Origin) -> Iterator[str]:
    """Lines of a header with ``aks_<op>_problem``, ``aks_<op>_configs`` and ``aks_<op>_select``."""
    prefix, guard = f"aks_{tree.op}", f"AKS_{tree.op.upper()}_TREE_H"
    yield "/*"
    for line in header_lines(tree, origin):
        yield f" * {line}"
    yield " */"
    yield f"#ifndef {guard}"
    yield f"#define {guard}"
    yield ""
    yield "#include <stdint.h>"
    yield ""
    yield _FUNCTIONS
    if tree.calls("gcd"):
        yield _GCD
    yield ""
    for parameter in tree.parameters:
        yield from _enum(prefix, parameter.name, parameter.choices)
    yield from _problem(prefix, tree)
    for name, choices in tree.config_choices.items():
        yield from _enum(prefix, f"config_{name}", choices)
    yield from _configs(prefix, tree)
    yield ""
    yield f"/* Index into {prefix}_configs; {VENDOR}, the vendor's routine, outside the training data's support. */"
    yield f"static inline int {prefix}_select(const {prefix}_problem *problem) {{"
    yield from _body(tree)
    yield "}"
    yield ""
    yield f"#endif /* {guard} */"


def _enum(prefix: str, name: str, choices: tuple) -> Iterator[str]:
    if choices and isinstance(choices[0], str):
        names = [f"{prefix}_{name}_{choice}".upper() for choice in choices]
        if not all(re.fullmatch("[A-Z0-9_]+", constant) for constant in names):
            raise ArtifactError(f"{name} has choices {choices}, which C cannot name")
        yield f"enum {{ {', '.join(f'{constant} = {index}' for index, constant in enumerate(names))} }};"


def _problem(prefix: str, tree: Tree) -> Iterator[str]:
    yield "typedef struct {"
    for parameter in tree.parameters:
        yield f"{PAD}int64_t {parameter.name};{_comment(prefix, parameter)}"
    yield f"}} {prefix}_problem;"
    yield ""


def _comment(prefix: str, parameter: Parameter) -> str:
    if not parameter.choices:
        return ""
    if isinstance(parameter.choices[0], str):
        return f" /* one of {f'{prefix}_{parameter.name}'.upper()}_... */"
    return f" /* one of {', '.join(str(int(value)) for value in parameter.choices)} */"


def _configs(prefix: str, tree: Tree) -> Iterator[str]:
    yield "typedef struct {"
    for name in tree.configs[VENDOR]:
        yield f"{PAD}int {name};"
    yield f"}} {prefix}_config;"
    yield ""
    yield f"static const {prefix}_config {prefix}_configs[{len(tree.configs)}] = {{"
    for row in tree.configs:
        values = [_value(prefix, tree, name, value) for name, value in row.items()]
        yield f"{PAD}{{{', '.join(values)}}},"
    yield "};"


def _value(prefix: str, tree: Tree, name: str, value: int | str) -> str:
    return f"{prefix}_config_{name}_{value}".upper() if name in tree.config_choices else str(value)


def _body(tree: Tree) -> Iterator[str]:
    steps = plan(tree)
    used = _names(steps)
    for parameter in tree.parameters:
        if parameter.name in used or tree.support[parameter.name] != parameter.choices:
            yield f"{PAD}const int64_t {parameter.name} = problem->{parameter.name};"
    outside = list(_outside(tree))
    yield f"{PAD}if ({' || '.join(outside)}) {{"
    yield f"{PAD}{PAD}return {VENDOR};"
    yield f"{PAD}}}"
    yield from _steps(steps, PAD)


def _names(steps: Plan) -> frozenset[str]:
    if isinstance(steps, Choice):
        return frozenset().union(*(formula.names(condition) for _, condition in steps.options))
    texts = [steps.formula, *(value for _, value in steps.binds)]
    return frozenset().union(*map(formula.names, texts), _names(steps.left), _names(steps.right))


def _outside(tree: Tree) -> Iterator[str]:
    for parameter in tree.parameters:
        name, known = parameter.name, tree.support[parameter.name]
        if not parameter.choices:
            yield f"{name} < {_literal(known[0])} || {name} > {_literal(known[1])}"
        elif known != parameter.choices:
            values = [f"{name} != {_literal(parameter.variable(value))}" for value in known]
            yield values[0] if len(values) == 1 else f"({' && '.join(values)})"


def _literal(value: int) -> str:
    return formula.emit_c(str(value))


def _steps(steps: Plan, pad: str) -> Iterator[str]:
    # The left side returns, so the right side goes on at the same depth.
    while isinstance(steps, Branch):
        for name, value in steps.binds:
            yield f"{pad}const int64_t {name} = {formula.emit_c(value)};"
        yield f"{pad}if ({formula.emit_c(steps.formula)} <= {_literal(steps.threshold)}) {{"
        yield from _steps(steps.left, pad + PAD)
        yield f"{pad}}}"
        steps = steps.right
    for index, condition in steps.options:
        if condition == "True":
            yield f"{pad}return {index};"
        else:
            yield f"{pad}if {_parenthesised(formula.emit_c(condition))} {{ return {index}; }}"


def _parenthesised(expression: str) -> str:
    return expression if expression.startswith("(") else f"({expression})"
