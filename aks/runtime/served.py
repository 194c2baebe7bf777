"""The dispatchers of this process, one for each op and GPU: loaded when first needed, replaced by ``reload``."""

from __future__ import annotations

import csv
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aks.core.bundle import Bundle
from aks.core.device import DeviceSpec, current_device, device_slug
from aks.core.errors import AksError, ArtifactError
from aks.core.record import COUNT, FAMILIES
from aks.ops.gemm import cublaslt
from aks.ops.op import Op
from aks.runtime import native
from aks.runtime.predictor import Choices, Predictor

Make = Callable[[Op, Predictor, DeviceSpec, int, native.Kernels | None], Any]

_FAMILY = "missed"
"""The family of problems in files of misses: of which model they are, nobody knows."""
_loaded: dict[tuple[str, int], Any] = {}
_lock = threading.RLock()
_retired: list[Any] = []


class Dispatcher:
    """What dispatchers of all ops have: one tree on one GPU, and its kernels where a bundle has them.

    choices: what of the predictor's goes with these kernels; by default what it answers now.
    """

    def __init__(
        self,
        predictor: Predictor,
        device: DeviceSpec,
        index: int = 0,
        kernels: native.Kernels | None = None,
        choices: Choices | None = None,
    ) -> None:
        self.predictor = predictor
        self.device = device
        self.index = index
        self.kernels = kernels
        self._choices = choices or predictor.current
        self._launch = kernels.launch if kernels else None
        if kernels:
            predictor.add_source(kernels.take_misses)

    @property
    def version(self) -> str:
        """Of the tree that it answers by."""
        return self._choices.bundle.version


def find(op: Op, index: int, make: Make) -> Any:
    """The dispatcher of ``op`` on CUDA device ``index``, made once; None, with a warning, if no tree fits the GPU."""
    try:
        return _loaded[op.name, index]
    except KeyError:
        with _lock:  # one thread loads, others wait for it
            if (op.name, index) not in _loaded:
                _loaded[op.name, index] = _load(op, index, make)
            return _loaded[op.name, index]


def _load(op: Op, index: int, make: Make) -> Any:
    device = current_device(index)
    try:
        predictor = Predictor.load(op, device=device)
    except AksError as error:
        warnings.warn(f"aks leaves {op.name} to PyTorch's own kernels on {device.name}: {error}", stacklevel=5)
        return None
    try:
        kernels = kernels_of(predictor.bundle, index)
    except AksError as error:
        warnings.warn(f"aks compiles kernels of {op.name} as they are needed on {device.name}: {error}", stacklevel=5)
        kernels = None
    return make(op, predictor, device, index, kernels)


def kernels_of(bundle: Bundle, index: int) -> native.Kernels | None:
    """The bundle's kernels on CUDA device ``index``, with PyTorch's cuBLASLt, as ``native.load_kernels``."""
    return native.load_kernels(bundle, index, cublaslt=cublaslt.library_paths())


def _kernels_like(old: Any, bundle: Bundle, index: int) -> native.Kernels | None:
    """The kernels of a bundle for the successor of a dispatcher, which has kernels if that has."""
    if old.kernels is None:
        try:
            return kernels_of(bundle, index)
        except AksError:  # as when it was loaded first: Python launches
            return None
    kernels = kernels_of(bundle, index)
    if kernels is None:
        raise ArtifactError(f"{bundle.folder} has no kernels now, and what serves has; export it with --bundle")
    return kernels


def reload() -> dict[str, str]:
    """Serve by what ``aks export`` has put in the folders of the loaded trees since, without a pause.

    A new bundle's kernels are loaded first, then one reference changes: calls that other threads are making end by
    the tree that they began with, the next ones begin with the new one. Counts of misses go on. The old kernels stay
    loaded, as streams may still have them queued and CUDA graphs are made of them: each reload keeps their memory.
    Graphs go on as captured until they are captured again (``aks.graphs.StepGraphs``: ``version``). A GPU that had no
    tree is looked at again at its next call. Kernels of ``aks.adaptive`` have trees of their own.

    Returns
    -------
    dict
        Versions of the trees that are new, by ``<op> cuda:<index>``; empty if there are none.

    Raises
    ------
    ArtifactError
        If a folder is damaged, or its kernels do not load: which, and what was reloaded nevertheless. Its old tree
        goes on.
    """
    changed: dict[str, str] = {}
    failed: dict[str, AksError] = {}
    with _lock:
        for (name, index), old in list(_loaded.items()):
            if old is None:
                del _loaded[name, index]
                continue
            try:
                choices = old.predictor.newer() or old.predictor.current
                if choices.bundle.version == old.version:
                    continue
                successor = old.succeeded_by(choices, _kernels_like(old, choices.bundle, index))
            except AksError as error:
                failed[f"{name} cuda:{index}"] = error
                continue
            # Launches before the version that tells of them: graphs are captured anew when they see another.
            _loaded[name, index] = successor
            # Misses are counted by the same predictor; whoever is in the old dispatcher has its own choices.
            old.predictor.take(choices)
            _retired.append(old)
            changed[f"{name} cuda:{index}"] = choices.bundle.version
    if failed:
        reasons = "; ".join(f"{which}: {error}" for which, error in failed.items())
        raise ArtifactError(f"{reasons}. The old trees of these go on; reloaded: {', '.join(changed) or 'none'}")
    return changed


def write_missed(folder: Path | str) -> list[Path]:
    """Write the problems that the trees of this process did not know, for ``aks collect --problems`` to learn them.

    Of each op and GPU the first 256 distinct ones (``Predictor.missed``), the most frequent first, in a CSV file
    ``<op>-<device>-<process>-<index>.csv`` of the folder, which is replaced whole. Kernels of ``aks.adaptive`` have
    misses of their own (``kernel.missed()``).

    Returns
    -------
    list of Path
        What was written: ops without misses have no file.
    """
    written = []
    with _lock:
        dispatchers = list(_loaded.items())
    for (name, index), dispatcher in dispatchers:
        missed = dispatcher.predictor.missed() if dispatcher else []
        if missed:
            path = Path(folder) / f"{name}-{device_slug(dispatcher.device.name)}-{os.getpid()}-{index}.csv"
            _write(path, missed)
            written.append(path)
    return written


def _write(path: Path, missed: list[tuple[dict[str, Any], int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*missed[0][0], COUNT, FAMILIES])
        rows.writerows(
            [*problem.values(), count, _FAMILY] for problem, count in sorted(missed, key=lambda entry: -entry[1])
        )
    partial.replace(path)


def forget() -> None:
    """As if nothing had been loaded; for tests, and for processes that fork."""
    with _lock:
        _retired.extend(dispatcher for dispatcher in _loaded.values() if dispatcher)
        _loaded.clear()
