"""Timing on the GPU: checked first, captured in CUDA graphs, candidates interleaved and raced.

A latency is that of one launch inside a CUDA graph of many, so launch overhead on the host does not
count and launches may overlap as they do when served. What a graph's launches read rotates over
copies of the weights that together exceed L2 (regime ``cold``): a decode step reads each weight
once. Candidates take turns, replay by replay, so that drifts of clock and temperature hit all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from aks.collect.outcome import Outcome, WorkerPoisonedError
from aks.collect.partition import stream_on
from aks.core import formula
from aks.core.config import Config
from aks.core.device import DeviceSpec, current_device
from aks.core.errors import AksError, UnsupportedRoutineError
from aks.core.measurement import Measurement, Regime, Status
from aks.core.problem import Problem
from aks.ops.op import Op

COLD_L2_MULTIPLE = 2.5
"""Rotated weights are at least this many times L2: even a cache that is not least-recently-used forgets them."""
MAX_COPIES = 256
GRAPH_US = 250.0
"""A graph lasts about this long: its start on the GPU (2 us) then weighs 1 % or less, on all alike."""
MAX_LAUNCHES = 128
FIRST_LOOK_LAUNCHES = 8


@dataclass(frozen=True, slots=True)
class Racing:
    """When candidates are dropped, and how many samples the others get.

    After a first look with a short graph, candidates that are slower than ``first`` x the best, and
    are so again at a second look, stop (one disturbed sample is no reason to drop a config); after
    ``early`` samples of the full graph, those slower than ``second`` x; those within ``final`` x get
    ``samples`` in all.
    """

    first: float = 1.4
    second: float = 1.15
    final: float = 1.06
    early: int = 3
    samples: int = 9


@dataclass(slots=True)
class _Candidate:
    config: Config
    bind: Callable[[int], Callable[[int], None]]
    """From the index of a copy of the weights to a launch on a stream handle."""
    graph: torch.cuda.CUDAGraph | None = None
    num_launches: int = 0
    samples_us: list[float] = field(default_factory=list)
    out: bool = False

    @property
    def latency_us(self) -> float:
        return median(self.samples_us)

    def drop(self) -> None:
        """It takes no more part; its graph's memory is given back."""
        self.out, self.graph = True, None


