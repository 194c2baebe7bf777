"""A user's config space: a list of ``triton.Config``, or values for each constant. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from aks.core.config import Config
from aks.core.errors import KernelError
from aks.ops.adaptive.facts import KernelFacts

OPTIONS = {"num_warps": 4, "num_stages": 3, "num_ctas": 1, "maxnreg": 0}
"""The compiler's options that a config may set, and what they are if it does not; maxnreg 0: no limit."""
_HOOKS = ("pre_hook", "ir_override")
"""Of ``triton.Config``: what would run beside the kernel, or instead of it."""

Row = dict[str, Any]


def read_configs(facts: KernelFacts, space: Any) -> tuple[list[Row], dict[str, tuple[str, ...]], frozenset[str]]:
    """The configs as rows of one form; the values of constants that are texts; names of those that are True or False.

    space is a list of ``triton.Config`` or mappings, or one mapping from constants and options to lists of
    values, of which every combination is a config.

    Raises
    ------
    KernelError
        If a config sets what the kernel does not have, or not what the others set, or a value is of
        another type than wanted.
    """
    if isinstance(space, Mapping):
        lists = {name: _values(facts, name, values) for name, values in space.items()}
        entries: list[Any] = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    else:
        entries = list(space) if isinstance(space, Sequence) and not isinstance(space, str) else []
    if not entries:
        raise KernelError(
            f"{facts.name} has space={space!r}; wanted a list of triton.Config, as for triton.autotune, or values by "
            "name: {'BLOCK': (512, 1024), 'num_warps': (4, 8)}"
        )
    rows = [_row(facts, entry) for entry in entries]
    _check_alike(facts, rows)
    for option, standard in list(OPTIONS.items())[2:]:
        if all(row[option] == standard for row in rows):
            for row in rows:
                del row[option]
    choices, switches = {}, set()
    for name in rows[0]:
        kinds = {type(row[name]) for row in rows}
        if len(kinds) > 1:
            raise KernelError(f"{facts.name} has {name} as {_names(kinds)} in its configs; wanted one type")
        if str in kinds:
            choices[name] = tuple(dict.fromkeys(row[name] for row in rows))
        elif bool in kinds:
            switches.add(name)
    return [{name: _number(value) for name, value in row.items()} for row in rows], choices, frozenset(switches)


def same_config(facts: KernelFacts, default: Any, rows: Sequence[Row], configs: Sequence[Config]) -> Config:
    """The config of the space that ``default`` is (a ``triton.Config`` or a mapping); the first if it is None.

    Raises
    ------
    KernelError
        If it is not in the space.
    """
    if default is None:
        return configs[0]
    wanted = _row(facts, default)
    for config in configs:
        row = config.to_row()
        if all(row.get(name, OPTIONS.get(name)) == _number(value) for name, value in wanted.items()):
            return config
    raise KernelError(f"{facts.name} has default {wanted}, which is none of the {len(configs)} configs in its space")


def _values(facts: KernelFacts, name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise KernelError(f"{facts.name} has {name}={values!r} in its space; wanted a list of values")
    return list(values)


def _row(facts: KernelFacts, entry: Any) -> Row:
    """Constants in the kernel's order, then all options."""
    if isinstance(entry, Mapping):
        given = dict(entry)
    elif hasattr(entry, "kwargs") and hasattr(entry, "num_warps"):  # a triton.Config, without importing triton
        if hooks := [name for name in _HOOKS if getattr(entry, name, None) is not None]:
            raise KernelError(
                f"{facts.name} has a config with {hooks[0]}, which is not run while serving; put its work into the "
                "kernel or in front of the call"
            )
        given = dict(entry.kwargs) | {name: getattr(entry, name, None) or OPTIONS[name] for name in OPTIONS}
    else:
        raise KernelError(f"{facts.name} has the config {entry!r}; wanted a triton.Config or a mapping")
    unknown = [name for name in given if name not in facts.constants and name not in OPTIONS]
    if unknown:
        raise KernelError(
            f"{facts.name} has a config that sets {', '.join(map(repr, unknown))}; its constants (tl.constexpr) are "
            f"{', '.join(sorted(facts.constants)) or 'none'}, options are {', '.join(OPTIONS)}"
        )
    for name, value in given.items():
        _check_value(facts, name, value)
    names = [name for name in facts.parameters if name in given]
    return {name: given[name] for name in names} | {name: given.get(name, OPTIONS[name]) for name in OPTIONS}


def _check_value(facts: KernelFacts, name: str, value: Any) -> None:
    if isinstance(value, str) and value.isidentifier() and name not in OPTIONS:
        return
    if not isinstance(value, int) or value < 0 or (name in OPTIONS and isinstance(value, bool)):
        raise KernelError(
            f"{facts.name} has a config with {name}={value!r}; wanted an integer from 0, True or False, or a word"
        )


def _check_alike(facts: KernelFacts, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.keys() != rows[0].keys():
            missing = ", ".join(sorted(row.keys() ^ rows[0].keys()))
            raise KernelError(
                f"{facts.name} has configs that set {missing} and configs that do not; every config must set the same"
            )


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _names(kinds: set[type]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in kinds))
