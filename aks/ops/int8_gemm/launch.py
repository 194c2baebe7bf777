"""From a config and tensors to a launch: kernel variants of ``int8_gemm``, their compilation, grids."""

from __future__ import annotations

from functools import partial

from aks.ops.gemm.routines import Scratch
from aks.ops.int8_gemm import reference
from aks.ops.int8_gemm.launch_spec import LAUNCH_SPEC
from aks.ops.scaled import launch as scaled

VARIANTS = scaled.make_variants(LAUNCH_SPEC, "i8")
variant_of, compile_variant = VARIANTS.variant_of, VARIANTS.compile
compile_jobs, compile_job, is_ready = VARIANTS.jobs, VARIANTS.compile_job, VARIANTS.is_ready
bind = partial(scaled.bind, VARIANTS, LAUNCH_SPEC, reference.vendor)

__all__ = ["VARIANTS", "Scratch", "bind", "compile_job", "compile_jobs", "compile_variant", "is_ready", "variant_of"]
