"""The native dispatcher: chooses a config and launches its kernel in about the time that the driver takes.

It is optional: a C++ module that ``pip install`` builds where there is a C++20 compiler (see ``CMakeLists.txt``
for a build by hand), without CUDA or PyTorch. What it serves is a folder that ``aks export --bundle`` wrote.
Where either is missing, ``aks.runtime.dispatcher`` does the same in Python, with Triton. ``aks.h`` has the same
for C and C++.

``Kernels.launch`` takes plain integers and gives the interpreter's lock back while the driver works: its queue
may be full, and other threads go on meanwhile. It allocates nothing, but for the scratch memory of a stream that
is new to it, and for a shape that is new to cuBLASLt. What follows from a problem alone (config, kernel, grid) is
remembered for the last 512 problems of each thread, and tensor maps for the last operands: a call that comes again
neither walks the tree nor evaluates its formulas.

Configs that are an algorithm of cuBLASLt (``LaunchSpec.product``) are launched here too, with the library that is
opened at run time. Which algorithm that is cuBLASLt says when it is asked for its ranking: at the first sight of a
shape, on the host alone, at many times the cost of a launch; ``prepare`` asks ahead. The last 4,096 shapes are kept.
The vendor's own routine is such an algorithm as well, the first (``Product.vendor``), but only at shapes that were
prepared: others are left to the caller, whose library knows a new shape sooner. Without the library these configs are
left to the caller; so are, as the vendor's, shapes for which it has too few algorithms. Both asking and launching may
happen while a stream is being captured: the workspace is the stream's scratch memory, and what cuBLASLt loads at a
kernel's first launch it may load then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from aks.core import artifact, kernel_files
from aks.core.bundle import Bundle
from aks.core.errors import ArtifactError

DRIVER = "libcuda.so.1"
CUBLASLT = ("libcublasLt.so.13", "libcublasLt.so.12")


class Kernels(Protocol):
    """The kernels of a bundle, loaded on one GPU. Safe to share between threads."""

    problem_count: int
    call_count: int
    cublaslt: str
    """The cuBLASLt that is used; empty if there is none, or the op has no use for it."""
    plans_ahead: bool
    """Set while shapes are prepared: launches then ask for the vendor's routine too, where they are new."""

    def select(self, *problem: int) -> int:
        """Index of the config for a problem as formulas see it: a value for each parameter of the tree."""
        ...

    def launch(self, *call_and_stream: int) -> int:
        """Select and launch. The config's index, or ``-1 - index`` if it is for the caller to run.

        A call has the tree's parameters, without those that follow from the operands (alignment), then the
        operands (``LaunchSpec.operands``), then the stream. Addresses must be valid, rows contiguous.

        Raises
        ------
        DriverError
            If the driver refuses.
        InvalidProblemError
            If there are too few or too many values.
        """
        ...

    def prepare(self, *call_and_stream: int) -> int:
        """All that ``launch`` does for such a call, but nothing is enqueued: the same answer and errors.

        Afterwards a launch of the shape on the stream allocates nothing and does not ask cuBLASLt, which then only
        loads the kernel's module if it was never launched. Of the addresses only the alignment matters.
        """
        ...

    def take_misses(self) -> tuple[list[int], list[tuple[list[int], int]]]:
        """What launches met that the tree did not know, since the last time: ``Predictor.add_source`` takes it.

        How often, by reason: for each parameter, that it was the first outside the support; a leaf that
        abstained; a favourite that was not legal. Then the problems of all but the last, as formulas see them,
        with their counts: the first ``MAX_MISSED`` distinct ones. Both are empty if there were none.
        """
        ...

    def time(self, repeats: int, driver_alone: bool, *call_and_stream: int) -> list[int]:
        """Host nanoseconds of each of so many launches, without Python: whole, or of the driver's call alone."""
        ...

    def counts(self) -> dict[str, int]:
        """What happened since loading.

        modules and allocations that were made; launches; illegal_favourites, whose successor ran; plans, for
        which cuBLASLt was asked at the first sight of a shape; without_kernel, without_scratch and without_plan,
        calls that were left to the vendor's routine for want of these.
        """
        ...


class Linear(Protocol):
    """``y = x @ w.T`` by kernels of gemm, on tensors: read where they lie, without a call of Python for each fact."""

    def launch(self, x: Any, w: Any, out: Any, static_weights: bool, stream: int) -> Any:
        """Select and launch: the result, or ``-1 - index`` of a config that is for the caller to run.

        x [..., K], contiguous if it has more than two dimensions, w [N, K], out [..., N] or None. Without out it is
        made, by x's ``new_empty``, once the config is known to be launched here. None if these are no tensors for our
        kernels: then nothing was chosen. The device is not looked at, but for being the same.
        """
        ...


def is_built() -> bool:
    """Whether the module is there."""
    try:
        import_module("aks.runtime.native._native")
    except ImportError:
        return False
    return True


def load_kernels(
    bundle: Bundle, index: int = 0, driver: str = DRIVER, cublaslt: Sequence[str] = CUBLASLT
) -> Kernels | None:
    """The bundle's kernels on CUDA device ``index``, in its primary context (which PyTorch uses).

    None if the folder was exported without kernels, or the module is not built. driver and cublaslt are libraries
    as the dynamic loader knows them; of cublaslt the first that the process has, else the first that can be opened.

    Raises
    ------
    ArtifactError
        If the files are damaged, malformed, or for another tree or GPU.
    DriverError
        If the driver is missing, too old for the kernels, or fails.
    """
    if kernel_files.TABLE_FILE not in bundle.manifest["files"] or not is_built():
        return None
    table, code = (
        artifact.read_member(bundle.folder, bundle.manifest, name)
        for name in (kernel_files.TABLE_FILE, kernel_files.CODE_FILE)
    )
    _check_same(bundle, table)
    return import_module("aks.runtime.native._native").Kernels(table, code, index, driver, list(cublaslt))


def linear_of(kernels: Kernels, tensor_type: type) -> Linear | None:
    """``aks.linear`` with a bundle's kernels of gemm; None if tensors of this type are not lent through DLPack."""
    exchange = getattr(tensor_type, "__dlpack_c_exchange_api__", None)
    return exchange and import_module("aks.runtime.native._native").Linear(kernels, exchange)


def _check_same(bundle: Bundle, table: bytes) -> None:
    tree = bundle.tree
    document = json.loads(table) if table else {}
    found = [document.get(name) for name in ("op", "device", "space_fingerprint")]
    if found != [tree.op, tree.device, tree.space_fingerprint]:
        raise ArtifactError(f"{bundle.folder}: kernels and tree are of different exports: {found}; {artifact.REDO}")