class Timer:
    """What all measurements of one process share: device facts, a stream, scratch memory."""

    def __init__(self, op: Op, device: DeviceSpec | None = None, racing: Racing | None = None) -> None:
        self.op = op
        self.device = device or current_device()
        self.racing = racing or Racing()
        self.stream, self._partition = stream_on(self.device)
        self.aside = torch.cuda.Stream() if self._partition else self.stream
        self.pool = torch.cuda.graph_pool_handle()
        self.scratch = op.launch.Scratch(torch.device("cuda", torch.cuda.current_device()))
        self.window = 0
        self.copies = 1

    def measure(
        self,
        problem: Problem,
        configs: Sequence[Config],
        regime: Regime,
        starting: Callable[[Config], None] = lambda config: None,
    ) -> list[Outcome]:
        """Check and time ``configs`` on ``problem``; one outcome each, in no particular order.

        ``starting`` is told each config right before it first runs, so that a crash has a name.

        Raises
        ------
        WorkerPoisonedError
            If a kernel faulted: this process can use the GPU no more.
        """
        with torch.cuda.stream(self.stream):
            return list(self._measure(problem, configs, regime, starting))

    def _measure(self, problem, configs, regime, starting) -> Iterator[Outcome]:
        # A pool lives as long as a graph that uses it, so each race has its own.
        self.pool = torch.cuda.graph_pool_handle()
        limit_us = max(2.0, self.op.limit_us(problem, self.device))
        self.copies = self._copies(problem, regime)
        try:
            with self._on_all_sms():
                inputs = self.op.reference.make_inputs(problem, copies=self.copies)
        except torch.OutOfMemoryError as error:
            for config in configs:
                yield Outcome(Measurement(problem, config, regime, Status.OUT_OF_RESOURCES, (), str(error)[:500]))
            return
        # Neighbours write x, always the same, so what is expected comes after them.
        neighbours = Neighbours(inputs, self.stream, self.pool) if regime is Regime.CHAIN else None
        with self._on_all_sms():
            expected = self.op.reference.reference(problem, inputs.x, inputs.w[0])
        racers: list[_Candidate] = []
        for config in configs:
            starting(config)
            bind = cache(self._binder(config, problem, inputs))
            status, detail = self._check(problem, config, inputs, expected, bind)
            if status is Status.OK:
                racers.append(_Candidate(config, bind))
            else:
                yield Outcome(Measurement(problem, config, regime, status, (), detail))
        if not racers:
            return
        # Launches read the copies in turn; as many as fill the time, or fit it where one launch is long.
        full = int(min(MAX_LAUNCHES, max(2, GRAPH_US / limit_us)))
        self._first_look(racers, min(full, FIRST_LOOK_LAUNCHES), neighbours, starting)
        self._race(racers, full, neighbours, starting)
        clock = _sm_clock_mhz()
        for racer in racers:
            status = Status.RACED_OUT if racer.out else Status.OK
            samples = tuple(racer.samples_us)
            yield Outcome(Measurement(problem, racer.config, regime, status, samples), racer.num_launches, clock)

    @contextmanager
    def _on_all_sms(self) -> Iterator[None]:
        """For what is not timed: the current stream is one of the whole GPU, in order with the timed one."""
        self.stream.synchronize()
        with torch.cuda.stream(self.aside):
            yield
        self.aside.synchronize()

    def _copies(self, problem: Problem, regime: Regime) -> int:
        if regime is Regime.WARM:
            return 1
        weight_bytes = formula.compile_python(self.op.weight_bytes)(problem.variables())
        return max(2, min(MAX_COPIES, int(COLD_L2_MULTIPLE * self.device.l2_bytes / weight_bytes) + 1))

    def _binder(self, config: Config, problem: Problem, inputs: Any):
        def bind(copy: int) -> Callable[[int], None]:
            return self.op.launch.bind(
                config, problem, inputs.x, inputs.w[copy], inputs.out, device=self.device, scratch=self.scratch
            )

        return bind

    def _check(self, problem, config, inputs, expected, bind) -> tuple[Status, str]:
        """Run once into poisoned memory, compare, run again, compare bit by bit."""
        try:
            launch = bind(0)
            handle = self.stream.cuda_stream
            with self._on_all_sms():
                self.op.reference.poison(inputs.out)
            launch(handle)
            with self._on_all_sms():
                wrong = self.op.reference.check(problem, inputs.out, expected)
                if wrong:
                    return Status.WRONG_RESULT, wrong
                first = [out.clone() for out in _outputs(inputs)]
                self.op.reference.poison(inputs.out)
            launch(handle)
            with self._on_all_sms():
                same = all(map(_same_bits, first, _outputs(inputs)))
            if not same:
                return Status.NONDETERMINISTIC, "two launches on the same inputs differ"
            return Status.OK, ""
        except OutOfResources as error:
            return Status.OUT_OF_RESOURCES, str(error)
        except (CompilationError, PTXASError) as error:
            return Status.COMPILE_ERROR, str(error)[:500]
        except UnsupportedRoutineError as error:
            return Status.UNSUPPORTED, str(error)
        except (AksError, RuntimeError) as error:  # torch and Triton raise RuntimeError for driver errors
            _raise_if_poisoned(config, error)
            return Status.LAUNCH_ERROR, str(error)[:500]

    def _first_look(self, racers: list[_Candidate], num_launches, neighbours, starting) -> None:
        for racer in racers:
            starting(racer.config)
            self._capture(racer, num_launches, neighbours)
        self._sample(racers, neighbours, starting)
        bound_us = min(racer.latency_us for racer in racers) * self.racing.first
        losers = [racer for racer in racers if not self._keeps(racer, bound_us)]
        self._sample(losers, neighbours, starting)
        for racer in losers:
            if min(racer.samples_us) > bound_us:
                racer.drop()

    def _race(self, racers: list[_Candidate], num_launches, neighbours, starting) -> None:
        racing = self.racing
        alive = [racer for racer in racers if not racer.out]
        for racer in alive:
            starting(racer.config)
            racer.samples_us.clear()
            self._capture(racer, num_launches, neighbours)
        for _ in range(racing.early):
            self._sample(alive, neighbours, starting)
        self._drop(alive, racing.second)
        best = min(racer.latency_us for racer in alive)
        finalists = [racer for racer in alive if self._keeps(racer, best * racing.final)]
        for _ in range(racing.samples - racing.early):
            self._sample(finalists, neighbours, starting)

    def _drop(self, racers: list[_Candidate], factor: float) -> None:
        best = min(racer.latency_us for racer in racers)
        for racer in racers:
            if not self._keeps(racer, best * factor):
                racer.drop()

    def _keeps(self, racer: _Candidate, bound_us: float) -> bool:
        # The vendor's call is what everything is compared with, so it always gets all samples.
        return racer.latency_us <= bound_us or racer.config == self.op.vendor

    def _capture(self, racer: _Candidate, num_launches: int, neighbours: Neighbours | None) -> None:
        """Capture ``num_launches`` and replay them once, which uploads the graph."""
        with _capturing(self.stream, self.pool) as graph:
            for index in range(num_launches):
                if neighbours:
                    neighbours.before()
                racer.bind((self.window + index) % self.copies)(self.stream.cuda_stream)
                if neighbours:
                    neighbours.after()
        # The next candidate goes on where this one ends: it never meets weights that are still in L2.
        self.window = (self.window + num_launches) % self.copies
        racer.graph, racer.num_launches = graph, num_launches
        try:
            graph.replay()
            self.stream.synchronize()
        except RuntimeError as error:
            raise WorkerPoisonedError(f"{racer.config.key()}: {error}") from error

    def _sample(self, racers: list[_Candidate], neighbours: Neighbours | None, starting) -> None:
        """One more sample of each, in turn."""
        for racer in racers:
            if racer.graph is None:
                raise WorkerPoisonedError(f"{racer.config.key()} was sampled before it was captured")
            starting(racer.config)  # a hang has a name too
            latency_us = _replay_us(racer.graph) / racer.num_launches
            if neighbours:
                # A chain can be faster than its neighbours alone only by noise; a latency must be positive.
                latency_us = max(0.01, latency_us - neighbours.sample(racer.num_launches))
            racer.samples_us.append(latency_us)


