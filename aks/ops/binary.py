"""A compiled kernel as data: its code, and what launching it takes. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

MAP_BYTES = 128
"""Of a tensor descriptor (``CUtensorMap``)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a kernel, in the order of its ABI.

    role
        ``value``: the argument ``name`` itself. Of a descriptor ``name``: ``map`` (128 bytes), ``rows``,
        ``columns``, ``row_stride`` and ``one`` (the stride within a row). ``null``: a pointer that the
        compiler reserves and our kernels do not use.
    """

    role: str
    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Box:
    """What a load through a descriptor fetches, in the driver's numbers (``cuTensorMapEncodeTiled``)."""

    rows: int
    columns: int
    element_type: int
    element_bytes: int
    swizzle: int


@dataclass(frozen=True, slots=True)
class Binary:
    """One compiled kernel.

    shared_bytes is dynamic shared memory; early_start says that it is launched before the kernel before it
    has ended (programmatic dependent launch); cuda is the version of the CUDA toolkit whose assembler made
    it, as drivers count (12080 for 12.8): an older driver may not load it.
    """

    cubin: bytes = field(repr=False)
    function: str
    num_warps: int
    shared_bytes: int
    early_start: bool
    parameters: tuple[Parameter, ...]
    boxes: dict[str, Box]
    cuda: int
    triton: str
