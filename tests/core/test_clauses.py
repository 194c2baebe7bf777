"""Texts that share parts: as written before, and refused when anything is off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.core import clauses
from aks.core.errors import ArtifactError

TEXTS = ("True", "m <= 64 and (64 <= n)", "m <= 32 and (64 <= n)", "(m <= 8 and k > 16) and n <= 0")


def test_what_is_shared_stands_once():
    assert clauses.pack(TEXTS[1:3]) == {
        "templates": ["m <= #", "(# <= n)"],
        "clauses": [[0, 64], [1, 64], [0, 32]],
        "texts": [[0, 1], [2, 1]],
    }


@given(st.lists(st.one_of(st.text("m(<= 0123_x", max_size=20), st.sampled_from(TEXTS))))
def test_texts_come_back_letter_by_letter(texts: list[str]):
    assert clauses.unpack(clauses.pack(texts), 2000) == tuple(texts)


def test_a_text_with_a_placeholder_is_refused():
    with pytest.raises(ArtifactError, match="comments"):
        clauses.pack(["m <= 4  # rows"])


def put(*path: Any) -> Callable[[Any], None]:
    """Put the last of ``path`` where the others lead."""

    def change(tables: Any) -> None:
        for step in path[:-2]:
            tables = tables[step]
        tables[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tables: tables.pop("texts"), "wanted templates"),
        (put("more", []), "wanted templates"),
        (put("templates", "m"), "a list"),
        (put("texts", {"0": [0]}), "a list"),
        (put("texts", 0, 0), "a list"),
        (put("texts", 0, []), "name entries"),
        (put("texts", 0, [-1]), "name entries"),
        (put("texts", 0, [True]), "name entries"),
        (put("texts", 0, [99]), "name entries"),
        (put("texts", 0, [1] * 400), "at most 2000"),
        (put("texts", [[0]]), "name 1 of them"),
        (put("clauses", 1, []), "name entries"),
        (put("clauses", 1, [-1, 64]), "name entries"),
        (put("clauses", 1, [1]), "each #"),
        (put("clauses", 1, [1, 64, 64]), "each #"),
        (put("clauses", 1, [1, -64]), "each #"),
        (put("clauses", 1, [1, 6.5]), "each #"),
        (put("clauses", 1, [1, "m"]), "each #"),
        (put("templates", 1, 7), "template"),
        (put("templates", 1, "m" * 2001), "template"),
        (lambda tables: tables["templates"].append("k <= #"), "name 6 of them"),
    ],
)
def test_malformed_tables_are_refused(change: Callable[[Any], Any], reason: str):
    tables = copy.deepcopy(clauses.pack(TEXTS))
    change(tables)
    with pytest.raises(ArtifactError, match=reason):
        clauses.unpack(tables, 2000)


def test_no_tables_are_refused():
    with pytest.raises(ArtifactError, match="wanted templates"):
        clauses.unpack([], 2000)  # pyright: ignore[reportArgumentType]
