"""Replay pads and slices, what fits no graph runs eagerly and is captured between steps; on a GPU results are right."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from aks.core.errors import GraphError
from aks.runtime import capture
from aks.runtime.capture import StepGraphs, measured_cost


class FakeRecorder:
    """Replays by running again into the outputs of the recording, as a graph writes where it wrote before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def drop_pool(self) -> None:
        pass

    def record(self, run):
        outputs = run()

        def replay() -> None:
            pairs = zip(*((one,) if isinstance(one, Tensor) else one for one in (outputs, run())), strict=True)
            for old, new in pairs:
                old.copy_(new)

        return replay, outputs


class Step:
    """Twice the first input, and the sum of both; keeps record of the rows it was run with."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.rows.append(x.shape[0])
        return 2 * x, x.sum(1) + y


@pytest.fixture
def step(monkeypatch) -> Step:
    monkeypatch.setattr(capture, "_Recorder", FakeRecorder)
    return Step()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3), torch.randn(rows)


def check(graphs: StepGraphs, rows: int) -> None:
    x, y = batch(rows)
    doubled, summed = graphs(x, y)
    assert torch.equal(doubled, 2 * x)
    torch.testing.assert_close(summed, x.sum(1) + y)


def test_a_batch_runs_in_the_smallest_graph_that_it_fits(step) -> None:
    graphs = StepGraphs(step, batch(1), [2, 8, 5])
    assert graphs.capture_pending() == 3 and graphs.captured == (2, 5, 8) and not graphs.pending
    step.rows.clear()
    for rows in (1, 2, 3, 5, 6, 8, 1):
        check(graphs, rows)
    assert step.rows == [2, 2, 5, 5, 8, 8, 2]
    assert not graphs.missed


def test_what_fits_no_graph_runs_eagerly_and_is_captured_when_asked(step) -> None:
    graphs = StepGraphs(step, batch(1), [2, 4])
    check(graphs, 3)  # nothing is captured yet; 4 is pending, and will do
    assert graphs.pending == [2, 4]
    graphs.capture_pending()
    step.rows.clear()
    for _ in range(2):
        check(graphs, 7)
    assert step.rows == [7, 7] and graphs.captured == (2, 4)
    assert graphs.pending == [8] and graphs.missed == {3: 1, 7: 2}
    assert graphs.capture_pending() == 1
    step.rows.clear()
    check(graphs, 7)
    assert step.rows == [8] and graphs.missed[7] == 2


def test_batches_beyond_the_limit_are_never_captured(step) -> None:
    graphs = StepGraphs(step, batch(1), [4], max_rows=6)
    graphs.capture_pending()
    check(graphs, 7)
    assert not graphs.pending and graphs.missed == {7: 1}
    check(graphs, 5)
    assert graphs.pending == [6]


def test_a_pause_can_be_kept_short(step) -> None:
    graphs = StepGraphs(step, batch(1), [1, 2, 3])
    assert graphs.capture_pending(limit=1) == 1
    assert graphs.captured == (3,) and graphs.pending == [1, 2]
    step.rows.clear()
    check(graphs, 1)  # not in the graph of 3: another is planned for it
    check(graphs, 3)
    assert step.rows == [1, 3] and graphs.missed == {1: 1} and graphs.pending == [1, 2]


def test_another_version_drops_the_graphs(step) -> None:
    now = SimpleNamespace(version="a")
    graphs = StepGraphs(step, batch(1), [2, 4], version=lambda: now.version)
    graphs.capture_pending()
    now.version = "b"
    step.rows.clear()
    check(graphs, 1)
    assert step.rows == [1] and not graphs.captured and graphs.pending == [2, 4] and graphs.missed == {1: 1}
    graphs.capture_pending()
    check(graphs, 1)
    assert graphs.captured == (2, 4) and graphs.missed == {1: 1}


def test_invalidated_with_other_sizes(step) -> None:
    graphs = StepGraphs(step, batch(1), [2, 4])
    graphs.capture_pending()
    graphs.invalidate([3])
    assert graphs.pending == [3] and not graphs.captured
    with pytest.raises(GraphError, match="max_rows, which is 16"):
        graphs.invalidate([17])


def test_a_single_output_stays_one(monkeypatch) -> None:
    monkeypatch.setattr(capture, "_Recorder", FakeRecorder)
    graphs = StepGraphs(lambda x: x + 1, [torch.zeros(1, 2)], [4])
    graphs.capture_pending()
    assert torch.equal(graphs(torch.ones(3, 2)), torch.full((3, 2), 2.0))  # type: ignore[arg-type]


def test_a_step_that_fails_stays_pending(step, monkeypatch) -> None:
    graphs = StepGraphs(step, batch(1), [2])
    monkeypatch.setattr(Step, "__call__", lambda self, x, y: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        graphs.capture_pending()
    assert graphs.pending == [2] and not graphs.captured


def test_other_inputs_are_refused(step) -> None:
    graphs = StepGraphs(step, batch(1), [2])
    for inputs in ((), batch(2)[:1], (torch.ones(2, 4), torch.ones(2)), (torch.ones(2, 3), torch.ones(1)), batch(0)):
        with pytest.raises(GraphError, match="wanted tensors of"):
            graphs(*inputs)
    with pytest.raises(GraphError, match="float64"):
        graphs(torch.ones(2, 3).double(), torch.ones(2))
    for inputs, tops in (((), [1]), (batch(1), [])):
        with pytest.raises(GraphError, match="at least one of each"):
            StepGraphs(step, inputs, tops)
    with pytest.raises(GraphError, match="wanted from 1"):
        StepGraphs(step, batch(1), [0, 2])


def test_outputs_without_rows_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(capture, "_Recorder", FakeRecorder)
    graphs = StepGraphs(lambda x: x.sum(0), [torch.zeros(1, 5)], [2])
    with pytest.raises(GraphError, match="wanted as many rows first"):
        graphs.capture_pending()


def test_measured_costs_are_those_of_the_graph_that_serves(step, monkeypatch) -> None:
    graphs = StepGraphs(step, batch(1), [2, 5])
    with pytest.raises(GraphError, match="capture_pending"):
        measured_cost(graphs)
    graphs.capture_pending()
    latency_us = iter([99.0, 99.0, 1.0, 4.0, 3.0, 5.0, 2.0, 90.0])
    monkeypatch.setattr(StepGraphs, "time_replay", lambda self, rows: next(latency_us))
    cost = measured_cost(graphs, replays=3)
    assert [cost(m) for m in range(1, 6)] == [2.0, 2.0, 5.0, 5.0, 5.0]
    with pytest.raises(GraphError, match="at most 5"):
        cost(6)


@pytest.mark.gpu
def test_graphs_on_the_gpu() -> None:
    w = torch.randn(512, 512, device="cuda").bfloat16() / 16

    def step(x: Tensor) -> Tensor:
        return torch.relu(x @ w) @ w

    graphs = StepGraphs(step, [torch.zeros(1, 512, device="cuda", dtype=torch.bfloat16)], [4, 32, 64])
    graphs.capture_pending()
    for rows in (1, 4, 5, 33, 64, 2, 100, 128):
        x = torch.randn(rows, 512, device="cuda").bfloat16()
        torch.testing.assert_close(graphs(x), step(x), rtol=0.02, atol=0.02)
    assert graphs.missed == {100: 1, 128: 1} and graphs.pending == [128]
    graphs.capture_pending()
    x = torch.randn(100, 512, device="cuda").bfloat16()
    torch.testing.assert_close(graphs(x), step(x), rtol=0.02, atol=0.02)
    assert measured_cost(graphs)(100) > 0
    graphs.invalidate([128])
    graphs.capture_pending()
    torch.testing.assert_close(graphs(x), step(x), rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_captured_while_another_thread_allocates_and_launches() -> None:
    w = torch.randn(1024, 1024, device="cuda").bfloat16() / 32
    stop, errors, rounds = threading.Event(), [], []

    def serve() -> None:
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.stream(stream):
                while not stop.is_set():
                    x = torch.full((257 + len(rounds), 1024), 0.5, device="cuda", dtype=torch.bfloat16)
                    if not torch.isfinite((x @ w).float()).all():
                        raise ArithmeticError("a product is not finite")
                    rounds.append(1)
        except (RuntimeError, ArithmeticError) as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    torch.cuda.synchronize()
    thread.start()
    try:
        graphs = StepGraphs(lambda x: (x @ w) @ w, [torch.zeros(1, 1024, device="cuda", dtype=w.dtype)], range(1, 65))
        graphs.capture_pending()
    finally:
        stop.set()
        thread.join()
    assert not errors and rounds
    for rows in (1, 17, 64):
        x = torch.randn(rows, 1024, device="cuda").bfloat16()
        torch.testing.assert_close(graphs(x), (x @ w) @ w, rtol=0.02, atol=0.02)
