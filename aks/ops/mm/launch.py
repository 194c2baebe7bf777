"""From a config and tensors to a launch: kernel variants of ``mm``, their compilation, grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource

from aks.core.device import DeviceSpec
from aks.ops.mm import reference
from aks.ops.mm.kernels import mm_kernel
from aks.ops.mm.launch_spec import LAUNCH_SPEC
from aks.ops.mm.spec import ELEMENT_BYTES, MmConfig, MmProblem
from aks.ops.scratch import NoScratch as Scratch
from aks.ops.variants import Variants, annotated_source

_GROUP_M = 8
"""Rows of tiles that go together: what the template of PyTorch Inductor has."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: a config, and what of the problem the compiler must know (``launch_spec``)."""

    config: MmConfig
    dtype: str
    x_km: bool
    w_kn: bool
    alignment: int
    m_bytes: int
    n_bytes: int
    k_bytes: int
    even_k: bool


def make_variant(config: MmConfig, values: Sequence[int]) -> Variant:
    """The variant of ``config`` with these values of ``LAUNCH_SPEC.variant``."""
    dtype, x_km, w_kn, alignment, m_bytes, n_bytes, k_bytes, even_k = values
    name = MmProblem.CHOICES["dtype"][dtype]
    return Variant(config, name, bool(x_km), bool(w_kn), alignment, m_bytes, n_bytes, k_bytes, bool(even_k))


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a variant, and with which options."""
    config, constants = variant.config, _constants(variant)
    size = ELEMENT_BYTES[variant.dtype]
    divisors = {
        "x_ptr": variant.alignment,
        "w_ptr": variant.alignment,
        "out_ptr": 16,
        "M": variant.m_bytes // size,
        "N": variant.n_bytes // size,
        "K": variant.k_bytes // size,
        "x_row": variant.alignment // size,
        "w_row": variant.alignment // size,
        "out_row": variant.n_bytes // size,
    }
    types: dict[str, str] = dict.fromkeys(("M", "N", "K"), "i32")
    types |= dict.fromkeys(("x_row", "w_row", "out_row"), "i64")
    source = annotated_source(
        mm_kernel, constants, lambda name: types.get(name, f"*{variant.dtype}"), lambda name: divisors.get(name, 1)
    )
    return source, {"num_warps": config.num_warps, "num_stages": config.num_stages}


def _constants(variant: Variant) -> dict[str, Any]:
    config = variant.config
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": _GROUP_M,
        "EVEN_K": variant.even_k,
        "X_KM": variant.x_km,
        "W_KN": variant.w_kn,
    }


VARIANTS = Variants(LAUNCH_SPEC, make_variant, source_of)
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready


def bind(
    config: MmConfig, problem: MmProblem, x, w, out, *, device: DeviceSpec, scratch: Scratch
) -> Callable[[int], object]:
    """A function of a CUDA stream handle that launches ``config`` on these tensors (see ``reference.make_inputs``).

    The config must be legal; everything that can be prepared is.
    """
    if config.kind == "aten":
        vendor = reference.vendor(problem, x, w, out)
        return lambda stream: vendor()
    variant = variant_of(config, problem)
    grid = LAUNCH_SPEC.count_programs(config, problem.variables(), device.sm_count)
    arguments = _arguments(variant, problem, x, w, out)
    return VARIANTS.launcher(mm_kernel, variant, grid, arguments, device, x.get_device())


def _arguments(variant: Variant, problem: MmProblem, x, w, out) -> list[Any]:
    """The kernel's arguments in order; constants are passed too, and ignored by the launcher."""
    x_row = x.stride(1) if variant.x_km else x.stride(0)
    tensors = [x, w, out, problem.m, problem.n, problem.k, x_row, w.stride(0), out.stride(0)]
    return [*tensors, *_constants(variant).values()]
