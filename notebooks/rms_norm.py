"""A fused RMSNorm in Triton, of several rows a program, whose config a tree chooses: see adaptive_rmsnorm.ipynb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

import aks

EPS = 1e-6
MODELS = Path(__file__).parent / "models"


@aks.adaptive(
    # Every combination is a config; a list of triton.Config, as @triton.autotune takes it, would do as well.
    space={"ROWS": (1, 2, 4), "BLOCK": (512, 1024, 2048, 4096), "num_warps": (2, 4, 8, 16), "num_stages": (1,)},
    key=("rows", "columns"),
    # Where one of these is false, a config is neither measured nor chosen.
    rules={
        "a thread holds at most 64 elements": "ROWS * BLOCK <= 64 * 32 * num_warps",
        "a block is at most twice as long as a row": "BLOCK <= 2 * next_pow2(columns)",
    },
    # Where no tree says otherwise this one runs; what is won is counted against it.
    default=triton.Config({"ROWS": 1, "BLOCK": 1024}, num_warps=4, num_stages=1),
    bytes_moved="(2 * rows * columns + columns) * element_bytes",
    features={"blocks": "ceil_div(columns, BLOCK) * ceil_div(rows, ROWS)", "row_bytes": "columns * element_bytes"},
    outputs=("y",),
    dtypes=("bf16", "fp16"),
    # Where "aks export" puts the tree: shipped beside the code. Without it, the environment's AKS_MODELS.
    models=MODELS if MODELS.is_dir() else None,
)
@triton.jit
def rms_norm_kernel(x, weight, y, rows, columns, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = x / sqrt(mean(x * x) + eps) * weight. x, y [rows, columns], weight [columns]; all contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    squares = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows) & (column < columns)
        values = tl.load(x + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        squares += values * values
    scale = tl.rsqrt(tl.sum(squares, axis=1) / columns + eps)[:, None]
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows) & (column < columns)
        values = tl.load(x + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        gain = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
        tl.store(y + row * columns + column, (values * scale * gain).to(y.dtype.element_ty), mask=mask)


def grid(meta: dict[str, Any]) -> tuple[int]:
    """Programs of a launch."""
    return (triton.cdiv(meta["rows"], meta["ROWS"]),)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a model calls. x [rows, columns], weight [columns]; all contiguous."""
    y = torch.empty_like(x)
    rms_norm_kernel[grid](x, weight, y, x.shape[0], x.shape[1], EPS)
    return y


@rms_norm_kernel.example
def example(rows: int, columns: int, *, dtype: torch.dtype, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """A launch to measure: its grid and arguments."""
    x = torch.randn(rows, columns, dtype=dtype, device=device)
    weight = torch.randn(columns, dtype=dtype, device=device)
    y = torch.empty_like(x)
    return grid, {"x": x, "weight": weight, "y": y, "rows": rows, "columns": columns, "eps": EPS}


@rms_norm_kernel.reference
def reference(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the outputs must be: PyTorch's, in float32."""
    x, weight = arguments["x"].float(), arguments["weight"].float()
    return {"y": torch.nn.functional.rms_norm(x, weight.shape, weight, arguments["eps"])}


autotuned = triton.autotune(
    configs=[
        triton.Config({"ROWS": config.ROWS, "BLOCK": config.BLOCK}, config.num_warps, config.num_stages)
        for config in rms_norm_kernel.op.space.configs
    ],
    key=["rows", "columns"],
)(rms_norm_kernel.fn)
"""The same kernel as it was before, to compare with: it benchmarks all configs at each new shape."""
