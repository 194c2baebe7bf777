"""Kernel variants, grids and arguments of ``fp8_gemm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.fp8_gemm.spec import BLOCK_SCALING
from aks.ops.scaled.launch_spec import make_launch_spec

LAUNCH_SPEC = make_launch_spec(
    # What a block adds up to goes to a float32 anyway.
    accurate=f"scaling != {BLOCK_SCALING} and fast_accum == 0",
    block_scaled=f"scaling == {BLOCK_SCALING}",
    scalings=True,
)
