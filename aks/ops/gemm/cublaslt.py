"""cuBLASLt through ctypes: its own ranking of algorithms for a product, each launchable by index.

Names and values are those of NVIDIA's public header ``cublasLt.h``, read in the version of CUDA 13.1.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from aks.core.errors import AksError, InvalidProblemError, UnsupportedRoutineError
from aks.ops.gemm.spec import CUBLASLT_DTYPES as _DTYPES
from aks.ops.gemm.spec import CUBLASLT_WORKSPACE_BYTES as WORKSPACE_BYTES

_MAJORS = (13, 12)
_STATUS_NOT_SUPPORTED = 15
_COMPUTE_32F = 68
_R_32F = 0
_OP_N, _OP_T = 0, 1
_DESC_TRANSA, _DESC_TRANSB = 3, 4
_PREF_MAX_WORKSPACE_BYTES = 1
_PREF_MIN_ALIGNMENT_BYTES = (5, 6, 7, 8)
"""Of A, B, C and D."""

_ALGO_FIELDS: dict[str, tuple[int, type]] = {
    "algo_id": (0, c_int32),
    "tile_id": (1, c_uint32),
    "split_k": (2, c_int32),
    "reduction_scheme": (3, c_uint32),
    "swizzle": (4, c_uint32),
    "custom_option": (5, c_uint32),
    "stages_id": (6, c_uint32),
    "inner_shape_id": (7, c_uint16),
    "cluster_shape_id": (8, c_uint16),
}
"""Attribute number and C type of each part of an algorithm (``cublasLtMatmulAlgoConfigAttributes_t``)."""


class CublasLtError(AksError):
    """A call of cuBLASLt failed."""


class CublasLtMissingError(CublasLtError, OSError):
    """No cuBLASLt could be loaded."""


class UnsupportedAlgoError(UnsupportedRoutineError):
    """cuBLASLt has no such algorithm for this product: record it as ``Status.UNSUPPORTED``."""


class Algo(ctypes.Structure):
    """``cublasLtMatmulAlgo_t``."""

    _fields_ = [("data", c_uint64 * 8)]


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``."""

    _fields_ = [
        ("algo", Algo),
        ("workspaceSize", c_size_t),
        ("state", c_int),
        ("wavesCount", c_float),
        ("reserved", c_int * 4),
    ]


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulAlgoGetHeuristic": (*(c_void_p,) * 7, c_int, POINTER(HeuristicResult), POINTER(c_int)),
    "cublasLtMatmulAlgoConfigGetAttribute": (POINTER(Algo), c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    "cublasLtMatmul": (*(c_void_p,) * 14, c_size_t, c_void_p),
}
"""Argument types by function; each returns ``cublasStatus_t``."""

_ALPHA, _BETA = c_float(1.0), c_float(0.0)


class Plan:
    """One algorithm for one product on one device. Descriptors are only read: threads may share a plan.

    workspace_bytes is what the algorithm needs, waves the share of the GPU that one launch fills
    (1.0: exactly once), as cuBLASLt estimates it.
    """

    def __init__(self, lt: CublasLt, operation: _Object, layouts: tuple[_Object, ...], result: HeuristicResult) -> None:
        self.workspace_bytes = int(result.workspaceSize)
        self.waves = float(result.wavesCount)
        self._lt = lt
        self._algo = Algo.from_buffer_copy(result.algo)
        self._owners = (operation, *layouts)
        # Converted once: launch must cost little more than the call itself.
        self._matmul = lt.library.cublasLtMatmul
        self._handle, self._operation = lt.handle, operation.pointer
        self._a, self._b, self._d = (layout.pointer for layout in layouts)
        self._alpha, self._beta, self._algo_ref = byref(_ALPHA), byref(_BETA), byref(self._algo)

    def launch(
        self, x_ptr: int, w_ptr: int, out_ptr: int, workspace_ptr: int, workspace_bytes: int, stream: int
    ) -> None:
        """Enqueue the product on ``stream``. Device addresses; may be captured in a CUDA graph.

        The plan's device must be the current one. Launches that may overlap need workspaces of their own.

        Raises
        ------
        UnsupportedAlgoError
            If cuBLASLt says that the algorithm cannot run on these operands.
        CublasLtError
            If the launch fails, or the workspace is smaller than ``self.workspace_bytes``.
        """
        status = self._matmul(
            self._handle, self._operation, self._alpha, w_ptr, self._a, x_ptr, self._b, self._beta, out_ptr, self._d,
            out_ptr, self._d, self._algo_ref, workspace_ptr, workspace_bytes, stream,
        )  # fmt: skip
        if status == 0:
            return
        if workspace_bytes < self.workspace_bytes:
            raise CublasLtError(f"workspace has {workspace_bytes} bytes; this algorithm needs {self.workspace_bytes}")
        if status == _STATUS_NOT_SUPPORTED:
            raise UnsupportedAlgoError(f"cuBLASLt cannot run {self.describe()} on these operands")
        raise CublasLtError(f"cublasLtMatmul failed with status {status} for {self.describe()}")

    def describe(self) -> dict[str, int]:
        """What the algorithm is, in cuBLASLt's numbers; parts that the library does not tell are left out."""
        parts: dict[str, int] = {}
        for name, (attribute, ctype) in _ALGO_FIELDS.items():
            value, written = ctype(), c_size_t()
            status = self._lt.library.cublasLtMatmulAlgoConfigGetAttribute(
                self._algo_ref, attribute, byref(value), ctypes.sizeof(value), byref(written)
            )
            if status == 0:
                parts[name] = int(value.value)
        return parts


