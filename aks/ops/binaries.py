"""From what Triton compiled to a ``Binary``. Imports triton; needs no GPU.

How Triton's launcher expands a signature is read in ``triton/backends/nvidia/driver.py`` (3.6 and 3.7): a
tensor descriptor becomes its map, its shape and its strides, and two pointers to scratch memory come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from triton.backends.nvidia import compiler
from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST
from triton.compiler import ASTSource

from aks.core.errors import ArtifactError
from aks.ops.binary import MAP_BYTES, Binary, Box, Parameter

_BYTES = {"i1": 4, "i32": 4, "u32": 4, "i64": 8, "u64": 8}
_PTX_PARAMETER = re.compile(r"^\s*\.param\s+(?:\.align\s+\d+\s+)?\.([bu])(8|32|64)\b[^\[,\n]*(?:\[(\d+)\])?", re.M)


def to_binary(source: ASTSource, kernel: Any, capability: int) -> Binary:
    """The kernel that ``triton.compile(source)`` gave for a GPU of ``capability``.

    Raises
    ------
    ArtifactError
        If it needs what a ``Binary`` does not say: scratch memory of the compiler's, clusters, a cooperative
        launch, or parameters other than this reading of its signature gives.
    """
    metadata = kernel.metadata
    unusual = {
        "global_scratch_size": metadata.global_scratch_size,
        "profile_scratch_size": metadata.profile_scratch_size,
        "launch_cooperative_grid": metadata.launch_cooperative_grid,
        "num_ctas": metadata.num_ctas - 1,
    }
    if any(unusual.values()):
        raise ArtifactError(f"kernel {metadata.name} was compiled with {unusual}; a bundle holds plain kernels (all 0)")
    descriptors = iter(metadata.tensordesc_meta or ())
    boxes: dict[str, Box] = {}
    parameters = tuple(_parameters(source, descriptors, boxes))
    _check_parameters(metadata.name, parameters, kernel.asm["ptx"])
    return Binary(
        cubin=kernel.asm["cubin"],
        function=metadata.name,
        num_warps=metadata.num_warps,
        shared_bytes=metadata.shared,
        early_start=bool(metadata.launch_pdl),
        parameters=parameters,
        boxes=boxes,
        cuda=_cuda_version(capability),
        triton=metadata.triton_version,
    )


def _parameters(source: ASTSource, descriptors: Iterator[dict], boxes: dict[str, Box]) -> Iterator[Parameter]:
    for name, kind in source.signature.items():
        if kind.startswith("tensordesc"):
            boxes[name] = _box(name, next(descriptors, None))
            yield Parameter("map", name, MAP_BYTES)
            yield Parameter("rows", name, 4)
            yield Parameter("columns", name, 4)
            yield Parameter("row_stride", name, 8)
            yield Parameter("one", name, 8)
        elif kind != "constexpr":
            yield Parameter("value", name, 8 if kind.startswith("*") else _BYTES[kind])
    yield Parameter("null", "global_scratch", 8)
    yield Parameter("null", "profile_scratch", 8)


def _box(name: str, meta: dict[str, Any] | None) -> Box:
    if meta is None or meta["fp4_padded"] or len(meta["block_size"]) != 2:
        raise ArtifactError(f"descriptor {name} was compiled as {meta}; a bundle takes maps of two dimensions")
    rows, columns = meta["block_size"]
    return Box(rows, columns, TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]], meta["elem_size"], meta["swizzle"])


def _check_parameters(name: str, parameters: tuple[Parameter, ...], ptx: str) -> None:
    """The compiler's own list of parameters must be ours: another Triton may expand signatures otherwise."""
    head = ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))]
    compiled = [int(bits) // 8 * int(length or 1) for _, bits, length in _PTX_PARAMETER.findall(head)]
    if compiled != [parameter.num_bytes for parameter in parameters]:
        raise ArtifactError(
            f"kernel {name} has parameters of {compiled} bytes; aks reads its signature as {parameters}: this "
            "version of Triton passes arguments otherwise; use one from 3.6 to 3.7"
        )


def _cuda_version(capability: int) -> int:
    major, minor = compiler.get_ptxas(capability).version.split(".")[:2]
    return 1000 * int(major) + 10 * int(minor)
