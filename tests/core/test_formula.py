"""Formulas mean the same to Python, numpy, C and after folding; what could differ is refused."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aks.core import formula
from aks.core.errors import FormulaError
from aks.core.features import Feature, evaluate, evaluate_columns
from aks.ops import OPS

NAMES = ("a", "b", "c")
# The functions that emitted C calls; export writes its own, tested against these formulas there.
C_PRELUDE = """
#include <stdint.h>
static int64_t aks_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t aks_min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t aks_max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t aks_gcd(int64_t a, int64_t b) { while (b) { int64_t r = a % b; a = b; b = r; } return a; }
static int64_t aks_next_pow2(int64_t a) { int64_t p = 1; while (p < a) p *= 2; return p; }
"""

leaves = st.one_of(st.sampled_from(NAMES), st.integers(0, 300).map(str))
positive = st.integers(1, 300).map(str)


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "*"]), inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(["//", "%"]), positive),
        st.builds("ceil_div({}, {})".format, inner, positive),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max", "gcd"]), inner, inner),
        st.builds("{}({}, {}, {})".format, st.sampled_from(["min", "gcd"]), inner, inner, inner),
        st.builds("next_pow2(max(1, {}))".format, inner),
    )


# 5 leaves of at most 2000 keep every step inside int64.
arithmetic = st.recursive(leaves, _grow, max_leaves=5)
comparisons = st.builds("{} {} {}".format, arithmetic, st.sampled_from(["<=", "<", ">=", ">", "==", "!="]), arithmetic)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=4,
)
formulas = st.one_of(arithmetic, conditions)
tables = st.fixed_dictionaries({name: st.integers(0, 2000) for name in NAMES})


@pytest.mark.parametrize(
    "text",
    [
        "a - b",  # could go below zero, where the divisions of Python and C differ
        "-a",
        "a / b",
        "a ** 2",
        "a << 1",
        "a & b",
        "1.5 * a",
        "'text'",
        "None",
        "a if b else c",
        "a < b < c",
        "a in b",
        "a is b",
        "sqrt(a)",
        "min(a, b, key=c)",
        "min(*a)",
        "a.b",
        "a[0]",
        "(a, b)",
        "lambda: a",
        "__import__('os')",
        "(lambda: a)()",
        "a = 1",
        "a b",
        "",
    ],
)
def test_refuses_what_languages_read_differently(text):
    with pytest.raises(FormulaError):
        formula.parse(text)


def test_refusal_names_the_part_and_what_is_allowed():
    with pytest.raises(FormulaError, match=r"uses 'm - 1'.*allowed: non-negative integers"):
        formula.parse("ceil_div(m - 1, 64)")


def test_names_are_the_variables_alone():
    assert formula.names("ceil_div(m, 64) * max(n, 1) <= sm_count") == {"m", "n", "sm_count"}


def test_fold_keeps_what_is_left_over():
    assert formula.fold("k % (block_k * split_k) == 0", {"block_k": 64, "split_k": 2}) == "k % 128 == 0"
    assert formula.fold("kind != GEMV or m <= 4", {"kind": 1, "GEMV": 2}) == "True"
    assert formula.fold("kind != GEMV or m <= 4", {"kind": 2, "GEMV": 2}) == "m <= 4"


@given(conditions, tables, st.sets(st.sampled_from(NAMES)))
def test_folding_constants_in_changes_no_value(text, table, folded_names):
    constants = {name: table[name] for name in folded_names}
    folded = formula.fold(text, constants)
    assert not formula.names(folded) & folded_names
    value = formula.compile_python(folded)({name: table[name] for name in NAMES if name not in folded_names})
    assert bool(value) == bool(formula.compile_python(text)(table))


@given(arithmetic, tables)
def test_folding_everything_leaves_the_value(text, table):
    assert formula.fold(text, table) == str(formula.compile_python(text)(table))


@given(st.lists(arithmetic, min_size=1, max_size=4), st.lists(tables, min_size=1, max_size=5))
def test_columns_agree_with_single_problems(texts, rows):
    table = tuple(Feature(f"f{index}", text) for index, text in enumerate(texts))
    expected = [evaluate(table, row) for row in rows]
    columns = evaluate_columns(table, {name: [row[name] for row in rows] for name in NAMES})
    assert columns.tolist() == [list(row) for row in expected]


def test_next_pow2_of_columns_at_its_steps():
    values = [2**power + offset for power in range(2, 41) for offset in (-1, 0, 1)]
    columns = evaluate_columns((Feature("p", "next_pow2(a)"),), {"a": values})
    assert columns[:, 0].tolist() == [formula.next_pow2(value) for value in values]


def test_columns_broadcast_scalars():
    columns = evaluate_columns((Feature("f", "a * b + 1"), Feature("g", "b")), {"a": [1, 2, 3], "b": 10})
    assert columns.tolist() == [[11, 10], [21, 10], [31, 10]]


@given(st.integers(1, 2**40), st.integers(1, 2**20))
def test_helpers_mean_what_they_say(a, b):
    assert (formula.ceil_div(a, b) - 1) * b < a <= formula.ceil_div(a, b) * b
    power = formula.next_pow2(a)
    assert power & (power - 1) == 0
    assert power // 2 < a <= power


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_c_agrees_with_python(tmp_path):
    """One compilation over many formulas: those of every op, and drawn ones."""
    drawn: list[tuple[str, dict[str, int]]] = []

    @settings(max_examples=150, database=None, derandomize=True)
    @given(formulas, tables)
    def draw(text, table):
        drawn.append((text, table))

    draw()
    for op in OPS.values():
        problem = {name: 1000 + 7 * index for index, name in enumerate(sorted(_variables(op)))}
        drawn += [(feature.formula, problem) for feature in op.features]
        drawn += [(rule.formula, problem) for rule in op.space.rules]
    results = _run_c(drawn, tmp_path)
    for (text, table), result in zip(drawn, results, strict=True):
        assert result == formula.compile_python(text)(table), (text, table)


def _variables(op) -> frozenset[str]:
    texts = [feature.formula for feature in op.features] + [rule.formula for rule in op.space.rules]
    return frozenset().union(*map(formula.names, texts))


def _run_c(cases: list[tuple[str, dict[str, int]]], folder) -> list[int]:
    lines = [C_PRELUDE]
    for index, (text, table) in enumerate(cases):
        used = sorted(formula.names(text))
        lines.append(f"int64_t f{index}(void) {{")
        lines += [f"    int64_t {name} = INT64_C({table[name]});" for name in used]
        lines.append(f"    return {formula.emit_c(text)};\n}}")
    (folder / "formulas.c").write_text("\n".join(lines))
    library = folder / "formulas.so"
    subprocess.run(
        ["cc", "-std=c99", "-O1", "-shared", "-fPIC", "-o", str(library), str(folder / "formulas.c")], check=True
    )
    loaded = ctypes.CDLL(str(library))
    results = []
    for index in range(len(cases)):
        function = getattr(loaded, f"f{index}")
        function.restype = ctypes.c_int64
        results.append(function())
    return results


def test_an_unknown_variable_is_not_silently_zero():
    with pytest.raises(NameError, match="sm_count"):
        formula.compile_python("m * sm_count")({"m": 1})


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("max(1, 4, False * ceil_div(k, 4)) * n", "4 * n"),
        ("max(0, k)", "k"),
        ("max(1, n, 3, 0 * k)", "max(3, n)"),
        ("max(0, 0 * n)", "0"),
        ("1 * k + 0 * n", "k + 0"),
        ("(1 * k < n) and 0 * k == 0", "k < n"),
    ],
)
def test_tidied_it_says_the_same_in_less(text, tidied):
    assert formula.tidy(text) == tidied
    for k, n in ((1, 1), (3, 900), (900, 3)):
        assert formula.compile_python(tidied)({"k": k, "n": n}) == formula.compile_python(text)({"k": k, "n": n})
