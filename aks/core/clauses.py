"""Formulas that share most of their parts, as tables: what ``tree.json`` keeps of the legality of its configs.

Configs of a space obey the same rules with other numbers, so a formula is a list of clauses (what
stands between ``" and "``; where parentheses lie does not matter), and a clause a template with
numbers. Texts come back letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

from aks.core.errors import ArtifactError

_AND, _BLANK = " and ", "#"
_NUMBER = re.compile(r"(?<!\w)(?:0|[1-9][0-9]*)(?![0-9])")

Entry = TypeVar("Entry", bound=Hashable)


def pack(texts: Iterable[str]) -> dict[str, list]:
    """The texts as tables, each entry of which stands once: ``unpack`` gives them back.

    templates: clauses with ``#`` for each number. clauses: index of a template, then its numbers.
    texts: for each, the indices of its clauses.

    Raises
    ------
    ArtifactError
        If a text has a ``#``; none that ``formula.fold`` writes does.
    """
    templates: dict[str, int] = {}
    clauses: dict[tuple[int, ...], int] = {}
    rows = []
    for text in texts:
        if _BLANK in text:
            raise ArtifactError(f"formula {text!r} has a {_BLANK!r}; write it without comments")
        row = []
        for clause in text.split(_AND):
            template = templates.setdefault(_NUMBER.sub(_BLANK, clause), len(templates))
            entry = (template, *map(int, _NUMBER.findall(clause)))
            row.append(clauses.setdefault(entry, len(clauses)))
        rows.append(row)
    return {"templates": list(templates), "clauses": [list(entry) for entry in clauses], "texts": rows}


def unpack(tables: dict[str, Any], longest: int) -> tuple[str, ...]:
    """The texts that ``pack`` was given, of at most ``longest`` characters each.

    Raises
    ------
    ArtifactError
        If a table is missing or mistyped, names what is not there, or has entries that nothing names.
    """
    if not isinstance(tables, dict) or set(tables) != {"templates", "clauses", "texts"}:
        raise ArtifactError(f"formulas come as {str(tables)[:60]!r}; wanted templates, clauses and texts")
    templates, entries, rows = (_list(tables[name]) for name in ("templates", "clauses", "texts"))
    numbered = [_list(entry) for entry in entries]
    clauses = [_fill(_pick(templates, entry[:1])[0], entry[1:], longest) for entry in numbered]
    texts = []
    for row in map(_list, rows):
        parts = _pick(clauses, row)
        if sum(map(len, parts)) + len(_AND) * (len(parts) - 1) > longest:
            raise ArtifactError(f"wanted a formula of at most {longest} characters, got {parts[0][:40]!r}...")
        texts.append(_AND.join(parts))
    _check_named("templates", len(templates), {entry[0] for entry in numbered})
    _check_named("clauses", len(clauses), {index for row in rows for index in row})
    return tuple(texts)


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise ArtifactError(f"formulas have {str(value)[:60]!r} where a list is wanted")
    return value


def _pick(table: Sequence[Entry], indices: list) -> list[Entry]:
    if not indices or any(type(index) is not int or not 0 <= index < len(table) for index in indices):
        raise ArtifactError(f"formulas name entries {str(indices)[:60]} of a table of {len(table)}")
    return [table[index] for index in indices]


def _fill(template: Any, numbers: list, longest: int) -> str:
    if not isinstance(template, str) or len(template) > longest:
        raise ArtifactError(f"a formula has the template {str(template)[:60]!r}; wanted at most {longest} characters")
    pieces = template.split(_BLANK)
    if len(pieces) != len(numbers) + 1 or any(type(number) is not int or number < 0 for number in numbers):
        raise ArtifactError(f"template {template[:60]!r} gets {str(numbers)[:60]}; wanted an integer >= 0 for each #")
    return pieces[0] + "".join(f"{number}{piece}" for number, piece in zip(numbers, pieces[1:], strict=True))


def _check_named(what: str, length: int, named: set[int]) -> None:
    if len(named) != length:
        raise ArtifactError(f"formulas have {length} {what} but name {len(named)} of them")
