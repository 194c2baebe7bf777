"""Kernels against the reference, through the registry: interpreted on any machine, for real on a GPU.

The interpreter multiplies the bit patterns of bf16 in ``tl.dot`` (Triton 3.7.1), so tensor-core
kernels are interpreted in fp16; on a GPU both dtypes run.
"""

from __future__ import annotations

import datetime
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aks.core.device import find_device
from aks.core.errors import IllegalConfigError, UnsupportedRoutineError
from aks.ops import OPS
from aks.ops.gemm.spec import GemmConfig, GemmProblem
from tests.ops.interpreting import interpret

ROOT = Path(__file__).parents[2]
DEVICE = find_device("h200")

SMALL = [
    {"m": 1, "n": 1, "k": 1, "alignment": 2},
    {"m": 1, "n": 72, "k": 520},
    {"m": 2, "n": 65, "k": 131, "alignment": 2},
    {"m": 3, "n": 70, "k": 260, "alignment": 4},
    {"m": 4, "n": 100, "k": 300, "alignment": 8},
    {"m": 17, "n": 136, "k": 264},
    {"m": 33, "n": 97, "k": 77, "alignment": 2},
    {"m": 5, "n": 129, "k": 1025},
    {"m": 2, "n": 72, "k": 136, "w_layout": "kn"},
    {"m": 19, "n": 75, "k": 90, "w_layout": "kn", "alignment": 2},
    {"m": 130, "n": 264, "k": 200},
]


def legal_configs(problem: GemmProblem) -> list[Any]:
    return OPS["gemm"].space.legal(problem, DEVICE)


def legal_kernels(problem: GemmProblem) -> list[Any]:
    return [config for config in legal_configs(problem) if config.num_warps]


def interpreted_cases() -> list[tuple[GemmProblem, GemmConfig]]:
    rng = random.Random(0)
    cases = []
    for row in SMALL:
        problem = GemmProblem(**row, dtype="fp16", static_weights=True)
        legal = legal_kernels(problem)
        for kind in sorted({config.kind for config in legal}):
            cases += [(problem, config) for config in rng.sample([c for c in legal if c.kind == kind], 1)]
    return cases


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    cases = interpreted_cases()
    return {p.key() + c.key(): said for (p, c), said in zip(cases, interpret(cases), strict=True)}


@pytest.mark.parametrize(("problem", "config"), interpreted_cases(), ids=lambda value: value.key().replace(" ", ","))
def test_interpreted_kernel_matches_reference(interpreted, problem, config) -> None:
    assert interpreted[problem.key() + config.key()] == ""


def gpu_problems() -> list[GemmProblem]:
    small = [GemmProblem(**row, dtype=dtype, static_weights=True) for row in SMALL for dtype in ("bf16", "fp16")]
    large = [
        GemmProblem(m=m, n=n, k=k, dtype=dtype, w_layout=layout, static_weights=True)
        for m, n, k in ((1, 4096, 4096), (7, 5120, 2880), (64, 2880, 4096), (333, 1000, 2048), (2048, 4096, 1536))
        for dtype, layout in (("bf16", "nk"), ("fp16", "kn"))
    ]
    odd = [GemmProblem(m=9, n=4099, k=2881, alignment=2), GemmProblem(m=300, n=1027, k=2886, alignment=4)]
    return small + large + odd


@pytest.mark.gpu
@pytest.mark.parametrize("problem", gpu_problems(), ids=lambda value: value.key().replace(" ", ","))
def test_every_kind_matches_reference_twice_on_gpu(problem) -> None:
    import torch

    op = OPS["gemm"]
    inputs = op.reference.make_inputs(problem, copies=2, seed=3)
    scratch = op.launch.Scratch(torch.device("cuda"))
    expected = op.reference.reference(problem, inputs.x, inputs.w[1])
    legal = legal_configs(problem)
    rng = random.Random(problem.key())
    for kind in sorted({config.kind for config in legal}):
        of_kind = [config for config in legal if config.kind == kind]
        for config in rng.sample(of_kind, min(6, len(of_kind))):
            try:
                launch = op.launch.bind(
                    config, problem, inputs.x, inputs.w[1], inputs.out, device=DEVICE, scratch=scratch
                )
            except UnsupportedRoutineError:
                continue
            results = []
            for _ in range(2):
                op.reference.poison(inputs.out)
                launch(torch.cuda.current_stream().cuda_stream)
                assert op.reference.check(problem, inputs.out, expected) == "", config.key()
                results.append(inputs.out.clone())
            assert torch.equal(*results), config.key()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tiled", "tma", "persistent"])
