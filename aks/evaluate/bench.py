"""What one prediction costs on this machine's CPU, in Python and in C."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any

from aks.core.bundle import read_bundle
from aks.core.tree import Tree
from aks.runtime.predictor import Predictor

_PYTHON_PROBLEMS, _C_PROBLEMS = 32, 1024
_PYTHON_CALLS, _C_ROUNDS, _REPEATS = 5000, 2000, 7

# The problems are walked in random order, so that the branch predictor does not learn one path.
_C_PROGRAM = """\
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>
#include "tree.h"
static const aks_{op}_problem problems[{count}] = {{
{rows}
}};
int main(void) {{
    volatile int sink = 0;
    for (int repeat = 0; repeat < {repeats}; repeat++) {{
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (int round = 0; round < {rounds}; round++)
            for (int i = 0; i < {count}; i++) sink = aks_{op}_select(&problems[i]);
        clock_gettime(CLOCK_MONOTONIC, &end);
        double ns = (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec);
        printf("%.4f\\n", ns / ((double){rounds} * {count}));
    }}
    return sink < 0;
}}
"""


def bench_predict(folder: Path, *, seed: int = 0) -> dict[str, float]:
    """Nanoseconds of one prediction by the artifact folder's tree: medians under ``Python`` and ``C``.

    Problems are drawn log-uniformly from the tree's support. ``C`` is left out where no C compiler
    (``cc``) is installed.

    Raises
    ------
    ArtifactError
        If the folder cannot be read.
    """
    predictor = Predictor.load(_op_name(folder), path=folder)
    rng = random.Random(seed)
    problems = [draw_problem(predictor.tree, rng) for _ in range(_C_PROBLEMS)]
    result = {"Python": _python_ns(predictor, problems[:_PYTHON_PROBLEMS])}
    compiler = shutil.which("cc")
    if compiler:
        result["C"] = _c_ns(compiler, folder / "tree.h", predictor.tree, problems)
    return result


def draw_problem(tree: Tree, rng: random.Random) -> dict[str, Any]:
    """A random problem inside the tree's support: field names and values."""
    problem = {}
    for parameter in tree.parameters:
        known = tree.support[parameter.name]
        if parameter.choices:
            problem[parameter.name] = rng.choice(known)
        else:
            low, high = known
            problem[parameter.name] = min(high, round(low * (high / low) ** rng.random()))
    return problem


def _python_ns(predictor: Predictor, problems: list[dict[str, Any]]) -> float:
    defaults = {parameter.name: parameter.default for parameter in predictor.tree.parameters}
    costs = []
    for problem in problems:
        # Called as a user would: what is the default is not passed.
        given = [f"{name}={value!r}" for name, value in problem.items() if value != defaults[name]]
        call = f"predict({', '.join(given)})"
        timer = Timer(call, globals={"predict": predictor.predict})
        costs.append(median(timer.repeat(_REPEATS, _PYTHON_CALLS // _REPEATS)) / (_PYTHON_CALLS // _REPEATS))
    return median(costs) * 1e9


def _c_ns(compiler: str, header: Path, tree: Tree, problems: list[dict[str, Any]]) -> float:
    program = _C_PROGRAM.format(
        op=tree.op,
        count=len(problems),
        rows=",\n".join(_initializer(tree, problem) for problem in problems),
        rounds=_C_ROUNDS,
        repeats=_REPEATS,
    )
    with tempfile.TemporaryDirectory() as scratch:
        source, binary = Path(scratch, "bench.c"), Path(scratch, "bench")
        source.write_text(program)
        command = [compiler, "-std=c99", "-O2", "-I", str(header.parent.resolve()), str(source), "-o", str(binary)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        output = subprocess.run([binary], check=True, capture_output=True, timeout=60, text=True).stdout
    return median(map(float, output.split()))


def _initializer(tree: Tree, problem: Mapping[str, Any]) -> str:
    return "    {" + ", ".join(str(value) for value in tree.variables(problem).values()) + "}"


def _op_name(folder: Path) -> str:
    return read_bundle(folder).tree.op
