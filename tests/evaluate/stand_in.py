"""A tree made by hand over two configs, exported to a folder: enough for what only needs some tree."""

from __future__ import annotations

import json
from pathlib import Path

from aks.core.device import find_device
from aks.export.bundle import export
from tests.evaluate.tiny import OP, PLAIN


def write_models(folder: Path, *, threshold: int = 100, held_out: tuple[str, ...] = ("beta",)) -> Path:
    """Export a tree that picks PLAIN for m below ``threshold`` and the vendor above; returns ``folder``."""
    selector = {
        "format": "aks-selector",
        "version": 1,
        "op": OP.name,
        "regime": "cold",
        "device": find_device("h200").to_row(),
        "devices": ["h200"],
        "space_fingerprint": OP.space.fingerprint,
        "dataset": {"sha256": "0" * 64, "path": "", "rows": 1, "problems": 1, "held_out_families": list(held_out)},
        "features": [{"name": f.name, "formula": f.formula, "doc": f.doc} for f in OP.features],
        "portfolio": [OP.vendor.to_row(), PLAIN.to_row()],
        "support": {
            "axes": {"m": [1, 4096], "n": [64, 32768], "k": [64, 32768]},
            "choices": {"dtype": ["bf16"], "w_layout": ["nk"], "alignment": [16]},
        },
        "tree": {
            "feature": [[f.name for f in OP.features].index("m"), -1, -1],
            "threshold": [float(threshold), 0.0, 0.0],
            "left": [1, 0, 0],
            "right": [2, 0, 0],
            "ranking": [None, [1, 0], [0]],
            "expected_slowdown": [None, [1.0, 1.2], [1.0]],
            "count": [0, 10, 5],
            "abstain": [False, False, False],
        },
        "seed": 0,
        "command": "aks train gemm",
        "metrics": {},
    }
    path = folder / "selector.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(selector))
    export(path, folder)
    return folder
