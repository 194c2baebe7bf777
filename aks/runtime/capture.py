"""CUDA graphs of a step, one for each of some batch sizes, captured between steps and replayed in serving."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from aks.core.errors import GraphError

Outputs = Tensor | tuple[Tensor, ...]
_WARM_STEPS = 2
"""Of each size before it is captured: what is compiled, asked of a library or allocated, is so in these."""


class StepGraphs:
    """A step that is replayed from the smallest captured graph that its batch fits.

    The batch's inputs are copied into static buffers, whose first so many rows a graph reads. A batch whose graph is
    not captured runs eagerly, is counted in ``missed``, and its graph waits in ``pending`` for ``capture_pending``.

    Rows past the batch hold zeros or what an earlier batch left there. So rows must not affect one another, and
    what the step writes elsewhere for such rows (a cache) must be expendable.

    Parameters
    ----------
    step : callable
        Takes as many tensors as ``inputs``, each with m rows, and returns one tensor or a tuple of them, each with m
        rows too. Has to be what CUDA can capture: no waiting, no reading back.
    inputs : sequence of Tensor
        One example of each input with any number of rows: shape of a row, dtype and device are taken from it.
    tops : sequence of int
        Rows of the graphs (``Plan.tops``). None is captured yet.
    max_rows : int, optional
        Batches of more rows are never captured; the buffers have so many. Default: 4 times the highest top. A batch
        between the two has the next power of two captured.
    version : callable, optional
        What the graphs depend on, such as ``lambda: predictor.version``. When its answer changes, they are dropped.

    Raises
    ------
    GraphError
        If there are no inputs or tops, or the tops are not within 1 to max_rows.

    Notes
    -----
    ``capture_pending`` belongs between steps, on the thread that serves: warming up runs the step, on buffers that
    serving fills. Other threads may go on launching on streams of their own meanwhile: the capture's error mode is
    ``thread_local``, so their allocations do not break it, and nothing in it waits for the whole device or empties
    PyTorch's cache, as ``torch.cuda.graph`` does. They must draw no random numbers on the GPU, though: PyTorch's
    generator belongs to the capture. All graphs share one memory pool and one stream's workspaces, so
    they must not be replayed at the same time.
    """

    def __init__(
        self,
        step: Callable[..., Outputs],
        inputs: Sequence[Tensor],
        tops: Sequence[int],
        *,
        max_rows: int | None = None,
        version: Callable[[], Hashable] | None = None,
    ) -> None:
        if not inputs or not tops:
            raise GraphError(f"{len(inputs)} inputs and {len(tops)} graphs; wanted at least one of each")
        self.max_rows = 4 * max(tops) if max_rows is None else max_rows
        self.pending = self._sizes(tops)
        self.missed: Counter[int] = Counter()
        self._step = step
        self._buffers = [
            torch.zeros(self.max_rows, *one.shape[1:], dtype=one.dtype, device=one.device) for one in inputs
        ]
        self._version = version
        self._seen = version() if version else None
        self._rows: list[int] = []
        self._graphs: dict[int, tuple[Callable[[], object], tuple[Tensor, ...], bool]] = {}
        self._recorder: _Recorder | None = None

    @property
    def captured(self) -> tuple[int, ...]:
        """Rows of the graphs that there are, ascending."""
        return tuple(self._rows)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """The step's outputs for a batch: views of a graph's own memory, which the next call overwrites.

        Raises
        ------
        GraphError
            If the inputs are other than was said, but for the number of rows, which they must share.
        """
        rows = self._check(inputs)
        if self._version is not None and self._version() != self._seen:
            self.invalidate()
        top, waiting = _next(self._rows, rows), _next(self.pending, rows)
        # Not in a graph that is larger than the one that was planned for it: that could cost many times as much.
        if top is None or (waiting is not None and waiting < top):
            self._note(rows)
            return self._step(*inputs)
        replay, outputs, single = self._graphs[top]
        for buffer, one in zip(self._buffers, inputs, strict=True):
            buffer[:rows].copy_(one)
        replay()
        return outputs[0][:rows] if single else tuple(output[:rows] for output in outputs)

    def capture_pending(self, limit: int | None = None) -> int:
        """Capture what is pending, the largest first (memory is then shared best); how many were captured.

        Runs the step a few times for each, with the values that the buffers hold. limit: at most so many, for a
        short pause. What the step raises is raised here, and its size stays pending.
        """
        done = 0
        while self.pending and (limit is None or done < limit):
            self._capture(self.pending[-1])
            self.pending.pop()
            done += 1
        return done

    def time_replay(self, rows: int) -> float:
        """Microseconds in which the GPU replays the captured graph of so many rows."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graphs[rows][0]()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end)

    def invalidate(self, tops: Sequence[int] | None = None) -> None:
        """Drop all graphs, and have those of ``tops`` (default: the same sizes) captured anew.

        For whoever changes what a step launches: another tree, other weights' memory. Until ``capture_pending``
        steps run eagerly. The caller sees to it that no replay is under way.
        """
        self.pending = self._sizes([*self.pending, *self._rows] if tops is None else tops)
        self._rows, self._graphs = [], {}
        if self._recorder:
            self._recorder.drop_pool()
        self._seen = self._version() if self._version else None

    def _note(self, rows: int) -> None:
        self.missed[rows] += 1
        if rows <= self.max_rows and _next(self.pending, rows) is None:
            insort(self.pending, min(self.max_rows, 1 << (rows - 1).bit_length()))

    def _capture(self, rows: int) -> None:
        self._recorder = self._recorder or _Recorder(self._buffers[0].device)
        views = [buffer[:rows] for buffer in self._buffers]
        replay, outputs = self._recorder.record(lambda: self._step(*views))
        single = isinstance(outputs, Tensor)
        kept: tuple[Tensor, ...] = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        if any(output.shape[0] != rows for output in kept):
            raise GraphError(
                f"the step makes {[tuple(output.shape) for output in kept]} of {rows} rows; wanted as many rows first"
            )
        self._graphs[rows] = replay, kept, single
        insort(self._rows, rows)

    def _sizes(self, tops: Sequence[int]) -> list[int]:
        if min(tops) < 1 or max(tops) > self.max_rows:
            raise GraphError(f"graphs of {sorted(tops)} rows; wanted from 1 to max_rows, which is {self.max_rows}")
        return sorted(set(tops))

    def _check(self, inputs: Sequence[Tensor]) -> int:
        rows = inputs[0].shape[0] if inputs and inputs[0].dim() else 0
        wanted = [(rows, *buffer.shape[1:]) for buffer in self._buffers]
        if (
            not rows
            or [one.shape for one in inputs] != wanted
            or any(one.dtype != buffer.dtype for one, buffer in zip(inputs, self._buffers, strict=True))
        ):
            came = [(tuple(one.shape), one.dtype) for one in inputs]
            like = [("rows", *buffer.shape[1:], buffer.dtype) for buffer in self._buffers]
            raise GraphError(f"the step was given {came}; wanted tensors of {like}, with the same number of rows, 1 up")
        return rows


