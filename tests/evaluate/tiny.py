"""Measurement frames small enough to score by hand: problems by m, configs by their column, samples as given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from aks.core.device import find_device
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import Record
from aks.ops import OPS
from tests.synthetic import ENVIRONMENT

OP = OPS["gemm"]
VENDOR = OP.vendor


def _legal(sizes: Sequence[int], static_weights: bool) -> list:
    """Configs that are legal for every problem of ``make_frame`` with m in ``sizes``, in the space's order."""
    rows = [{"m": m, "n": 4096, "k": 4096, "static_weights": static_weights} for m in sizes]
    legal = [OP.space.legal(OP.problem_type.from_row(row), find_device("h200")) for row in rows]
    return [config for config in legal[0] if config != VENDOR and all(config in others for others in legal)]


PLAIN, OTHER = _legal((1, 4, 16, 512), static_weights=False)[:2]
EARLY = next(config for config in _legal((1, 2, 16), True) if config not in _legal((1, 2, 16), False))
"""Legal for static weights only."""


def make_frame(
    table: Mapping[int, Mapping],
    *,
    families: Mapping[int, Sequence[str]] | None = None,
    regime: Regime = Regime.COLD,
    run_id: str = "one",
    device: str = "h200",
    n: int = 4096,
) -> pd.DataFrame:
    """Rows of ``{m: {config: samples in microseconds, or a Status}}``."""
    rows = []
    for m, cells in table.items():
        problem = OP.problem_type.from_row({"m": m, "n": n, "k": 4096, "static_weights": True})
        for config, cell in cells.items():
            status = cell if isinstance(cell, Status) else Status.OK
            samples = () if isinstance(cell, Status) else tuple(float(sample) for sample in cell)
            record = Record(
                measurement=Measurement(problem, config, regime, status, samples),
                device=find_device(device),
                environment=ENVIRONMENT,
                space_fingerprint=OP.space.fingerprint,
                families=tuple((families or {}).get(m, ("alpha",))),
                run_id=run_id,
                measured_at="2026-01-01T00:00:00+00:00",
            )
            rows.append(record.to_row())
    return pd.DataFrame(rows)
