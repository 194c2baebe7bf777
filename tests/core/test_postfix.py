"""Postfix programs mean what the formulas mean; what could not be run is refused."""

from __future__ import annotations

import pytest
from hypothesis import given

from aks.core import formula, postfix
from aks.core.errors import FormulaError
from tests.core.test_formula import NAMES, formulas, tables


@given(formulas, tables)
def test_a_program_has_the_formulas_value(text: str, table: dict[str, int]):
    program = postfix.compile_postfix(text, NAMES)
    expected = formula.compile_python(text)(table)
    got = postfix.evaluate(program, [table[name] for name in NAMES])
    # `a and b` is b in Python and 1 in C: formulas use the truth of it alone.
    assert got == expected or ((" and " in text or " or " in text) and bool(got) == bool(expected))


def test_a_program_is_flat_and_reads_by_place():
    codes = {name: code for code, name in enumerate(postfix.OPERATIONS)}
    program = postfix.compile_postfix("m % 64 == 0", ("n", "m"))
    assert program == [1, 1, 0, 64, codes["modulo"], 0, 0, codes["eq"]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("q + 1", "unknown variable 'q'; known: m"),
        ("next_pow2(m, 2)", "next_pow2 does not take 2"),
        ("ceil_div(m, 2, 3)", "ceil_div does not take 3"),
        ("min(m)", "min does not take 1"),
        ("m + (" * 39 + "m" + ")" * 39, "stack of 40"),
        ("m - 1", "allowed"),
    ],
)
def test_refused(text: str, what: str):
    with pytest.raises(FormulaError, match=what.replace("(", r"\(")):
        postfix.compile_postfix(text, ("m",))