class CublasLt:
    """cuBLASLt on one device; the library is loaded when the first product is asked for.

    Use ``for_device``, which keeps one handle per device and process. Ask for plans before capturing
    a CUDA graph, since creating a handle allocates.
    """

    def __init__(self, device: int | None = None, library: Any = None) -> None:
        self.device = torch.cuda.current_device() if device is None else device
        self._given = library
        self._library: Any = None
        self._handle: c_void_p | None = None
        # A server sees ever new m: without a bound its plans would pile up.
        self._cached = lru_cache(maxsize=4096)(self._query)

    @property
    def library(self) -> Any:
        """The loaded library, with argument types declared."""
        if self._library is None:
            self._library = _declare(self._given if self._given is not None else load_library())
        return self._library

    @property
    def handle(self) -> c_void_p:
        """The ``cublasLtHandle_t`` of this device."""
        if self._handle is None:
            handle = c_void_p()
            with torch.cuda.device(self.device):
                torch.cuda.init()  # cublasLtCreate needs a CUDA context
                self._call("cublasLtCreate", byref(handle))
            self._handle = handle
        return self._handle

    def heuristics(
        self,
        m: int,
        n: int,
        k: int,
        dtype: str,
        w_layout: str,
        ldx: int,
        ldw: int,
        ldo: int,
        align_x: int = 16,
        align_w: int = 16,
        align_o: int = 16,
        workspace_bytes: int = WORKSPACE_BYTES,
        count: int = 8,
    ) -> list[Plan]:
        """cuBLASLt's ``count`` best algorithms for ``out[M, N] = x[M, K] @ w.T``, best first by its estimate.

        dtype is ``bf16`` or ``fp16``, w_layout ``nk`` or ``kn``; ldx, ldw, ldo are row strides in
        elements; align_* are the bytes that divide each pointer. May return fewer, or none.

        Raises
        ------
        InvalidProblemError
            If dtype or w_layout is unknown, or a row stride is shorter than its row.
        CublasLtError
            If the library is missing or refuses the description.
        """
        if dtype not in _DTYPES or w_layout not in ("nk", "kn"):
            raise InvalidProblemError(f"cuBLASLt got {dtype=}, {w_layout=}; wants {sorted(_DTYPES)} and 'nk' or 'kn'")
        shapes = ((n, k) if w_layout == "kn" else (k, n), (k, m), (n, m))
        layouts = tuple(
            _column_major(name, *shape, ld)
            for name, shape, ld in zip(("w", "x", "out"), shapes, (ldw, ldx, ldo), strict=True)
        )
        op_w = _OP_N if w_layout == "kn" else _OP_T
        alignments = (align_w, align_x, align_o, align_o)
        return list(self._cached(_DTYPES[dtype], op_w, layouts, alignments, workspace_bytes, count))

    def plan(self, index: int, **product: Any) -> Plan:
        """Entry ``index`` of ``heuristics(**product)``.

        Raises
        ------
        UnsupportedAlgoError
            If cuBLASLt returns no more than ``index`` algorithms.
        """
        plans = self.heuristics(**product)
        if not 0 <= index < len(plans):
            raise UnsupportedAlgoError(f"cuBLASLt has {len(plans)} algorithms for {product}; index {index} was asked")
        return plans[index]

    def _query(
        self,
        dtype: int,
        op_w: int,
        layouts: tuple[tuple[int, int, int], ...],
        alignments: tuple[int, ...],
        workspace_bytes: int,
        count: int,
    ) -> tuple[Plan, ...]:
        # Row-major out = x @ w.T is, column-major, out.T = op(w) @ x.T: A is w, B is x, C and D are out.
        operation = self._object("MatmulDesc", _COMPUTE_32F, _R_32F)
        operation.set(_DESC_TRANSA, c_int32(op_w))
        operation.set(_DESC_TRANSB, c_int32(_OP_N))
        a, b, d = (self._object("MatrixLayout", dtype, *layout) for layout in layouts)
        preference = self._object("MatmulPreference")
        preference.set(_PREF_MAX_WORKSPACE_BYTES, c_uint64(workspace_bytes))
        for attribute, alignment in zip(_PREF_MIN_ALIGNMENT_BYTES, alignments, strict=True):
            preference.set(attribute, c_uint32(alignment))
        results, found = (HeuristicResult * count)(), c_int(0)
        pointers = (o.pointer for o in (operation, a, b, d, d, preference))
        with torch.cuda.device(self.device):
            status = self.library.cublasLtMatmulAlgoGetHeuristic(self.handle, *pointers, count, results, byref(found))
        if status == _STATUS_NOT_SUPPORTED:
            return ()
        _check("cublasLtMatmulAlgoGetHeuristic", status)
        return tuple(Plan(self, operation, (a, b, d), r) for r in results[: found.value] if r.state == 0)

    def _object(self, kind: str, *arguments: int) -> _Object:
        pointer = c_void_p()
        self._call(f"cublasLt{kind}Create", byref(pointer), *arguments)
        return _Object(self.library, kind, pointer)

    def _call(self, name: str, *arguments: Any) -> None:
        _check(name, getattr(self.library, name)(*arguments))


