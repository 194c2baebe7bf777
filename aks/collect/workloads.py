"""Which problems to measure: the linear layers of real models by family, and random shapes besides."""

from __future__ import annotations

import math
import random
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

from aks.collect.sources import Workload, linear_problem
from aks.core import formula
from aks.core.errors import InvalidProblemError
from aks.core.problem import Problem
from aks.ops.op import Op

SAMPLE_FAMILY = "sample"
"""The family of random shapes: no model has them."""
TENSOR_PARALLEL = (1, 2, 4, 8)
MAX_M = 16384
MAX_BYTES = 8 << 30
MAX_FLOPS = 2 * 10**13
_SAMPLE_SIDE = (64, 32768)
# n and k of random shapes are multiples of one of these: a share of 1, 2 and 4 gives rows that are
# not 16-byte aligned, 8 and 16 rows that are, but that no block divides.
_SAMPLE_STEPS = (1, 2, 4, 8, 16, 64, 64, 128, 128, 256)
# Share of the problems, smallest and largest m. Decoding (m up to 16) is where configs differ most.
_M_STRATA = ((0.15, 1, 1), (0.30, 2, 16), (0.30, 17, 256), (0.25, 257, MAX_M))
# Serving stacks capture graphs at round batch sizes; a share of the m values are such.
_ROUND_SHARE = 1 / 3
_GOLDEN = (math.sqrt(5) - 1) / 2


@cache
def known_families() -> dict[str, list[dict[str, Any]]]:
    """Models by family: the tables of ``families.toml``."""
    text = resources.files("aks.collect").joinpath("families.toml").read_text()
    return {family: table["models"] for family, table in tomllib.loads(text).items()}


