"""``aks stability``: whether a choice survives measuring again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from aks.cli.options import Data, OpName, RegimeName, Seed, data_paths
from aks.core.measurement import Regime


def stability(
    op: OpName = "gemm",
    data: Data = None,
    regime: RegimeName = Regime.COLD,
    seed: Seed = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
) -> None:
    """Train twice, on two measurements of the same problems, and say how far the choices differ.

    Takes the problems that several runs measured: one training has each as its first run saw it, the
    other as its last. Prints how many choices flip, how many flips are near-ties, and what flips cost.
    Needs the 'train' extra.

    \b
    Examples:
      aks stability
      aks stability --data data/gemm/h200.parquet --json stability.json
      aks stability --data runs/monday.parquet --data runs/friday.parquet
    """
    from aks.evaluate.stability import measure_stability
    from aks.evaluate.tables import print_stability
    from aks.ops import find_op
    from aks.train.fit import Options

    known_op = find_op(op)
    result = measure_stability(
        known_op,
        data_paths(known_op.name, data),
        regime=regime,
        options=Options(seed=seed),
        progress=lambda text: print(text, file=sys.stderr),
    )
    print_stability(result)
    if json_out:
        json_out.write_text(json.dumps(result.to_json(), indent=1) + "\n")