@cache
def for_device(device: int) -> CublasLt:
    """The process's ``CublasLt`` of CUDA device ``device``."""
    return CublasLt(device)


def version() -> str:
    """Version of cuBLAS, as in ``13.1.0``.

    Raises
    ------
    CublasLtMissingError
        If there is none.
    """
    function = load_library().cublasLtGetVersion
    function.argtypes, function.restype = (), c_size_t
    number = function()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def load_library() -> ctypes.CDLL:
    """The cuBLASLt that PyTorch has loaded, else one of its wheels', else the system's.

    Raises
    ------
    CublasLtMissingError
        If there is none. It is an ``OSError`` too.
    """
    names = [f"libcublasLt.so.{major}" for major in _MAJORS]
    attempts: list[Callable[[], ctypes.CDLL]] = []
    if sys.platform == "linux":  # one already in the process: two copies would each keep a workspace
        attempts += [lambda n=name: ctypes.CDLL(n, mode=os.RTLD_NOLOAD | os.RTLD_NOW) for name in names]
    attempts += [lambda p=path: ctypes.CDLL(str(p)) for path in _wheel_paths()]
    attempts += [lambda n=name: ctypes.CDLL(n) for name in names]
    reasons = []
    for attempt in attempts:
        try:
            return attempt()
        except OSError as error:
            reasons.append(str(error))
    raise CublasLtMissingError(
        f"no {' or '.join(names)} found; install PyTorch with CUDA, or CUDA itself ({reasons[-1]})"
    )


def library_paths() -> list[str]:
    """What the dynamic loader calls the cuBLASLt of ``load_library``; empty if there is none."""
    try:
        return [load_library()._name]
    except CublasLtMissingError:
        return []


def _wheel_paths() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    folders = ("cu13/lib", "cublas/lib")
    paths = [root / folder / f"libcublasLt.so.{major}" for root in roots for folder in folders for major in _MAJORS]
    return [path for path in paths if path.exists()]


def _declare(library: Any) -> Any:
    for name, argtypes in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = argtypes, c_int
    return library


def _check(name: str, status: int) -> None:
    if status != 0:
        raise CublasLtError(f"{name} failed with cublasStatus_t {status}")


def _column_major(name: str, rows: int, cols: int, ld: int) -> tuple[int, int, int]:
    if cols == 1:
        return rows, cols, max(ld, rows)  # the stride of a single row is never used, and may be anything
    if ld < rows:
        raise InvalidProblemError(f"{name} has rows of {rows} elements but row stride {ld}; it must be >= {rows}")
    return rows, cols, ld


class _Object:
    """A descriptor of cuBLASLt's, destroyed with its last user."""

    def __init__(self, library: Any, kind: str, pointer: c_void_p) -> None:
        self.pointer = pointer
        self._name = f"cublasLt{kind}SetAttribute"
        self._library = library
        weakref.finalize(self, getattr(library, f"cublasLt{kind}Destroy"), pointer)

    def set(self, attribute: int, value: Any) -> None:
        """Set ``attribute`` to a ctypes ``value``."""
        function = getattr(self._library, self._name)
        _check(self._name, function(self.pointer, attribute, byref(value), ctypes.sizeof(value)))
