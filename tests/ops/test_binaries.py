"""Real compilations, without a GPU: what Triton gives is what a bundle keeps of it."""

from __future__ import annotations

import dataclasses

import pytest

from aks.core.errors import ArtifactError
from aks.export.compiling import compile_all
from aks.ops import OPS
from aks.ops.binaries import _check_parameters
from aks.ops.gemm import launch
from aks.ops.gemm.spec import GemmConfig, GemmProblem
from aks.ops.mm.spec import MmConfig, MmProblem

TMA = GemmConfig("tma", 16, 64, 128, 4, 4, 4, 1, 1, 32)
TILED = GemmConfig("tiled", 64, 64, 64, 2, 4, 4)


def binary(config: GemmConfig, problem: GemmProblem, capability: int):
    return launch.VARIANTS.compile_binary(launch.VARIANTS.variant_of(config, problem), capability)


def test_a_kernel_with_descriptors() -> None:
    made = binary(TMA, GemmProblem(16, 4096, 4096), 90)
    assert made.cubin[:4] == b"\x7fELF" and made.function == "tma_kernel" and made.early_start
    assert [(p.role, p.name) for p in made.parameters[:5]] == [
        ("map", "x_desc"), ("rows", "x_desc"), ("columns", "x_desc"), ("row_stride", "x_desc"), ("one", "x_desc"),
    ]  # fmt: skip
    assert [p.role for p in made.parameters[-2:]] == ["null", "null"]
    # bf16 in the driver's numbers, with swizzles of 128 bytes: 64 elements.
    assert dataclasses.astuple(made.boxes["w_desc"]) == (64, 64, 9, 2, 3)


def test_kernels_name_no_local_path() -> None:
    assert b"/aks/" not in binary(TILED, GemmProblem(64, 512, 512), 90).cubin


@pytest.mark.parametrize(("capability", "cuda"), [(80, 12000), (86, 12000), (89, 12000), (100, 12080), (120, 12080)])
def test_other_targets(capability: int, cuda: int) -> None:
    made = binary(TILED, GemmProblem(64, 512, 512), capability)
    assert made.cubin[:4] == b"\x7fELF" and made.cuda >= cuda and not made.boxes


def test_other_parameters_than_ours_are_refused() -> None:
    made = binary(TILED, GemmProblem(64, 512, 512), 80)
    with pytest.raises(ArtifactError, match=r"bytes; aks reads its signature.*use one from 3\.6"):
        _check_parameters("tiled_kernel", made.parameters[1:], ".entry f(\n\t.param .u64 .ptr .global p0,\n){")


def test_parallel_compilation_keeps_the_order() -> None:
    config = MmConfig("triton", 16, 16, 32, 2, 1)
    spec = OPS["mm"].launch_spec
    problems = [MmProblem(16, 64, k, dtype=dtype) for k in (64, 100) for dtype in ("bf16", "fp32")]
    kernels = [(config, spec.variant_values(config, problem.variables())) for problem in problems]
    made = compile_all("mm", 80, kernels, processes=2)
    assert [b.function for b in made] == ["mm_kernel"] * 4
    assert len({b.cubin for b in made}) == 4
    assert made[3] == compile_all("mm", 80, kernels[3:], processes=1)[0]
