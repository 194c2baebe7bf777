"""The vendor's routines as launches, ``torch.mm`` and cuBLASLt's by index, and the memory of a stream.

Imports torch, not triton: serving from a bundle needs no more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from aks.ops.gemm import cublaslt, reference
from aks.ops.gemm.spec import CUBLASLT_ALGOS, SPLIT_COUNTERS, SPLIT_WORKSPACE_BYTES, GemmConfig, GemmProblem


class Scratch:
    """Workspace and counters of one stream: split-K launches on it follow one another, so they share."""

    def __init__(self, device: torch.device) -> None:
        self.workspace = torch.empty(SPLIT_WORKSPACE_BYTES // 4, dtype=torch.float32, device=device)
        self.counters = torch.zeros(SPLIT_COUNTERS, dtype=torch.int32, device=device)


def bind_routine(config: GemmConfig, problem: GemmProblem, x, w, out, scratch: Scratch) -> Callable[[int], object]:
    """A function of a CUDA stream handle that runs a config of kind ``torch_mm`` or ``cublaslt`` on these tensors.

    Raises
    ------
    UnsupportedAlgoError
        If cuBLASLt offers fewer algorithms than the config's index asks for.
    """
    if config.kind == "torch_mm":
        vendor = reference.vendor(problem, x, w, out)
        return lambda stream: vendor()
    library = cublaslt.for_device(x.get_device())
    plan = library.plan(
        config.algo, m=problem.m, n=problem.n, k=problem.k, dtype=problem.dtype, w_layout=problem.w_layout,
        ldx=x.stride(0), ldw=w.stride(0), ldo=out.stride(0), count=CUBLASLT_ALGOS,
    )  # fmt: skip
    workspace = scratch.workspace.data_ptr()
    pointers = x.data_ptr(), w.data_ptr(), out.data_ptr()

    def launch(stream: int) -> None:
        plan.launch(*pointers, workspace, cublaslt.WORKSPACE_BYTES, stream)

    return launch
