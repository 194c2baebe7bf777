"""The racing of candidates, with a fake clock and graphs that only count their replays."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from aks.collect import timer as timing
from aks.collect.timer import Racing, Timer, _Candidate
from aks.core.config import Config
from aks.core.device import find_device
from aks.core.measurement import Regime
from aks.ops import OPS
from aks.ops.gemm.spec import GemmConfig, GemmProblem

OP = OPS["gemm"]


class FakeGpu:
    """Time passes by what is replayed; a drift slows all launches down as it does."""

    def __init__(self, latency_us: dict[Any, float], drift: float = 0.0) -> None:
        self.latency_us = latency_us
        self.drift = drift
        self.now = 0.0
        self.disturbances: list[float] = []
        self.launched: list[tuple[Config, int]] = []
        self.recording: SimpleNamespace | None = None

    def bind(self, config: Config):
        def of_copy(copy: int):
            def launch(stream: int) -> None:
                assert self.recording is not None
                self.launched.append((config, copy))
                self.recording.cost += self.latency_us[config]

            return launch

        return of_copy

    @contextmanager
    def capturing(self, stream, pool):
        self.recording = SimpleNamespace(cost=0.0, replay=lambda: None)
        yield self.recording
        self.recording = None

    def replay_us(self, graph) -> float:
        took = graph.cost * (1 + self.drift * self.now)
        if self.disturbances:
            took += self.disturbances.pop(0)
        self.now += took
        return took


def race(monkeypatch, gpu: FakeGpu, racing: Racing, copies: int = 50) -> list[_Candidate]:
    monkeypatch.setattr(timing, "_capturing", gpu.capturing)
    monkeypatch.setattr(timing, "_replay_us", gpu.replay_us)
    timer: Any = object.__new__(Timer)
    timer.op, timer.racing, timer.window, timer.copies, timer.pool = OP, racing, 0, copies, None
    timer.stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    racers = [_Candidate(config, gpu.bind(config)) for config in gpu.latency_us]
    timer._first_look(racers, 8, None, lambda config: None)
    timer._race(racers, 40, None, lambda config: None)
    return racers


def configs(count: int) -> list[GemmConfig]:
    return [GemmConfig("cublaslt", algo=index) for index in range(count)]


def test_hopeless_candidates_stop_early_and_the_best_get_all_samples(monkeypatch) -> None:
    best, near, behind, hopeless = configs(4)
    gpu = FakeGpu({best: 10.0, near: 10.3, behind: 11.2, hopeless: 20.0})
    racers = {r.config: r for r in race(monkeypatch, gpu, Racing(1.4, 1.15, 1.06, 3, 9))}
    assert [len(racers[c].samples_us) for c in (best, near, behind, hopeless)] == [9, 9, 3, 2]
    assert [racers[c].out for c in (best, near, behind, hopeless)] == [False, False, False, True]
    assert racers[hopeless].num_launches == 8 and racers[best].num_launches == 40
    assert racers[near].latency_us == pytest.approx(10.3)


def test_one_disturbed_sample_drops_nothing(monkeypatch) -> None:
    best, disturbed = configs(2)
    gpu = FakeGpu({best: 10.0, disturbed: 10.2})
    gpu.disturbances = [0.0, 500.0]  # of the first sample of each
    racers = race(monkeypatch, gpu, Racing())
    assert [(racer.out, len(racer.samples_us)) for racer in racers] == [(False, 9), (False, 9)]
    assert racers[1].latency_us == pytest.approx(10.2)


def test_the_vendor_is_never_dropped(monkeypatch) -> None:
    fast = configs(1)[0]
    racers = race(monkeypatch, FakeGpu({fast: 1.0, OP.vendor: 100.0}), Racing())
    vendor = next(racer for racer in racers if racer.config == OP.vendor)
    assert not vendor.out and len(vendor.samples_us) == Racing().samples


def test_interleaving_spreads_a_drift_over_all(monkeypatch) -> None:
    """Clocks fall by a fifth during the race: measured one after another, the last would look that much slower."""
    latencies = dict(zip(configs(6), (10.0, 10.1, 10.2, 10.3, 10.4, 10.5), strict=True))
    drifting = FakeGpu(latencies, drift=1e-5)
    racers = race(monkeypatch, drifting, Racing(9.0, 9.0, 9.0, 3, 9))
    assert racers[0].samples_us[-1] > 1.15 * racers[0].samples_us[0]
    found = [racer.latency_us for racer in racers]
    assert found == sorted(found)
    assert found[-1] / found[0] == pytest.approx(1.05, rel=0.03)


def test_a_candidate_never_starts_on_the_copies_that_the_one_before_it_read(monkeypatch) -> None:
    gpu = FakeGpu(dict.fromkeys(configs(3), 5.0))
    race(monkeypatch, gpu, Racing(), copies=1000)
    copies = [copy for _, copy in gpu.launched]
    assert copies == list(range(len(copies)))


@pytest.mark.parametrize(("regime", "n", "expected"), [(Regime.WARM, 4096, 1), (Regime.COLD, 4096, 5)])
def test_cold_rotates_over_more_weights_than_l2_holds(regime, n, expected) -> None:
    timer: Any = object.__new__(Timer)
    timer.op, timer.device = OP, find_device("h200")
    problem = GemmProblem(m=1, n=n, k=4096)
    assert timer._copies(problem, regime) == expected
    assert regime is Regime.WARM or expected * 2 * n * 4096 > 2.5 * timer.device.l2_bytes


def test_neighbours_time_is_subtracted(monkeypatch) -> None:
    gpu = FakeGpu({OP.vendor: 30.0})
    monkeypatch.setattr(timing, "_replay_us", gpu.replay_us)
    timer: Any = object.__new__(Timer)
    racer = _Candidate(OP.vendor, gpu.bind(OP.vendor), SimpleNamespace(cost=300.0), 10)  # type: ignore[arg-type]
    neighbours = SimpleNamespace(sample=lambda pairs: 12.5)
    timer._sample([racer], neighbours, lambda config: None)  # type: ignore[arg-type]
    assert racer.samples_us == [pytest.approx(17.5)]
