"""The trace: its seed fixes it, its batch changes at every step, within its bounds, in bursts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from aks.core.errors import BenchError
from aks.evaluate.traffic import SPECULATION, bursty_trace


def test_the_seed_fixes_the_trace() -> None:
    assert bursty_trace(200, seed=3) == bursty_trace(200, seed=3) != bursty_trace(200, seed=4)
    assert bursty_trace(200, seed=3)[:50] == bursty_trace(50, seed=3)


@pytest.mark.parametrize("max_batch", [2, 256])
def test_the_batch_changes_at_every_step_within_bounds(max_batch: int) -> None:
    trace = bursty_trace(3000, max_batch=max_batch)
    batches = [step.batch for step in trace]
    assert min(batches) == 1 and max(batches) == max_batch
    assert all(before != after for before, after in pairwise(batches))


def test_there_are_bursts_lulls_and_speculation() -> None:
    trace = bursty_trace(5000)
    means = [sum(step.batch for step in trace[start : start + 50]) / 50 for start in range(0, 5000, 50)]
    assert min(means) < 10 and max(means) > 120
    guessed = [step for step in trace if step.tokens > 1]
    assert 0.05 < len(guessed) / len(trace) < 0.4
    assert {step.tokens for step in guessed} == set(range(SPECULATION[0], SPECULATION[1] + 1))
    assert all(step.m == step.batch * step.tokens for step in trace)


@pytest.mark.parametrize(("steps", "max_batch"), [(0, 256), (10, 1)])
def test_nothing_to_serve_is_an_error(steps: int, max_batch: int) -> None:
    with pytest.raises(BenchError, match="wanted at least 1 step and 2 sequences"):
        bursty_trace(steps, max_batch=max_batch)
