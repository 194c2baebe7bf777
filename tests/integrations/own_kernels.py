"""A user's module: one kernel with @aks.adaptive, and a made-up GPU to measure it on."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

import aks
from aks.collect.outcome import Outcome
from aks.core.measurement import Measurement, Status


class FakeJit:
    """Stands for a ``triton.jit`` function: notes its launches, and calls ``run`` if it has one."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self.run: Any = None
        self.launched: list[tuple[Any, dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(**arguments: Any) -> None:
            self.launched.append((grid, arguments))
            if self.run:
                self.run(**arguments)

        return launch


SPACE = {"BLOCK": (64, 256, 1024), "num_warps": (1, 4), "num_stages": (1,)}
NOT_A_KERNEL = 1


@aks.adaptive(
    space=SPACE,
    key=("rows", "columns"),
    rules={"a block is no longer than four rows": "BLOCK <= 4 * next_pow2(columns)"},
    default=triton.Config({"BLOCK": 256}, num_warps=4, num_stages=1),
    bytes_moved="2 * rows * columns * element_bytes",
    outputs=("y",),
    dtypes=("bf16", "fp32"),
)
@triton.jit
def scale(x, y, rows, columns, factor, BLOCK: tl.constexpr):
    """y = x * factor. x, y [rows, columns], contiguous."""
    row = tl.program_id(0)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        tl.store(
            y + row * columns + column, tl.load(x + row * columns + column, mask=mask, other=0.0) * factor, mask=mask
        )


@scale.example
def example(rows: int, columns: int, *, dtype: torch.dtype, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """A launch to measure."""
    x = torch.randn(rows, columns, dtype=dtype, device=device)
    return (rows,), {"x": x, "y": torch.empty_like(x), "rows": rows, "columns": columns, "factor": 2.0}


@aks.adaptive(space=SPACE, key=("rows",), bytes_moved="rows", name="gemm")
@triton.jit
def taken(x, rows, BLOCK: tl.constexpr):
    """Its name is an op's of aks."""


def latency_us(problem: Any, config: Any) -> float:
    """Long rows want long blocks, few rows many warps; the default is never the best by much."""
    blocks = -(-problem.columns // config.BLOCK)
    waste = blocks * config.BLOCK / problem.columns
    work = problem.rows * problem.columns / (400 if problem.dtype == "fp32" else 800)
    mismatch = 1.3 if (problem.rows > 256) == (config.num_warps == 4) else 1.0
    return 2.0 + 0.2 * blocks + 0.001 * work * (0.8 + 0.2 * waste) * mismatch


def measure(op, device, problem, configs, regime, starting):
    """What a collecting worker calls in place of the timer."""
    for config in configs:
        starting(config)
        base = latency_us(problem, config)
        yield Outcome(Measurement(problem, config, regime, Status.OK, (base, base * 1.001, base * 0.999)), 8, 1980)
