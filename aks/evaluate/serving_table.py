"""What the serving bench found, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch

from aks.evaluate.serving import Serving, StepLatency
from aks.runtime.graphs import Plan

_PREPARED = {
    "aks": "ran each layer once for every size up to the largest before",
    "torch prepared": "did the same",
    "autotune": "was tuned for every size of the trace before, briefly",
}
_HEADER = f"{'way':<15}{'steps':>7}{'mean':>10}{'p50':>10}{'p99':>10}{'p99.9':>10}{'worst':>10}"


def device_name() -> str:
    """Of the current GPU."""
    return torch.cuda.get_device_name()


def serving_table(result: Serving) -> str:
    """The tables that ``aks bench serving`` prints."""
    return "\n".join(_lines(result))


def serving_row(result: Serving) -> dict[str, Any]:
    """All figures for JSON."""
    return {
        "distinct_m": result.distinct_m,
        "max_m": result.max_m,
        "preparing_seconds": result.preparing_seconds,
        "trace": [asdict(row) for row in result.trace],
        "fixed": [{**asdict(row), "p99_over_p50": row.tail} for row in result.fixed],
        "first": [{**asdict(row), "first_over_steady": row.ratio} for row in result.first],
        "gpu": [{**asdict(sample), "time": sample.time.isoformat()} for sample in result.gpu],
        "latencies_ms": {way: [round(ms, 4) for ms in steps] for way, steps in result.latencies_ms.items()},
        "plans": {name: _plan_row(plan) for name, plan in result.plans.items()},
    }


def _lines(result: Serving) -> Iterator[str]:
    yield f"\nTrace: {result.distinct_m} sizes, up to {result.max_m} rows. Milliseconds of a step:"
    yield _HEADER
    yield from map(_latency_line, result.trace)
    for way, what in _PREPARED.items():
        if seconds := result.preparing_seconds.get(way):
            yield f"  {way} {what}: {seconds:.1f} s"
    if any(row.way == "autotune cold" for row in result.trace):
        yield "  autotune cold tunes while it serves, by Triton's own bench: the first steps of the trace alone"
    if result.gpu:
        busy, clock = (fmean(getattr(sample, name) for sample in result.gpu) for name in ("busy_percent", "sm_mhz"))
        yield f"  NVML, all ways together: GPU {busy:.0f} % busy, {clock:.0f} MHz"
    yield "\nOne size. Milliseconds of a step, and how busy NVML says the GPU was:"
    yield f"{_HEADER}{'p99/p50':>10}{'busy':>7}"
    for row in result.fixed:
        busy = "" if row.gpu_busy_percent is None else f"{row.gpu_busy_percent:.0f} %"
        yield f"{_latency_line(row)}{row.tail:>10.3f}{busy:>7}"
    yield "\nFirst step of a new process, after loading and preparing (PyTorch: loading):"
    for row in result.first:
        yield f"{row.way:<15}{row.first_ms:>10.3f} ms, then {row.steady_ms:.3f} ms: {row.ratio:.2f}x"
    if result.plans:
        yield "\nGraphs, by the measured cost of their sizes:"
        for name, plan in result.plans.items():
            yield (
                f"{name:<15}{len(plan.tops):>4} graphs; padding costs {plan.worst_padding:.1%} at most, "
                f"{plan.mean_padding:.1%} on average, in {plan.mean_rows:.1%} more rows"
            )


def _latency_line(row: StepLatency) -> str:
    figures = (row.mean_ms, row.p50_ms, row.p99_ms, row.p999_ms, row.worst_ms)
    return f"{row.way:<15}{row.steps:>7}" + "".join(f"{value:>10.3f}" for value in figures)


def _plan_row(plan: Plan) -> dict[str, Any]:
    return {
        "tops": plan.tops,
        "worst_padding": plan.worst_padding,
        "mean_padding": plan.mean_padding,
        "mean_rows": plan.mean_rows,
    }
