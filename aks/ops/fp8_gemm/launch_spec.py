"""Kernel variants, grids and arguments of ``fp8_gemm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.scaled.launch_spec import make_launch_spec

LAUNCH_SPEC = make_launch_spec(scale_step="scaling == 0", accurate="fast_accum == 0")
