"""Compiles an op's kernels in parallel processes, on a machine with or without a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from aks.core.config import Config
from aks.core.errors import require
from aks.ops import find_op
from aks.ops.binary import Binary


def compile_all(
    op: str, capability: int, kernels: Sequence[tuple[Config, tuple[int, ...]]], processes: int | None = None
) -> list[Binary]:
    """Each kernel, of a config and the values of ``LaunchSpec.variant``, for a GPU of ``capability``.

    processes: how many compile at once; None for as many as this process may use CPUs.

    Raises
    ------
    MissingExtraError
        If Triton is not installed.
    ArtifactError
        If a kernel cannot be bundled.
    """
    require("triton", "gpu")
    processes = processes or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(min(processes, len(kernels) or 1), mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(_compile, op, capability), kernels, chunksize=4))


def _compile(op: str, capability: int, kernel: tuple[Config, tuple[int, ...]]) -> Binary:
    config, values = kernel
    variants = find_op(op).launch.VARIANTS
    return variants.compile_binary(variants.make_variant(config, values), capability)