class Neighbours:
    """Stock PyTorch kernels around a linear layer: RMSNorm before it, a scale after it."""

    def __init__(self, inputs: Any, stream: torch.cuda.Stream, pool: Any) -> None:
        self.inputs = inputs
        self.stream = stream
        self.pool = pool
        self.hidden = torch.randn_like(inputs.x)
        self.gain = torch.ones(inputs.x.shape[-1], dtype=inputs.x.dtype, device=inputs.x.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.before()
        self.after()
        stream.synchronize()

    def before(self) -> None:
        """Write x, as the norm in front of a linear layer does."""
        torch.mul(torch.rms_norm(self.hidden, self.gain.shape), self.gain, out=self.inputs.x)

    def after(self) -> None:
        """Read and write out, as an activation or a scale behind the layer does."""
        self.inputs.out.mul_(0.5)

    def sample(self, num_pairs: int) -> float:
        """Microseconds that a pair of neighbours takes with nothing between them."""
        graph = self.graphs.get(num_pairs)
        if graph is None:
            with _capturing(self.stream, self.pool) as graph:
                for _ in range(num_pairs):
                    self.before()
                    self.after()
            self.graphs[num_pairs] = graph
            graph.replay()
        return _replay_us(graph) / num_pairs


@contextmanager
def _capturing(stream: torch.cuda.Stream, pool: Any) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture what is launched on ``stream``, without ``torch.cuda.graph``'s garbage collection (50 ms)."""
    graph = torch.cuda.CUDAGraph()
    stream.synchronize()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield graph
    finally:
        graph.capture_end()


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs agree in every bit: a NaN with itself, and scales behind 8-bit values may look like one."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _outputs(inputs: Any) -> list[torch.Tensor]:
    """What a launch writes: one tensor, or those of a user's kernel by name."""
    return list(inputs.out.values()) if isinstance(inputs.out, dict) else [inputs.out]


def _raise_if_poisoned(config: Config, error: Exception) -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise WorkerPoisonedError(f"{config.key()}: {error}") from error


def _sm_clock_mhz() -> int:
    try:
        return torch.cuda.clock_rate()
    except (ImportError, RuntimeError):  # needs nvidia-ml-py, which collecting does not require
        return 0


_TIMERS: dict[tuple[str, DeviceSpec], Timer] = {}


def measure(
    op: Op,
    device: DeviceSpec,
    problem: Problem,
    configs: Sequence[Config],
    regime: Regime,
    starting: Callable[[Config], None],
) -> list[Outcome]:
    """What a collecting worker calls: ``Timer.measure`` with one timer for each op and device of this process."""
    timer = _TIMERS.get((op.name, device))
    if timer is None:
        timer = _TIMERS[op.name, device] = Timer(op, device)
    return timer.measure(problem, configs, regime, starting)