def _next(sizes: Sequence[int], rows: int) -> int | None:
    """The smallest of the ascending sizes that so many rows fit; None if there is none."""
    place = bisect_left(sizes, rows)
    return sizes[place] if place < len(sizes) else None


def measured_cost(graphs: StepGraphs, *, replays: int = 7) -> Callable[[int], float]:
    """What a step of m rows costs by the captured graphs: microseconds of the smallest that fits, for ``plan``.

    Each graph is replayed so many times, by turns, and the median counts. Capture graphs of many sizes for this
    (``stretch_tops``, and between them where they lie apart), drop them, and keep those that the plan names
    (``StepGraphs.invalidate``).

    Raises
    ------
    GraphError
        If no graph is captured; of the function returned: if m is larger than all.
    """
    sizes = graphs.captured
    if not sizes:
        raise GraphError("no graph is captured, so there is none to measure; capture_pending() first")
    samples: dict[int, list[float]] = {rows: [] for rows in sizes}
    for turn in range(replays + 1):
        for rows in sizes:
            latency_us = graphs.time_replay(rows)
            if turn:  # the first of each may find the GPU asleep
                samples[rows].append(latency_us)
    costs = [median(samples[rows]) for rows in sizes]

    def cost(m: int) -> float:
        if m > sizes[-1]:
            raise GraphError(f"{m} rows were not measured; wanted at most {sizes[-1]}")
        return costs[bisect_left(sizes, m)]

    return cost


class _Recorder:
    """Captures on a stream of its own into one memory pool. Workspaces belong to the stream, so it stays."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()

    def drop_pool(self) -> None:
        """Use another: PyTorch frees one whose graphs are all gone, and takes it for no more captures."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """A replay of ``run``, and the outputs that it fills."""
        current, graph = torch.cuda.current_stream(self._stream.device), torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_STEPS):
                run()
            self._stream.synchronize()
            # Not torch.cuda.graph, which waits for the device and empties the cache: other threads serve.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = run()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay, outputs
