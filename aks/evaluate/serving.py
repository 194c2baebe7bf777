"""Latency of decode steps under traffic whose batch never stays: aks, PyTorch, and ``@triton.autotune``.

A step is all linear layers of a few blocks of an 8B model, weights of their own each, so that they come from DRAM;
neither attention nor norms, whose cost is the same in every way. Its latency is the host's wall clock from the call
until the GPU is done: what a server waits, Python, launches and kernels together.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional

from aks.core.errors import BenchError
from aks.core.metrics import quantile
from aks.evaluate.blocks import Blocks, Linear, Load, Run
from aks.evaluate.first_request import FirstRequest, in_new_process, serve, served_by
from aks.evaluate.traffic import Step, bursty_trace
from aks.evaluate.utilization import GpuSample, GpuSampler, between, mean_busy
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher, graphs
from aks.runtime.capture import StepGraphs, measured_cost
from aks.runtime.graphs import Layer, Plan

WAYS = ("aks", "torch", "torch prepared", "autotune", "autotune cold", "aks graphs", "torch graphs")
"""How a step runs. Prepared, as aks always is: each layer ran once for each size. The graphs are one per interval of
``aks.runtime.graphs``, and one per power of two."""
_BLOCK_STEPS = 100  # that one way serves before the next has its turn at the same steps
_PADDING = 0.05  # what a batch may pay in its interval's graph


@dataclass(frozen=True, slots=True)
class StepLatency:
    """Milliseconds of a way's steps; gpu_busy_percent is NVML's mean meanwhile, None where it was not sampled."""

    way: str
    steps: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    worst_ms: float
    gpu_busy_percent: float | None = None

    @property
    def tail(self) -> float:
        """p99 over p50."""
        return self.p99_ms / self.p50_ms


@dataclass(frozen=True)
class Serving:
    """What was measured: the trace, fixed batches, first requests, and the graphs that were used.

    gpu are NVML's samples during the trace; preparing_seconds went before it into each way that takes part in it
    (without capturing graphs). latencies_ms has each step of the trace, by way.
    """

    trace: list[StepLatency]
    fixed: list[StepLatency]
    first: list[FirstRequest]
    gpu: list[GpuSample]
    plans: dict[str, Plan]
    distinct_m: int
    max_m: int
    preparing_seconds: dict[str, float]
    latencies_ms: dict[str, list[float]]


def bench_serving(
    linear: Linear,
    load: Load | None = None,
    *,
    bundle: Path | None = None,
    ways: Sequence[str] = WAYS,
    say: Callable[[str], None] = lambda line: None,
) -> Serving:
    """Serve the trace in all ways, by turns on the same steps, then a fixed batch in each; and time first requests.

    Parameters
    ----------
    linear : callable
        ``aks.linear`` with static weights. Other processes import it by name, so it must be picklable.
    load : Load, optional
        What is served; its defaults take some three minutes on an H200.
    bundle : Path, optional
        Folder of ``aks export --bundle``. Without it kernels are compiled before the trace.
    ways : sequence of str
        Of ``WAYS``.

    Raises
    ------
    BenchError
        If there is no GPU or no tree for it, a way is unknown, or there is nothing to serve.
    """
    load = load or Load()
    trace = bursty_trace(load.steps, max_batch=load.max_batch, seed=load.seed)
    _check(load, ways, bundle)
    say("timing first requests, in processes of their own")
    first = [in_new_process(way, linear, load, bundle) for way in ways if way in ("aks", "torch")]
    with served_by(bundle):
        blocks = Blocks(load, torch.device("cuda", torch.cuda.current_device()))
        server = Server(blocks, load, linear, trace, say)
        with GpuSampler(torch.cuda.current_device()) as gpu:
            cold = server.serve_cold() if "autotune cold" in ways else []
            runs = {way: server.prepare(way) for way in ways if way != "autotune cold"}
            say(f"serving {load.steps} steps in {len(runs)} ways")
            begin = datetime.now()
            taken = serve_by_turns(runs, server.batches, server.wait)
            end = datetime.now()
            spans = {way: server.serve_fixed(run) for way, run in runs.items()}
    taken |= {"autotune cold": cold} if cold else {}
    rows = [summarize(way, seconds) for way, seconds in taken.items()]
    latencies_ms = {way: [1e3 * value for value in seconds] for way, seconds in taken.items()}
    fixed = [summarize(way, seconds, mean_busy(gpu.samples, *span)) for way, (seconds, *span) in spans.items()]
    sampled, sizes = between(gpu.samples, begin, end), {step.m for step in trace}
    return Serving(
        rows, fixed, first, sampled, server.plans, len(sizes), max(sizes), server.preparing_seconds, latencies_ms
    )


class Server:
    """Prepares ways to run a step and times them."""

    def __init__(
        self, blocks: Blocks, load: Load, linear: Linear, trace: Sequence[Step], say: Callable[[str], None]
    ) -> None:
        self.blocks, self.load, self.say = blocks, load, say
        self.max_m = max(load.fixed_batch, *(step.m for step in trace))
        self._sizes = sorted({load.fixed_batch, *(step.m for step in trace)})
        first = next(iter(blocks.weights[0].values()))
        pool = torch.randn(self.max_m, load.sizes.hidden, device=first.device).to(first.dtype)
        self.batches = [pool[: step.m] for step in trace]  # made ahead: a view costs as much as a launch
        self._pool = pool
        self._linears: dict[str, Linear] = {"aks": linear, "torch": functional.linear}
        self.plans: dict[str, Plan] = {}
        self.preparing_seconds: dict[str, float] = {}
        self.wait: Callable[[], object] = torch.cuda.synchronize

    def prepare(self, way: str) -> Run:
        """A way that is ready: graphs captured, autotuned for each m of the trace, memory taken from the driver.

        aks is prepared for all sizes up to the largest (``aks.prepare``), and so is ``torch prepared``. Otherwise a
        few sizes are run once: what a size that is new costs is part of what is measured.
        """
        self.say(f"preparing {way}")
        start = time.perf_counter()
        kind, _, how = way.partition(" ")
        if kind == "autotune":
            from aks.evaluate.autotuned import autotuned_linear, brief_bench

            self._linears[kind] = autotuned_linear(brief_bench)
        run = self._plain(self._linears[kind])
        if kind == "aks" or how == "prepared":
            self.blocks.prepare(self._linears[kind], self.max_m)
        few = {1, self.load.fixed_batch, self.max_m}
        for m in self._sizes if kind == "autotune" else sorted(few):
            run(self._pool[:m])
        self.wait()
        self.preparing_seconds[way] = time.perf_counter() - start
        return self._in_graphs(kind) if how == "graphs" else run

    def serve_cold(self) -> list[float]:
        """Seconds of the first steps of the trace, tuned by Triton's own bench as they come, until time is up."""
        from aks.evaluate.autotuned import autotuned_linear

        self.say(f"serving with a cold autotuner for {self.load.cold_seconds:g} s")
        run, taken = self._plain(autotuned_linear()), []
        for x in self.batches:
            taken += serve(run, [x], self.wait)
            if sum(taken) > self.load.cold_seconds:
                break
        return taken

    def serve_fixed(self, run: Run) -> tuple[list[float], datetime, datetime]:
        """Seconds of steps of one size, and when they began and ended."""
        start = datetime.now()
        taken = serve(run, [self._pool[: self.load.fixed_batch]] * self.load.fixed_steps, self.wait)
        return taken, start, datetime.now()

    def _plain(self, linear: Linear) -> Run:
        return lambda x: self.blocks.step(linear, x)

    def _in_graphs(self, kind: str) -> Run:
        step = StepGraphs(
            self._plain(self._linears[kind]), [self._pool[:1]], graphs.powers_of_two(self.max_m), max_rows=self.max_m
        )
        if kind == "aks":
            served = dispatcher.dispatcher_of(self._pool.get_device())
            assert served is not None  # _check
            step.invalidate(_candidates(self.blocks.layers(), self.max_m, served))
            step.capture_pending()
            plan = graphs.plan(
                self.blocks.layers(), self.max_m, {GEMM.name: served.predictor}, served.device,
                padding=_PADDING, cost=measured_cost(step),
            )  # fmt: skip
            self.plans = {"aks graphs": plan, "powers of two": plan.with_tops(graphs.powers_of_two(self.max_m))}
            step.invalidate(plan.tops)
        step.capture_pending()
        return step


