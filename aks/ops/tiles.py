"""Features of a matrix product that is cut into tiles, for specs of ops with axes m and n. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from aks.core.features import Feature

PARTITION_FEATURES = (
    Feature("gpu_waves", "ceil_div(gpu_sm_count, sm_count)", "of what a vendor plans as one wave over the whole GPU"),
    Feature("gpu_fill", "gpu_sm_count * 100 // (ceil_div(gpu_sm_count, sm_count) * sm_count)", "of these, percent"),
)
"""Vendors' libraries plan for all SMs of the GPU, whatever part of them they run on."""


def tile_features(tiles: Sequence[tuple[int, int]]) -> tuple[Feature, ...]:
    """Tiles, waves and the last wave's share of the SMs, for each (rows, columns) of a tile."""
    return (
        *(Feature(f"tiles_{bm}x{bn}", f"ceil_div(m, {bm}) * ceil_div(n, {bn})") for bm, bn in tiles),
        *(
            Feature(f"waves_{bm}x{bn}", f"ceil_div(ceil_div(m, {bm}) * ceil_div(n, {bn}), sm_count)")
            for bm, bn in tiles
        ),
        *(
            Feature(
                f"tail_{bm}x{bn}",
                f"ceil_div(m, {bm}) * ceil_div(n, {bn}) % sm_count * 100 // sm_count",
                "share of the SMs busy in the last wave, percent",
            )
            for bm, bn in tiles
        ),
    )
