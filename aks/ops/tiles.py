"""Features of a matrix product that is cut into tiles, for specs of ops with axes m and n. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aks.core.features import Feature

_SPLIT_K = "max(split_k, 1)"
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


@dataclass(frozen=True, slots=True)
class Tiling:
    """What a config makes of a product: formulas of its tiles, over problem, config and device.

    resident: programs that an SM holds at once. splits: programs that share a tile's k.
    """

    block_m: str
    block_n: str
    block_k: str
    resident: str
    splits: str = _SPLIT_K

    @property
    def k_share(self) -> str:
        """Of k, what a program goes over."""
        return f"ceil_div(k, {self.splits})"

    @property
    def steps(self) -> str:
        """Steps along k of a program."""
        return f"ceil_div({self.k_share}, {self.block_k})"

    @property
    def padded_k(self) -> str:
        """Of k, what a program computes: whole steps."""
        return f"{self.steps} * {self.block_k}"

    @property
    def programs(self) -> str:
        """How many there are."""
        return f"(ceil_div(m, {self.block_m}) * ceil_div(n, {self.block_n}) * {self.splits})"

    def features(self, knobs: Sequence[str], weights: str, element_bytes: str) -> tuple[Feature, ...]:
        """For models of latency: the knobs as they are, and what the tiles come to.

        weights: of the program's columns, times as many weights as each has. element_bytes: of a weight, as a factor,
        or empty for 1.
        """
        m, n, k, programs = self.block_m, self.block_n, self.block_k, self.programs
        return (
            *(Feature(name, name) for name in knobs),
            Feature("block_m", m),
            Feature("block_n", n),
            Feature("split_k", self.splits),
            Feature("programs", programs),
            Feature("programs_per_sm", f"{programs} * 100 // sm_count", "percent"),
            Feature("resident", self.resident, "programs that an SM holds at once"),
            *wave_features(programs, self.resident),
            Feature("steps", self.steps, "steps along k of a program"),
            Feature("k_padding", f"{self.padded_k} * {self.splits} * 100 // k", "percent"),
            Feature("n_padding", f"ceil_div(n, {n}) * {n} * 100 // n", "percent"),
            Feature("m_padding", f"ceil_div(m, {m}) * {m} * 100 // m", "percent"),
            Feature("reads_of_w", f"ceil_div(m, {m})"),
            Feature(
                "program_kib", f"{weights} * {self.k_share}{element_bytes} // 1024", "weights that a program reads"
            ),
            Feature("k_rest", f"k % {k}"),
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
