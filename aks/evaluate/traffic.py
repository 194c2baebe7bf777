"""A made-up server's load: how many sequences are decoded in each step, and how many tokens of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aks.core.errors import BenchError

SPECULATION = (2, 8)
"""Fewest and most tokens a sequence while tokens are guessed ahead."""
_STAY = 8  # steps that a sequence stays, on average: short, so that batches follow the load
_LOAD_STEPS = 60  # steps between two changes of the load, on average
_CALM_STEPS, _SPECULATIVE_STEPS = 100, 20  # steps without and with speculation, on average


@dataclass(frozen=True, slots=True)
class Step:
    """One step: so many sequences, and tokens of each, all of which are rows of every layer's input."""

    batch: int
    tokens: int = 1

    @property
    def m(self) -> int:
        """Rows of x."""
        return self.batch * self.tokens


def bursty_trace(steps: int, *, max_batch: int = 256, seed: int = 0) -> list[Step]:
    """Steps of a server whose batch changes at every step, in bursts.

    Sequences arrive as a Poisson process and leave after a geometric number of steps. The rate of arrivals jumps at
    random times to that of a load drawn log-uniformly from 1 to a little over max_batch sequences: bursts and
    lulls. At other random times speculation begins, with a number of tokens (``SPECULATION``) that multiplies every
    batch until it ends.

    Parameters
    ----------
    steps, max_batch : int
        From 1 up, and from 2 up.
    seed : int
        The same seed gives the same trace.

    Raises
    ------
    BenchError
        If steps or max_batch are fewer.
    """
    if steps < 1 or max_batch < 2:
        raise BenchError(f"{steps} steps of up to {max_batch} sequences; wanted at least 1 step and 2 sequences")
    rng, trace = np.random.default_rng(seed), []
    batch, tokens, load = 1, 1, _draw_load(rng, max_batch)
    for _ in range(steps):
        if rng.random() < 1 / _LOAD_STEPS:
            load = _draw_load(rng, max_batch)
        if rng.random() < 1 / (_CALM_STEPS if tokens == 1 else _SPECULATIVE_STEPS):
            tokens = int(rng.integers(SPECULATION[0], SPECULATION[1] + 1)) if tokens == 1 else 1
        change = int(rng.poisson(load / _STAY)) - int(rng.binomial(batch, 1 / _STAY))
        after = min(max(batch + change, 1), max_batch)
        if after == batch:  # the batch is to change at every step
            after += 1 if batch < max_batch else -1
        batch = after
        trace.append(Step(batch, tokens))
    return trace


def _draw_load(rng: np.random.Generator, max_batch: int) -> float:
    return max_batch ** (1.05 * rng.random())
