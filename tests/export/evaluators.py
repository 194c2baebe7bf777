"""Every way to evaluate an exported tree, over columns of problems: what the agreement tests compare."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from aks.core.tree import Tree
from aks.runtime import Predictor

COMPILER = shutil.which("cc") or shutil.which("gcc")
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-pedantic"]

_MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include "tree.h"
int main(int argc, char **argv) {{
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL, *out = argc == 3 ? fopen(argv[2], "wb") : NULL;
    aks_{op}_problem problem;
    if (in == NULL || out == NULL) {{ return 1; }}
    while (fread(&problem, sizeof problem, 1, in) == 1) {{
        const int chosen = aks_{op}_select(&problem);
        const int kind_is_there = chosen < (int)(sizeof aks_{op}_configs / sizeof aks_{op}_configs[0]);
        if (!kind_is_there || fwrite(&chosen, sizeof chosen, 1, out) != 1) {{ return 2; }}
    }}
    return fclose(out);
}}
"""


def compile_c(folder: Path, op: str, build: Path, *flags: str) -> Path:
    """The program that reads problems and writes choices; warnings are errors."""
    build.mkdir(exist_ok=True)
    source, program = build / "main.c", build / "main"
    source.write_text(_MAIN.format(op=op))
    flags = flags or ("-std=c99", "-O1")
    command = [str(COMPILER), *flags, *WARNINGS, f"-I{folder}", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def by_c(program: Path, tree: Tree, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Choices of the compiled ``tree.h``."""
    problems, chosen = program.with_suffix(".in"), program.with_suffix(".out")
    np.stack([columns[parameter.name] for parameter in tree.parameters], axis=1).astype(np.int64).tofile(problems)
    subprocess.run([str(program), str(problems), str(chosen)], check=True)
    return np.fromfile(chosen, dtype=np.int32)


def by_python(folder: Path, tree: Tree, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Choices of ``tree.py``."""
    return _call(runpy.run_path(str(folder / "tree.py"))["predict"], tree, columns)


def by_predictor(folder: Path, tree: Tree, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Choices of the function that the predictor makes from ``tree.json``."""
    return _call(Predictor.load(tree.op, path=folder).select, tree, columns)


def by_walking(tree: Tree, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Choices of the plain reading of the IR."""
    return np.array([tree.choose(row) for row in rows(tree, columns)], dtype=np.int64)


def rows(tree: Tree, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The problems as field names and values."""
    lists = _values(tree, columns)
    names = [parameter.name for parameter in tree.parameters]
    return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]


def _call(function, tree: Tree, columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.fromiter(map(function, *_values(tree, columns)), dtype=np.int64)


def _values(tree: Tree, columns: dict[str, np.ndarray]) -> list[list[Any]]:
    result = []
    for parameter in tree.parameters:
        column = columns[parameter.name].tolist()
        table = {parameter.variable(choice): choice for choice in parameter.choices}
        result.append([table[value] for value in column] if table else column)
    return result