def family_shapes(
    families: Sequence[str] | None = None, *, shards: Sequence[int] = TENSOR_PARALLEL
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Weight shapes (n, k) of the linear layers of ``families`` (default: all), with the families that have them.

    The layers are fused qkv, attention output, fused gate and up, down, lm_head, and what the family's
    table lists besides, each as one rank of tensor parallelism over ``shards`` ranks holds it.

    Raises
    ------
    InvalidProblemError
        If a family is unknown.
    """
    owners: dict[tuple[int, int], set[str]] = {}
    for family in known_families() if families is None else families:
        if family not in known_families():
            raise InvalidProblemError(
                f"no model family {family!r}; known: {', '.join(known_families())}, {SAMPLE_FAMILY}"
            )
        for model in known_families()[family]:
            for tp in shards:
                for shape in _layers(model, tp):
                    owners.setdefault(shape, set()).add(family)
    return {shape: tuple(sorted(names)) for shape, names in owners.items()}


def _layers(model: dict[str, Any], tp: int) -> Iterator[tuple[int, int]]:
    """(n, k) of each linear layer of one of ``tp`` ranks; layers that do not divide are left out."""
    hidden = model["hidden"]
    layers: list[tuple[int, int, str]] = [(model["vocab"], hidden, "column"), *map(tuple, model.get("linear", ()))]
    if "intermediate" in model:
        up = model["intermediate"] * (2 if model.get("gated", True) else 1)
        layers += [(up, hidden, "column"), (hidden, model["intermediate"], "row")]
    if "heads" in model and model["heads"] % tp == 0:
        layers.append((hidden, model["heads"] * model["head_dim"], "row"))
        kv_heads = model["kv_heads"]
        # Ranks beyond the number of kv heads hold copies of them.
        if kv_heads % tp == 0 or tp % kv_heads == 0:
            heads = model["heads"] // tp + 2 * max(1, kv_heads // tp)
            layers.append((heads * model["head_dim"], hidden, "replicated"))
    for n, k, split in layers:
        match split:
            case "replicated":
                yield n, k
            case "column" if n % tp == 0:
                yield n // tp, k
            case "row" if k % tp == 0:
                yield n, k // tp


def workload_problems(
    op: Op,
    *,
    families: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("bf16",),
    num_problems: int,
    seed: int = 0,
    sample_share: float = 0.2,
) -> list[Workload]:
    """A spread of problems over family shapes and m, the same for the same arguments, in random order.

    Families take turns, and so do the shapes within one; ``sample_share`` of the problems have random
    shapes (family ``sample``) unless ``families`` names others alone. 45 % of the problems have m up
    to 16 (a third of these m = 1), 30 % 17 to 256, 25 % up to 16384, log-uniform within each. m is
    lowered where inputs and output would exceed 8 GiB or the work 2e13 operations.

    Raises
    ------
    InvalidProblemError
        If a family or dtype is unknown, or there are not that many different problems.
    """
    rng = random.Random(f"{seed} {op.name}")
    named = [family for family in (known_families() if families is None else families) if family != SAMPLE_FAMILY]
    shapes = {
        shape: owners
        for shape, owners in family_shapes(named).items()
        if all(_affordable(op, linear_problem(op, 1, *shape, dtype)) for dtype in dtypes)
    }
    num_random = round(num_problems * sample_share) if families is None else 0
    if families is not None and SAMPLE_FAMILY in families:
        num_random = round(num_problems * sample_share) if named else num_problems
    sources = [_sample_shapes(rng, num_random), _shape_turns(shapes, named, num_problems - num_random, rng)]
    workloads: dict[Problem, tuple[str, ...]] = {}
    for source in sources:
        # A golden-ratio sequence covers the range of m evenly for every family at once.
        phase = rng.random()
        for index, (n, k) in enumerate(source):
            dtype, rest = dtypes[index % len(dtypes)], op.spread[index // len(dtypes) % len(op.spread)]
            pose = partial(linear_problem, op, n=n, k=k, dtype=dtype, rest=rest)
            problem = _fresh_problem(op, pose, (phase + index * _GOLDEN) % 1, workloads, rng)
            workloads[problem] = shapes.get((n, k), (SAMPLE_FAMILY,))
    result = [Workload(problem, owners) for problem, owners in workloads.items()]
    rng.shuffle(result)
    return result


def _shape_turns(
    shapes: dict[tuple[int, int], tuple[str, ...]], families: Sequence[str], count: int, rng: random.Random
) -> Iterator[tuple[int, int]]:
    """``count`` shapes: each family in turn gives the one of its shapes that was used least."""
    if not families:
        return
    order = list(shapes)
    rng.shuffle(order)
    by_family = {family: [shape for shape in order if family in shapes[shape]] for family in families}
    used: Counter[tuple[int, int]] = Counter()
    for index in range(count):
        shape = min(by_family[families[index % len(families)]], key=used.__getitem__)
        used[shape] += 1
        yield shape


def _sample_shapes(rng: random.Random, count: int) -> Iterator[tuple[int, int]]:
    """``count`` random (n, k), log-uniform."""
    for _ in range(count):
        yield _random_side(rng), _random_side(rng)


def _random_side(rng: random.Random) -> int:
    low, high = _SAMPLE_SIDE
    side = low * (high / low) ** rng.random()
    step = rng.choice([step for step in _SAMPLE_STEPS if step <= side])
    return round(side / step) * step


def _fresh_problem(
    op: Op, pose: Callable[[int], Problem], position: float, taken: dict[Problem, Any], rng: random.Random
) -> Problem:
    """A problem of a shape (``pose`` makes it of m) that is not taken; ``position`` in [0, 1) says which m."""
    for _ in range(64):
        m = _m_at(position, rng)
        while not _affordable(op, problem := pose(m)):
            m = m * 2 // 3
        if problem not in taken:
            return problem
        position = rng.random()
    raise InvalidProblemError(
        f"no new problem found for {pose(1).key()} after {len(taken)}; ask for fewer problems or more families"
    )


def _m_at(position: float, rng: random.Random) -> int:
    """The m at ``position`` of the distribution."""
    for share, low, high in _M_STRATA:
        if position < share:
            # Bounds half a step out give the first and the last m their full share.
            m = (low - 0.5) * ((high + 0.5) / (low - 0.5)) ** (position / share)
            m = min(high, max(low, round(m)))
            return _round_size(m) if rng.random() < _ROUND_SHARE else m
        position -= share
    return MAX_M


def _round_size(m: int) -> int:
    """The batch size nearest to m that a serving stack would capture: eighths of a power of two, from 8 up."""
    if m <= 8:
        return m
    step = max(4, formula.next_pow2(m) // 8)
    return round(m / step) * step


def _affordable(op: Op, problem: Problem) -> bool:
    variables = problem.variables()
    return (
        formula.compile_python(op.bytes_moved)(variables) <= MAX_BYTES
        and formula.compile_python(op.flops)(variables) <= MAX_FLOPS
    )
