"""The serving bench as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from aks.evaluate import page, pictures
from aks.evaluate.blocks import Load
from aks.evaluate.serving import Serving


def write_serving_report(result: Serving, load: Load, about: Mapping[str, str], path: Path) -> None:
    """Write the page to ``path``; its folder is made.

    about: what to print of the machine, with ``device`` and ``command``.
    """
    busy = fmean(sample.busy_percent for sample in result.gpu) if result.gpu else None
    # Of a way that served a few steps, as the cold autotuner does, shares say nothing.
    many = {
        way: taken
        for way, taken in result.latencies_ms.items()
        if 10 * len(taken) >= max(map(len, result.latencies_ms.values()))
    }
    drawn = [("Steps that take longer", pictures.latency_tail(many, "aks"))]
    context = {"result": result, "load": load, "about": about, "busy": busy, "pictures": drawn}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.render("serving.html.j2", context), encoding="utf-8")
