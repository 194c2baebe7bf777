"""Runs configs in Triton's interpreter, for tests: in a process of its own (``tests.ops.interpreted``)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aks.core.problem import Problem

ROOT = Path(__file__).parents[2]


def interpret(cases: Sequence[tuple[Problem, Any]]) -> list[str]:
    """For each problem and config what the op's own check says of the result: empty if it is right."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreted"],
        input=json.dumps([[problem.OP, problem.to_row(), config.to_row()] for problem, config in cases]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout)
