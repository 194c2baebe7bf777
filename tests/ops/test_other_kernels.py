"""Kernels of ops beside ``gemm`` and ``mm`` against the reference: interpreted on any machine, for real on a GPU."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aks.core.device import find_device
from aks.core.problem import Problem
from aks.ops import OPS
from aks.ops.fp8_gemm.spec import Fp8GemmProblem
from aks.ops.fused_linear.spec import EPILOGUES, FusedLinearProblem
from aks.ops.int4_gemm.spec import Int4GemmProblem
from aks.ops.int8_gemm.spec import Int8GemmProblem
from aks.ops.quantize_rows.spec import OUT_DTYPES, QuantizeRowsProblem
from aks.ops.rms_norm.spec import RmsNormProblem
from tests.ops.interpreting import interpret

ROOT = Path(__file__).parents[2]
DEVICE = find_device("h200")

SMALL = ((1, 72, 520), (2, 64, 1032), (3, 136, 264), (17, 136, 264), (5, 128, 1024), (70, 200, 72))
ROWS = ((1, 72), (3, 520), (2, 4096), (5, 1000))
LONG_ROWS = ((1, 80), (3, 528), (9, 128), (2, 4112), (1, 16400))
ODD: tuple[Problem, ...] = (
    FusedLinearProblem(m=3, n=65, k=131, epilogue="silu_mul", dtype="fp16", alignment=2),
    FusedLinearProblem(m=2, n=20, k=36, epilogue="residual", dtype="fp16", alignment=8),
    RmsNormProblem(m=3, k=7, residual=True, dtype="fp16", alignment=2),
    QuantizeRowsProblem(m=3, k=7, out_dtype="int8", dtype="fp16", alignment=1),
    QuantizeRowsProblem(m=5, k=66, alignment=2),
    QuantizeRowsProblem(m=5, k=330, alignment=2, group=128),
)


def problems(dtype: str) -> list[Problem]:
    return [
        *(
            FusedLinearProblem(m=m, n=n, k=k, epilogue=epilogue, dtype=dtype, static_weights=True)
            for epilogue in EPILOGUES
            for m, n, k in SMALL
        ),
        *(RmsNormProblem(m=m, k=k, residual=residual, dtype=dtype) for m, k in ROWS for residual in (False, True)),
        *(QuantizeRowsProblem(m=m, k=k, out_dtype=to, dtype=dtype) for m, k in LONG_ROWS for to in OUT_DTYPES),
        *(QuantizeRowsProblem(m=m, k=k, group=128, dtype=dtype) for m, k in (*LONG_ROWS[:-1], (37, 1040))),
    ]


def eight_bit(*shapes: tuple[int, int, int], **attributes: Any) -> list[Problem]:
    """The same shapes in both 8-bit ops, in each mode."""
    made: list[Problem] = []
    for m, n, k in shapes:
        made.append(Int8GemmProblem(m=m, n=n, k=k, static_weights=True, **attributes))
        for scaling in ("row", "tensor"):
            for fast_accum in (False, True):
                mode: dict[str, Any] = {"scaling": scaling, "fast_accum": fast_accum}
                made.append(Fp8GemmProblem(m=m, n=n, k=k, static_weights=True, **mode, **attributes))
        made.append(Fp8GemmProblem(m=m, n=n, k=k, static_weights=True, scaling="block", **attributes))
    return made


EIGHT_BIT = [
    *eight_bit((1, 80, 1040), (3, 144, 272), (17, 144, 272), (70, 208, 528)),
    Fp8GemmProblem(m=2, n=144, k=1040, scaling="block", static_weights=True),
    *eight_bit((5, 33, 131), alignment=1),
    *eight_bit((2, 40, 68), alignment=4),
]


def four_bit(*shapes: tuple[int, int, int, int, bool], **attributes: Any) -> list[Problem]:
    """Problems of (m, n, k, group, zeros)."""
    return [
        Int4GemmProblem(m=m, n=n, k=k, group=group, zeros=zeros, static_weights=True, **attributes)
        for m, n, k, group, zeros in shapes
    ]


FOUR_BIT = [
    *four_bit((1, 72, 1024, 128, False), (3, 72, 608, 32, True), (9, 72, 640, 64, False)),
    *four_bit((29, 40, 640, 128, True), (70, 72, 576, 64, True), has_bf16=True),
    *four_bit((1, 264, 520, 64, True), density=25),
    *four_bit((1, 1088, 330, 32, False), density=5, alignment=4),
    *four_bit((5, 33, 131, 32, False), (2, 65, 781, 128, True), alignment=2),
]


def cases_of(problem: Problem, number: int) -> list[tuple[Problem, Any]]:
    """A few legal configs of each kind."""
    rng = random.Random(problem.key())
    legal: list[Any] = OPS[problem.OP].space.legal(problem, DEVICE)
    by_kind = {kind: [config for config in legal if config.kind == kind] for kind in sorted({c.kind for c in legal})}
    return [
        (problem, config)
        for configs in by_kind.values()
        for config in rng.sample(configs, min(number, len(configs)))
    ]  # fmt: skip


def interpreted_cases() -> list[tuple[Problem, Any]]:
    return [case for problem in (*problems("fp16"), *ODD, *EIGHT_BIT, *FOUR_BIT) for case in cases_of(problem, 1)]


@cache
def interpreted(op_name: str) -> dict[str, str]:
    """What the interpreter says of all cases of an op: one process, since starting one takes longer than a case."""
    cases = [case for case in interpreted_cases() if op_name == case[0].OP]
    return {p.key() + c.key(): said for (p, c), said in zip(cases, interpret(cases), strict=True)}


@pytest.mark.parametrize(
    ("problem", "config"),
    interpreted_cases(),
    ids=lambda value: f"{value.OP}:{value.key().replace(' ', ',')}",
)
def test_interpreted_kernel_matches_reference(problem, config) -> None:
    assert interpreted(problem.OP)[problem.key() + config.key()] == ""


def test_every_epilogue_and_kind_is_interpreted() -> None:
    seen = {(p.epilogue, c.kind) for p, c in interpreted_cases() if isinstance(p, FusedLinearProblem)}
    assert seen == {(epilogue, kind) for epilogue in EPILOGUES for kind in ("torch", "gemv", "stream", "tma")}


@pytest.mark.parametrize("problem", ODD, ids=lambda value: value.key())
def test_what_is_not_aligned_is_left_to_the_vendor(problem) -> None:
    op = OPS[problem.OP]
    assert op.space.legal(problem, DEVICE) == [op.vendor]


def gpu_problems() -> list[Problem]:
    large = [
        *(
            FusedLinearProblem(m=m, n=n, k=k, epilogue=epilogue, static_weights=True)
            for m, n, k, epilogue in (
                (1, 14336, 4096, "silu_mul"), (2, 4096, 14336, "residual"), (4, 2880, 2880, "bias"),
                (7, 18944, 3584, "gelu_tanh_mul"), (64, 14336, 4096, "silu_mul"), (333, 1000, 2048, "gelu"),
                (2048, 4096, 1536, "residual"),
            )
        ),
        *(RmsNormProblem(m=m, k=k, residual=True) for m, k in ((1, 4096), (64, 16384), (5000, 2880), (17, 20000))),
        *(
            QuantizeRowsProblem(m=m, k=k, out_dtype=to)
            for m, k in ((1, 4096), (64, 14336), (5000, 2880), (17, 28672))
            for to in OUT_DTYPES
        ),
        *(QuantizeRowsProblem(m=m, k=k, group=128) for m, k in ((1, 7168), (64, 18432), (5001, 2880), (17, 1536))),
    ]  # fmt: skip
    eight = eight_bit((1, 4096, 4096), (2, 4096, 14336), (64, 2880, 4096), (333, 1000, 2048), (2048, 2048, 4096))
    odd = [*eight_bit((130, 257, 1003), alignment=1), *eight_bit((64, 72, 136), alignment=8)]
    each = [(group, zeros) for group in (32, 64, 128) for zeros in (False, True)]
    four = [
        *(p for how in each for p in four_bit((1, 4096, 4096, *how), (64, 2880, 4096, *how), (2, 4096, 14336, *how))),
        *(p for how in each for p in four_bit((8, 4096, 4096, *how), (16, 6144, 4096, *how), (333, 4096, 4096, *how))),
        *(p for how in each for p in four_bit((61, 1012, 1152, *how), (7, 1012, 1120, *how), alignment=8)),
        *(p for how in each for density in (5, 50) for p in four_bit((1, 4096, 14336, *how), density=density)),
        *four_bit((1, 1012, 1120, 32, True), density=10, alignment=8),
        *four_bit((8, 4096, 4096, 128, False), (100, 1000, 2048, 128, True), has_bf16=True),
    ]
    return [
        *problems("bf16"), *problems("fp16"), *ODD, *large, *EIGHT_BIT, *eight, *odd, *FOUR_BIT, *four,
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("problem", gpu_problems(), ids=lambda value: f"{value.OP}:{value.key().replace(' ', ',')}")
def test_every_kind_matches_reference_twice_on_gpu(problem) -> None:
    import torch

    op = OPS[problem.OP]
    inputs = op.reference.make_inputs(problem, copies=2, seed=3)
    scratch = op.launch.Scratch(torch.device("cuda"))
    expected = op.reference.reference(problem, inputs.x, inputs.w[1])
    for _, config in cases_of(problem, 2):
        launch = op.launch.bind(config, problem, inputs.x, inputs.w[1], inputs.out, device=DEVICE, scratch=scratch)
        results = []
        for _ in range(2):
            op.reference.poison(inputs.out)
            launch(torch.cuda.current_stream().cuda_stream)
            assert op.reference.check(problem, inputs.out, expected) == "", config.key()
            results.append(inputs.out.clone().view(torch.uint8))  # bit by bit: behind values there may be scales
        assert torch.equal(*results), config.key()
