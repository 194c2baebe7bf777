"""Runs a notebook's code cells, one after the other, in Triton's interpreter on a made-up GPU: a process of its own.

Arguments: the notebook, and a folder to write to. Cells tagged ``parameters`` are followed by other values, as
papermill has it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

from aks.collect.outcome import Outcome
from aks.core.device import find_device
from aks.core.measurement import Measurement, Status
from aks.train.fit import Options
from aks.train.growth import Shape


def measure(op, device, problem, configs, regime, starting):
    """What a collecting worker calls: every config is run and checked, its latency made up."""
    harness = op.launch
    inputs = harness.make_inputs(problem, device="cpu")
    expected = harness.reference(problem, inputs.x, inputs.w[0])
    scratch = harness.Scratch("cpu")
    for config in configs:
        starting(config)
        harness.poison(inputs.out)
        harness.bind(config, problem, inputs.x, inputs.w[0], inputs.out, device=device, scratch=scratch)(0)
        wrong = harness.check(problem, inputs.out, expected)
        if wrong:
            yield Outcome(Measurement(problem, config, regime, Status.WRONG_RESULT, detail=wrong))
            continue
        latency_us = 2.0 + 0.1 * config.num_warps + problem.columns / config.BLOCK + problem.rows / (8 * config.ROWS)
        yield Outcome(Measurement(problem, config, regime, Status.OK, (latency_us,) * 3), num_launches=8)


def parameters(folder: Path) -> dict[str, Any]:
    """Values for tiny problems without a GPU."""

    def ran(launch) -> float:
        launch()
        return 1.0

    return {
        "OUT": folder / "runs",
        "FAMILIES": {"alpha": [96, 700], "beta": [520], "gamma": [640], "delta": [1030]},
        "ROWS": (1, 2, 5),
        "SHAPES": [(1, 100), (3, 600)],
        "REGIMES": ("cold", "warm"),
        "DEVICE": find_device("h200"),
        "INDEX": -1,
        "MEASURE": "tests.run_notebook:measure",
        "OPTIONS": Options(max_portfolio=6, num_imagined=200, num_rounds=8, shape=Shape(max_leaves=12)),
        "WAYS_COMPARED": ("one config", "aks.adaptive"),
        "KERNEL_US": ran,
        "HOST_US": ran,
        "ON": "cpu",
    }


def run(notebook: Path, folder: Path) -> None:
    """Execute the code cells in one namespace."""
    sys.path.insert(0, str(notebook.parent))
    namespace: dict[str, Any] = {"__name__": "__notebook__"}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", ()):
                overrides = parameters(folder)
                unknown = set(overrides) - set(namespace)
                if unknown:
                    raise ValueError(f"{notebook} has no parameters {sorted(unknown)}")
                namespace |= overrides


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
