"""A matrix product as users of ``@triton.autotune`` write it: Triton's tutorial, with tiles for few rows too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages)
_TILES = (
    (16, 32, 128, 4, 4), (16, 32, 256, 4, 3), (16, 64, 128, 4, 4), (16, 64, 256, 4, 3), (16, 128, 64, 4, 5),
    (16, 128, 128, 4, 4), (32, 32, 128, 4, 4), (32, 64, 128, 4, 4), (32, 128, 64, 4, 4), (32, 128, 128, 4, 3),
    (64, 32, 128, 4, 4), (64, 64, 64, 4, 4), (64, 64, 128, 4, 4), (64, 128, 64, 4, 4), (64, 256, 64, 8, 3),
    (128, 64, 64, 4, 4), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3),
)  # fmt: skip
CONFIGS = [
    triton.Config(
        {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8}, num_warps=warps, num_stages=stages
    )
    for block_m, block_n, block_k, warps, stages in _TILES
]

Bench = Callable[[Callable[[], object], Sequence[float]], list[float]]
"""Times a call: the quantiles that are asked for, in any unit."""


# One kernel for every m, and not one each for 1, multiples of 16 and others: less to compile.
@triton.jit(do_not_specialize=["M"])
def matmul_kernel(
    x_ptr, w_ptr, out_ptr, M, N, K, x_row, w_row, out_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out [M, N] = x [M, K] @ w [N, K].T, rows contiguous; tiles in groups of GROUP_M, so that L2 serves their w."""
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    tile_m = first + program % (GROUP_M * tiles_n) % height
    tile_n = program % (GROUP_M * tiles_n) // height
    rows, columns = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    # Rows beyond the edge read others instead of masking: only the store must leave them out.
    x_ptrs = x_ptr + (rows % M)[:, None] * x_row + steps[None, :]
    w_ptrs = w_ptr + (columns % N)[None, :] * w_row + steps[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        inside = steps < K - k
        x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
        w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
        total = tl.dot(x, w, total)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    out_ptrs = out_ptr + rows[:, None] * out_row + columns[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=(rows < M)[:, None] & (columns < N)[None, :])


def autotuned_linear(do_bench: Bench | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """A linear function of its own ``@triton.autotune``, keyed on exact (m, n, k), with nothing tuned yet.

    do_bench: how it times a config; None: Triton's default, 25 ms of warm-up and 100 ms of runs.
    """
    kernel: Any = triton.autotune(CONFIGS, key=["M", "N", "K"], do_bench=do_bench)(matmul_kernel)

    def linear(x: Tensor, w: Tensor) -> Tensor:
        (m, k), n = x.shape, w.shape[0]
        out = x.new_empty(m, n)
        kernel[_grid](x, w, out, m, n, k, x.stride(0), w.stride(0), out.stride(0))
        return out

    return linear


def _grid(known: dict[str, int]) -> tuple[int]:
    return (-(-known["M"] // known["BLOCK_M"]) * -(-known["N"] // known["BLOCK_N"]),)


def brief_bench(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    """Milliseconds of a few runs with L2 flushed before each, as Triton's ``do_bench`` does for longer.

    A hundred times as fast, so that a kernel can be tuned for every m of a trace; the pick may be a few percent off.
    """
    call()
    driver: Any = triton.runtime.driver.active
    flush, times = driver.get_empty_cache_for_benchmark(), []
    for _ in range(_BRIEF_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        driver.clear_cache(flush)
        start.record()
        call()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    taken = torch.tensor([start.elapsed_time(end) for start, end in times])
    return torch.quantile(taken, torch.tensor(quantiles, dtype=taken.dtype)).tolist()


_BRIEF_RUNS = 3
