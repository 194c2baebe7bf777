"""Figures for a choice on problems that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aks.core.metrics import geomean, score
from aks.train.examples import Examples

Band = tuple[int, int | None]

BANDS: tuple[Band, ...] = ((1, 1), (2, 16), (17, 256), (257, None), (1, 64))
"""Ranges of an op's first axis (m), ends included, that figures are given for; the last lies across."""


def band_name(band: tuple[int, int | None], axis: str = "m") -> str:
    """``m_1``, ``m_2_16``, ``m_over_256``."""
    low, high = band
    if high is None:
        return f"{axis}_over_{low - 1}"
    return f"{axis}_{low}" if low == high else f"{axis}_{low}_{high}"


def in_band(axes: NDArray[np.int64], band: tuple[int, int | None]) -> NDArray[np.bool_]:
    """[P]: whether the first of axes [P, A] lies in the band."""
    low, high = band
    return (axes[:, 0] >= low) & ((axes[:, 0] <= high) if high is not None else True)


def score_choice(examples: Examples, choice: NDArray[np.intp] | None, *, axis: str = "m") -> dict[str, float]:
    """Regret and speed-up of a choice [P], whole and by band; None scores the oracle. Empty bands are left out."""
    chosen_us = examples.oracle_us if choice is None else examples.chosen_us(choice)
    row = score(chosen_us.tolist(), examples.oracle_us.tolist(), examples.baseline_us.tolist()).to_row()
    for band in BANDS:
        inside = in_band(examples.inputs.axes, band)
        if inside.any():
            name = band_name(band, axis)
            row[f"speedup_{name}"] = geomean((examples.baseline_us[inside] / chosen_us[inside]).tolist())
            row[f"regret_{name}"] = float((chosen_us[inside] / examples.oracle_us[inside]).mean() - 1)
    return row


def best_in_portfolio(examples: Examples) -> NDArray[np.intp]:
    """[P]: the fastest measured class, as nobody can know it beforehand."""
    usable = examples.inputs.legal & np.isfinite(examples.latency_us)
    return np.where(usable, examples.latency_us, np.inf).argmin(axis=1)


def score_all(
    examples: Examples, choices: Mapping[str, NDArray[np.intp]], *, axis: str = "m"
) -> dict[str, dict[str, float]]:
    """``score_choice`` of the vendor, of each of ``choices``, and of the two oracles."""
    everything: dict[str, NDArray[np.intp] | None] = {
        "vendor": np.zeros(len(examples), dtype=np.intp),
        **choices,
        "portfolio_oracle": best_in_portfolio(examples),
        "oracle": None,
    }
    return {name: score_choice(examples, choice, axis=axis) for name, choice in everything.items()}
