"""Problems that a user names: rows of a CSV file, or the linear layers of a model."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from aks.core.config import Config
from aks.core.errors import DataError, InvalidProblemError, require
from aks.core.naming import import_named
from aks.core.problem import Problem
from aks.core.record import COUNT, FAMILIES, split_families
from aks.ops.op import Op

CONFIGS = "configs"
"""A column of a CSV file that is no field of a problem: keys of the configs to measure, separated by semicolons."""


class Workload(NamedTuple):
    """A problem to measure, the model families whose layers it is, and how often it came, where that was counted."""

    problem: Problem
    families: tuple[str, ...]
    count: int = 0


def linear_problem(op: Op, m: int, n: int, k: int, dtype: str, rest: Mapping[str, Any] | None = None) -> Problem:
    """The problem of a linear layer with static weights and contiguous rows; rest: what else it has.

    Raises
    ------
    InvalidProblemError
        If problems of the op are no linear layers.
    """
    if not {*op.problem_type.AXES} <= {"m", "n", "k"}:
        raise InvalidProblemError(
            f"{op.name} has the axes {', '.join(op.problem_type.AXES)}, which linear layers of models do not; name its "
            "problems in a CSV file: --problems"
        )
    row = {"m": m, "n": n, "k": k, "dtype": dtype, "alignment": row_alignment(n, k, dtype), "static_weights": True}
    return op.problem_type.from_row({**row, **(rest or {})})


def row_alignment(n: int, k: int, dtype: str) -> int:
    """Bytes, up to 16, that the rows of contiguous x, w and y are aligned to."""
    size = 4 if dtype == "fp32" else 2
    return math.gcd(16, size * n, size * k)


def problems_from_csv(op: Op, path: str | Path) -> list[Workload]:
    """The problems in a CSV file whose columns are named as the problem's fields.

    Columns that are left out have the problem's defaults, except that weights are static and the
    alignment is that of contiguous rows. A column ``families`` names each problem's model families,
    separated by semicolons; without it, the file's name is the family of all. A row that comes twice
    counts once. A column ``configs`` is for ``configs_from_csv``; a column ``count`` (``aks.write_missed``) is
    added up over a problem's rows.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, or has a column that the problem does not have.
    InvalidProblemError
        If a row does not fit, with its line number.
    """
    path = Path(path)
    known = [field.name for field in fields(op.problem_type)]
    family = path.stem.replace(";", "-")
    problems: dict[Problem, tuple[str, ...]] = {}
    counts: dict[Problem, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, known, op, path)
            for cells in reader:
                if cells:
                    place = f"{path}, line {reader.line_num}"
                    _check_cells(header, cells, place)
                    row = dict(zip(header, cells, strict=True))
                    row.pop(CONFIGS, None)
                    families, count = split_families(row.pop(FAMILIES, family)), _count_of(row.pop(COUNT, "0"), place)
                    problem = _problem_of_row(op, row, place)
                    problems[problem], counts[problem] = families, counts.get(problem, 0) + count
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; wanted a CSV file with columns {', '.join(known)}") from error
    if not problems:
        raise DataError(f"{path} has no problems below its header; write one a line")
    return [Workload(problem, families, counts[problem]) for problem, families in problems.items()]


def _count_of(text: str, place: str) -> int:
    if not text.strip().isdecimal():
        raise InvalidProblemError(f"{place}: count is {text!r}; wanted how often the problem came, a whole number")
    return int(text)


def configs_from_csv(op: Op, path: str | Path) -> dict[Problem, list[Config]] | None:
    """For each problem of a CSV file (``problems_from_csv``) the configs in its column ``configs``; None without one.

    Raises
    ------
    DataError
        If a key is no config of the op's space.
    """
    path = Path(path)
    known = {config.key(): config for config in op.space.configs}
    found: dict[Problem, list[Config]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if CONFIGS not in reader.fieldnames:
            return None
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            keys = split_families(row.pop(CONFIGS) or "")
            row.pop(FAMILIES, None)
            row.pop(COUNT, None)
            unknown = [key for key in keys if key not in known]
            if unknown:
                raise DataError(
                    f"{place}: {unknown[0]!r} is no config of {op.name}; the plan is of another version of aks: write "
                    "it again with 'aks calibrate --plan-only'"
                )
            found.setdefault(_problem_of_row(op, row, place), []).extend(known[key] for key in keys)
    return found


def _check_header(header: Sequence[str], known: Sequence[str], op: Op, path: Path) -> None:
    wanted = f"the first line names columns out of {', '.join(known)}; {', '.join(op.problem_type.AXES)} must be there"
    if not header:
        raise DataError(f"{path} is empty; {wanted}")
    unknown = [name for name in header if name not in (*known, FAMILIES, CONFIGS, COUNT)]
    if unknown:
        raise DataError(f"{path}, line 1: unknown column {', '.join(map(repr, unknown))}; {wanted}")
    if len(set(header)) < len(header) or not set(op.problem_type.AXES) <= set(header):
        raise DataError(f"{path}, line 1: columns are {', '.join(header)}; {wanted}, and none twice")


def _check_cells(header: Sequence[str], cells: Sequence[str], place: str) -> None:
    if len(cells) != len(header):
        raise InvalidProblemError(f"{place}: {len(cells)} cells; the header has {len(header)}")


def _problem_of_row(op: Op, texts: Mapping[str, str], place: str) -> Problem:
    row: dict[str, Any] = {"static_weights": True}
    for name, text in texts.items():
        row[name] = _value(op, name, text.strip(), place)
    if "alignment" not in row and "n" in row and "k" in row:
        row["alignment"] = row_alignment(row["n"], row["k"], row.get("dtype", ""))
    try:
        return op.problem_type.from_row(row)
    except InvalidProblemError as error:
        raise InvalidProblemError(f"{place}: {error}") from error


def _value(op: Op, name: str, cell: str, place: str) -> Any:
    if name in op.problem_type.CHOICES:
        choices = {str(choice).lower(): choice for choice in op.problem_type.CHOICES[name]}
        if set(choices) == {"false", "true"}:
            choices |= {"0": False, "1": True}
        if cell.lower() not in choices:
            raise InvalidProblemError(f"{place}: {name} is {cell!r}; it must be one of {', '.join(choices)}")
        return choices[cell.lower()]
    try:
        return int(cell)
    except ValueError:
        raise InvalidProblemError(f"{place}: {name} is {cell!r}; it must be an integer") from None


def problems_from_model(op: Op, factory: str, m_values: Iterable[int], *, dtype: str = "bf16") -> list[Workload]:
    """The linear layers of the model that ``factory`` makes, at each m; the factory's name is their family.

    factory is ``module:callable``, found as ``import`` finds it or in the working directory. The model
    is made on PyTorch's meta device: it takes no memory, and its weights are never computed.

    Raises
    ------
    InvalidProblemError
        If the factory cannot be imported or called, or makes no ``nn.Module`` with a linear layer.
    MissingExtraError
        If PyTorch is not installed.
    """
    torch = require("torch", "gpu")
    make = _load_factory(factory)
    try:
        with torch.device("meta"):
            model = make()
    except Exception as error:  # the factory is the user's code: anything can come out of it
        raise InvalidProblemError(f"{factory!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise InvalidProblemError(f"{factory!r} made a {type(model).__name__}; it must return an nn.Module")
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    if not layers:
        raise InvalidProblemError(f"the model of {factory!r} has no nn.Linear; its layers cannot be collected")
    shapes = sorted({(layer.out_features, layer.in_features) for layer in layers})
    family = factory.rpartition(":")[2]
    m_values = list(m_values)
    return [Workload(linear_problem(op, m, n, k, dtype), (family,)) for n, k in shapes for m in m_values]


def _load_factory(factory: str) -> Callable[[], Any]:
    try:
        made = import_named(factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidProblemError(
            f"cannot import model factory {factory!r}: {error}; it must be 'module:callable'"
        ) from error
    if not callable(made):
        raise InvalidProblemError(f"model factory {factory!r} is a {type(made).__name__}; it must be callable")
    return made
