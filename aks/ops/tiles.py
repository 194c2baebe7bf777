"""Features of a matrix product that is cut into tiles, for specs of ops with axes m and n. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from aks.core.features import Feature

_GPU_PROGRAMS = "(gpu_sm_count * 15 // 16)"
PARTITION_FEATURES = (
    Feature("gpu_waves", f"ceil_div({_GPU_PROGRAMS}, sm_count)", "of what a vendor runs as one over the whole GPU"),
    Feature(
        "gpu_fill",
        f"{_GPU_PROGRAMS} * 100 // (ceil_div({_GPU_PROGRAMS}, sm_count) * sm_count)",
        "share of the SMs that are busy in these waves, percent",
    ),
)
"""Vendors' libraries plan one wave over the whole GPU, or nearly so, whatever part of it they run on.

Measured on an H200: with m > 128, cuBLAS runs on 64, 80, 96 and 112 of its 132 SMs for the same two waves.
"""


def tile_features(tiles: Sequence[tuple[int, int]]) -> tuple[Feature, ...]:
    """How many tiles of so many (rows, columns) there are."""
    return tuple(Feature(f"tiles_{bm}x{bn}", _tiles(bm, bn)) for bm, bn in tiles)


def tile_wave_features(tiles: Sequence[tuple[int, int]]) -> tuple[Feature, ...]:
    """Waves that the tiles are to the SMs, and the last wave's share of the SMs, for each (rows, columns) of a tile."""
    return (
        *(Feature(f"waves_{bm}x{bn}", f"ceil_div({_tiles(bm, bn)}, sm_count)") for bm, bn in tiles),
        *(
            Feature(
                f"tail_{bm}x{bn}",
                f"{_tiles(bm, bn)} % sm_count * 100 // sm_count",
                "share of the SMs busy in the last wave, percent",
            )
            for bm, bn in tiles
        ),
    )


def _tiles(rows: int, columns: int) -> str:
    return f"ceil_div(m, {rows}) * ceil_div(n, {columns})"


def wave_features(programs: str, resident: str) -> tuple[Feature, ...]:
    """How programs, of which an SM holds so many at once, fill the SMs."""
    return (
        Feature("waves", f"{programs} * 100 // (sm_count * {resident})", "percent"),
        Feature("sm_fill", f"{programs} * 1000 // (ceil_div({programs}, sm_count) * sm_count)", "permille"),
        Feature(
            "wave_fill",
            f"{programs} * 1000 // (ceil_div({programs}, sm_count * {resident}) * sm_count * {resident})",
            "permille",
        ),
    )


def arithmetic_ns(programs: str, tile: str, steps: str, rate: int = 1) -> str:
    """Formula of the arithmetic of whole tiles (their elements by ``steps`` of k) in whole waves, at full rate."""
    per_ns = f"(tflops_16bit * {500 * rate} // 16)"
    return f"ceil_div({programs}, sm_count) * sm_count * {tile} // 16 * ({steps}) // {per_ns}"


def analytic_ns(
    programs: str, block_m: str, block_n: str, steps: str, element_bytes: str, rate: int = 1
) -> str:  # fmt: skip
    """Formula of what a config takes if nothing overlaps: DRAM, then the SMs' loads, then ``arithmetic_ns``.

    All bytes cross DRAM once, at the rate that the waves' filled share of the SMs has; an SM loads its tiles'
    operands at 64 bytes a clock; rate is ``Op.rate``. Choosing by the longest of the three, as a roofline would, is
    worse on all that was measured: too many configs tie.
    """
    waves = f"ceil_div({programs}, sm_count)"
    moving = f"(m * n + m * k + n * k) * {element_bytes} // dram_gb_s * ({waves} * sm_count) // {programs}"
    loading = f"{waves} * ({block_m} + {block_n}) * ({steps}) * {element_bytes} * 1000 // (64 * clock_mhz)"
    return f"{moving} + {loading} + {arithmetic_ns(programs, f'{block_m} * {block_n}', steps, rate)}"
