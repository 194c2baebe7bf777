"""Runs ops' kernels in Triton's interpreter: a process of its own, since the switch is read at import.

Reads a JSON list of [op, problem row, config row] on standard input and writes, for each, what the
op's own check says of the result ("" if it is right), as a JSON list.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from triton.runtime import interpreter

from aks.core.device import find_device
from aks.ops import find_op

_convert_float = interpreter._convert_float


def _convert(data, source, target, rounding):
    """Triton's own, but for what it converts wrongly: to 8-bit floats it rounds without a carry to the exponent."""
    if (source.name, target.name) == ("fp32", "fp8e4nv"):
        return torch.from_numpy(data.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return _convert_float(data, source, target, rounding)


interpreter._convert_float = _convert


def run(op_name: str, problem_row: dict, config_row: dict) -> str:
    """What ``op.reference.check`` says after launching the config twice on fresh, poisoned output."""
    op = find_op(op_name)
    problem, config = op.problem_type.from_row(problem_row), op.config_type.from_row(config_row)
    inputs = op.reference.make_inputs(problem, device="cpu", seed=1)
    scratch = op.launch.Scratch(torch.device("cpu"))
    launch = op.launch.bind(
        config, problem, inputs.x, inputs.w[0], inputs.out, device=find_device("h200"), scratch=scratch
    )
    expected = op.reference.reference(problem, inputs.x, inputs.w[0])
    for _ in range(2):  # the second launch finds the counters as the first one left them
        op.reference.poison(inputs.out)
        launch(0)
        wrong = op.reference.check(problem, inputs.out, expected)
        if wrong:
            return wrong
    return ""


if __name__ == "__main__":
    json.dump([run(*case) for case in json.load(sys.stdin)], sys.stdout)