def _candidates(layers: Sequence[Layer], max_m: int, served: dispatcher.GemmDispatcher) -> list[int]:
    """Sizes to measure: ends of stretches, and sizes between, since a vendor's routine changes unseen.

    cuBLAS takes other kernels every 32 to 64 rows (H200), and a plan takes a size that was not measured for the next
    that was: wider steps would hide what such a size costs by itself. Capturing one takes milliseconds.
    """
    points = graphs.breakpoints(layers, max_m, {GEMM.name: served.predictor}, served.device)
    grid = [*range(16, min(max_m, 256), 16), *range(256, max_m, 32)]
    return sorted({*graphs.stretch_tops(points, max_m), *grid, *graphs.powers_of_two(max_m)})


def serve_by_turns(
    runs: Mapping[str, Run], batches: Sequence[Tensor], wait: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of each step in each way. Ways take turns at the same stretch of steps, another first each time."""
    taken: dict[str, list[float]] = {way: [] for way in runs}
    order = list(runs)
    gc.collect()  # what preparing left
    for start in range(0, len(batches), _BLOCK_STEPS):
        for way in order:
            taken[way] += serve(runs[way], batches[start : start + _BLOCK_STEPS], wait)
        order = [*order[1:], *order[:1]]
    return taken


def summarize(way: str, seconds: Sequence[float], gpu_busy_percent: float | None = None) -> StepLatency:
    """The figures of a way's steps."""
    ms = [1e3 * value for value in seconds]
    p50, p99, p999 = (quantile(ms, q) for q in (0.5, 0.99, 0.999))
    return StepLatency(way, len(ms), fmean(ms), p50, p99, p999, max(ms), gpu_busy_percent)


def _check(load: Load, ways: Sequence[str], bundle: Path | None) -> None:
    unknown = set(ways) - set(WAYS)
    if unknown or not ways or set(ways) == {"autotune cold"}:
        raise BenchError(f"ways {', '.join(ways)}; wanted of {', '.join(WAYS)}, and not the cold one alone")
    counts = (load.layers, load.fixed_batch, load.fixed_steps)
    if min(counts) < 1 or load.cold_seconds <= 0:
        raise BenchError(f"layers, fixed batch and steps {counts}, {load.cold_seconds} s cold; wanted more than 0 each")
    if not torch.cuda.is_available():
        raise BenchError("no CUDA GPU is visible, and serving is timed on one; use a machine with one")
    if bundle is None and dispatcher.dispatcher_of(torch.cuda.current_device()) is None:
        raise BenchError("no tree fits this GPU, so aks would run PyTorch's kernels; export one (aks export --bundle)")