def test_offsets_past_two_to_the_31(kind) -> None:
    import torch

    op = OPS["gemm"]
    problem = GemmProblem(m=16384, n=201088, k=64)
    config = next(config for config in legal_configs(problem) if config.kind == kind)
    inputs = op.reference.make_inputs(problem)
    op.reference.poison(inputs.out)
    launch = op.launch.bind(
        config, problem, inputs.x, inputs.w[0], inputs.out,
        device=DEVICE, scratch=op.launch.Scratch(torch.device("cuda")),
    )  # fmt: skip
    launch(torch.cuda.current_stream().cuda_stream)
    rows = slice(16000, None)
    part = GemmProblem(m=384, n=201088, k=64)
    expected = op.reference.reference(part, inputs.x[rows], inputs.w[0])
    assert op.reference.check(part, inputs.out[rows], expected) == ""
    assert not inputs.out.isnan().any()


@pytest.mark.gpu
def test_dependent_launch_sees_weights_that_the_kernel_before_it_writes() -> None:
    """Non-static weights: whatever is legal without static_weights must wait before it uses w."""
    import torch

    op = OPS["gemm"]
    problem = GemmProblem(m=4, n=8192, k=4096)
    inputs = op.reference.make_inputs(problem, copies=2)
    scratch = op.launch.Scratch(torch.device("cuda"))
    target, source = inputs.w
    expected = op.reference.reference(problem, inputs.x, source)
    early = [config for config in legal_configs(problem) if config.pdl]
    assert {config.pdl for config in early} == {1}
    slow = torch.zeros(1 << 27, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    for config in random.Random(0).sample(early, 12):
        launch = op.launch.bind(config, problem, inputs.x, target, inputs.out, device=DEVICE, scratch=scratch)
        launch(stream)
        torch.cuda.synchronize()
        for _ in range(5):
            target.zero_()
            op.reference.poison(inputs.out)
            slow.add_(1.0)  # the copy below is queued, not done, when the product is launched
            target.copy_(source)
            launch(stream)
            assert op.reference.check(problem, inputs.out, expected) == "", config.key()


def test_weights_read_early_need_a_static_declaration() -> None:
    space = OPS["gemm"].space
    configs: Any = space.configs
    problem = GemmProblem(m=1, n=4096, k=4096)
    early = [config for config in configs if config.pdl == 2]
    assert early
    assert all(
        "weights read before the wait must be static" in space.broken_rules(config, problem, DEVICE) for config in early
    )
    with pytest.raises(IllegalConfigError, match="static"):
        space.check(early[0], problem, DEVICE)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_sample_of_the_space_compiles_or_is_refused(capability) -> None:
    """Seeded by the day of the run (or AKS_SEED), so that runs together see the whole space."""
    device = {80: find_device("a100-sxm4-80gb"), 90: DEVICE, 100: replace(DEVICE, name="sm_100", capability=100)}[
        capability
    ]
    op = OPS["gemm"]
    seed = os.environ.get("AKS_SEED", datetime.date.today().isoformat())
    kernels: Any = [config for config in op.space.configs if config.to_row()["num_warps"]]
    compiled = 0
    for config in random.Random(seed).sample(kernels, 12):
        fitting = GemmProblem(m=max(1, config.block_m), n=4096, k=4096, static_weights=True)
        if op.space.broken_rules(config, fitting, device):
            continue
        kernel = op.launch.compile_variant(op.launch.variant_of(config, fitting), capability)
        assert kernel.metadata.shared <= device.smem_bytes_per_block, f"{config.key()} (AKS_SEED={seed})"
        compiled += 1
    assert compiled or capability != 90, f"nothing of the sample was legal (AKS_SEED={seed})"
