"""Kernel variants, grids and arguments of ``int8_gemm`` as formulas. Standard library and core only."""

from __future__ import annotations

from aks.ops.scaled.launch_spec import make_launch_spec

LAUNCH_SPEC = make_launch_spec()
