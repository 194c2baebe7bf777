"""Intervals hold, and simplified formulas say the same as the ones they replace."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.core import formula
from aks.core.bounds import INT64_MAX, interval, narrow, peel, simplify
from aks.core.errors import FormulaError

BOX = {"m": (1, 40), "n": (3, 50), "flag": (0, 1)}

atoms = st.one_of(st.sampled_from(["m", "n", "flag"]), st.integers(0, 70).map(str))


def _extend(inner):
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map("({0[0]} + {0[1]})".format),
        pair.map("({0[0]} * {0[1]})".format),
        st.tuples(inner, st.integers(1, 9)).map("({0[0]} // {0[1]})".format),
        st.tuples(inner, st.integers(1, 9)).map("({0[0]} % {0[1]})".format),
        st.tuples(inner, st.integers(1, 9)).map("ceil_div({0[0]}, {0[1]})".format),
        inner.map("next_pow2({} + 1)".format),
        pair.map("min({0[0]}, {0[1]})".format),
        pair.map("max({0[0]}, {0[1]})".format),
        pair.map("gcd({0[0]}, {0[1]})".format),
        pair.map("({0[0]} // ({0[1]} + 1))".format),
    )


numbers = st.recursive(atoms, _extend, max_leaves=6)
comparisons = st.tuples(numbers, st.sampled_from(["<=", "<", ">=", ">", "==", "!="]), numbers).map(" ".join)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(" + " and ".join(parts) + ")"),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(" + " or ".join(parts) + ")"),
        inner.map("(not {})".format),
    ),
    max_leaves=4,
)


def points(count: int = 60):
    rng = random.Random(0)
    return [{name: rng.randint(low, high) for name, (low, high) in BOX.items()} for _ in range(count)]


@given(numbers)
def test_values_lie_in_the_interval(text: str):
    low, high = interval(text, BOX)
    for point in points():
        assert low <= formula.compile_python(text)(point) <= high


@given(conditions)
def test_simplified_conditions_agree(text: str):
    simple = formula.compile_python(simplify(text, BOX))
    for point in points():
        assert bool(simple(point)) == bool(formula.compile_python(text)(point))


@given(numbers, st.integers(-3, 3000))
def test_peeled_comparisons_agree(text: str, threshold: int):
    inner, limit = peel(text, threshold)
    below, above = narrow(BOX, text, threshold)
    for point in points():
        passes = formula.compile_python(text)(point) <= threshold
        assert (formula.compile_python(inner)(point) <= limit) == passes
        side = below if passes else above
        assert side is not None and side[inner][0] <= formula.compile_python(inner)(point) <= side[inner][1]


@pytest.mark.parametrize(
    ("text", "threshold", "wanted"),
    [
        ("n * m * 2 // 1024", 7, ("n * m", 4095)),
        ("ceil_div(m, 64)", 3, ("m", 192)),
        ("max(16, next_pow2(m))", 63, ("m", 32)),
        ("m + 5", 3, ("m", -1)),
        ("m % 16", 3, ("m % 16", 3)),
    ],
)
def test_peel_reaches_the_argument(text: str, threshold: int, wanted: tuple[str, int]):
    assert peel(text, threshold) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("m * m * m", "int64"),
        ("ceil_div(m * 4, m * 4)", "int64"),
        ("7 // flag", "divisor"),
        ("7 % (m // 2)", "divisor"),
        ("ceil_div(7, flag)", "divisor"),
        ("next_pow2(flag)", "next_pow2"),
        ("next_pow2(m * 2 + 1)", "int64"),
        ("m + other", "unknown variable 'other'"),
        ("min(m)", "arguments"),
        ("ceil_div(m, 2, 3)", "arguments"),
    ],
)
def test_what_c_could_not_compute_is_refused(text: str, reason: str):
    with pytest.raises(FormulaError, match=reason):
        interval(text, {"m": (1, 2**61), "flag": (0, 1)})


def test_the_largest_value_is_allowed():
    assert interval("m", {"m": (1, INT64_MAX)}) == (1, INT64_MAX)
