"""RMSNorm with a tree, with @triton.autotune and with one config: what each costs on a GPU. ``--help`` says how."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import triton
import typer
from rms_norm import EPS, autotuned, grid, rms_norm_kernel

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]

DEFAULT = rms_norm_kernel.op.options(rms_norm_kernel.op.vendor)

WAYS: dict[str, Way] = {
    "one config": lambda x, w, y: rms_norm_kernel.fn[grid](x, w, y, *x.shape, EPS, **DEFAULT),
    "triton.autotune": lambda x, w, y: autotuned[grid](x, w, y, *x.shape, EPS),
    "aks.adaptive": lambda x, w, y: rms_norm_kernel[grid](x, w, y, *x.shape, EPS),
}


@dataclass(frozen=True)
class Row:
    """What one way costs at one shape.

    first_ms: of the first call at that shape, tuning and compiling included. kernel_us: of the kernel, by
    ``triton.testing.do_bench_cudagraph``. host_us: of the host, of one call, median.
    """

    rows: int
    columns: int
    way: str
    first_ms: float
    kernel_us: float
    host_us: float


def kernel_us(launch: Callable[[], object]) -> float:
    """Microseconds of the kernel, median, in a CUDA graph of many: x is then in L2 if it fits."""
    return 1e3 * triton.testing.do_bench_cudagraph(launch, return_mode="median")


def host_us(launch: Callable[[], object], calls: int = 200) -> float:
    """Microseconds of the host for a call, median."""
    took = []
    for _ in range(calls):
        start = time.perf_counter()
        launch()
        took.append(time.perf_counter() - start)
        torch.cuda.synchronize()  # outside of what is timed: a full queue would be waited for
    return 1e6 * sorted(took)[calls // 2]


def compare(
    shapes: Sequence[tuple[int, int]],
    *,
    ways: Sequence[str] = tuple(WAYS),
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    kernel: Callable[[Callable[[], object]], float] = kernel_us,
    host: Callable[[Callable[[], object]], float] = host_us,
) -> list[Row]:
    """Run every way at each shape (rows, columns), and check what it wrote."""
    result = []
    for rows, columns in shapes:
        x = torch.randn(rows, columns, dtype=dtype, device=device)
        w = torch.randn(columns, dtype=dtype, device=device)
        wanted = torch.nn.functional.rms_norm(x.float(), (columns,), w.float(), EPS)
        for way in ways:
            y = torch.full_like(x, torch.nan)

            def launch(way: str = way, x: torch.Tensor = x, w: torch.Tensor = w, y: torch.Tensor = y) -> None:
                WAYS[way](x, w, y)

            start = time.perf_counter()
            launch()
            wrote = y.cpu()  # waits
            first_ms = 1e3 * (time.perf_counter() - start)
            torch.testing.assert_close(wrote, wanted.cpu(), check_dtype=False)
            result.append(Row(rows, columns, way, first_ms, kernel(launch), host(launch)))
    return result


def table(result: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'rows':>6} {'columns':>8}  {'way':16} {'first ms':>9} {'kernel us':>10} {'host us':>8}"]
    for row in result:
        lines.append(
            f"{row.rows:6} {row.columns:8}  {row.way:16} {row.first_ms:9.1f} {row.kernel_us:10.2f} {row.host_us:8.1f}"
        )
    return "\n".join(lines)


def main(
    rows: Annotated[str, typer.Option(help="Comma-separated.")] = "1,7,48,300,2000,10000",
    columns: Annotated[str, typer.Option(help="Comma-separated.")] = "1536,3072,6144,12288",
) -> None:
    """Print what each way costs on this machine's GPU.

    The tree is that of the folder models beside this file, or of AKS_MODELS.
    """
    print(table(compare([(int(m), int(n)) for n in columns.split(",") for m in rows.split(",")])))


if __name__ == "__main__":
    typer.run(main)
