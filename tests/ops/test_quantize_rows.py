"""What quantising means, by PyTorch and by the kernel, where values are not finite, cut off, or half way."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aks.core.device import find_device
from aks.core.errors import InvalidProblemError
from aks.ops.quantize_rows.call import EIGHT_BIT, Operands, as_scales, call_of, count_scales
from aks.ops.quantize_rows.reference import FLOOR, TOPS, quantize, quantize_blocks
from aks.ops.quantize_rows.spec import OUT_DTYPES, QUANTIZE_ROWS, QuantizeRowsProblem

ROOT = Path(__file__).parents[2]
FP8, INT8 = torch.float8_e4m3fn, torch.int8
DTYPES = [FP8, INT8]
K = 2064


def special_rows(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[8, K]: random rows, some with values that are large, small, zero, infinite or NaN."""
    x = torch.randn(8, K, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1] = 0
    x[2] *= 1e-30 if dtype == torch.bfloat16 else 1e-7
    x[3] *= 1e38 if dtype == torch.bfloat16 else 1e4
    x[4, 5] = math.inf
    x[5, K - 1] = -math.inf
    x[6, 7] = math.nan
    x[7] = torch.arange(K).remainder(255) - 127  # of int8 every quotient is whole; of 8-bit floats some are half way
    return x


def differences(device: str) -> list[str]:
    """What each kind of kernel does otherwise with ``special_rows`` than PyTorch's kernels on a CPU."""
    found = []
    for x in (special_rows(), special_rows(torch.float16)):
        for name, group in (*((name, 0) for name in OUT_DTYPES), ("fp8", 128)):
            values, scale = quantize_blocks(x, EIGHT_BIT[name], 1) if group else quantize(x, EIGHT_BIT[name])
            dtype = "bf16" if x.dtype == torch.bfloat16 else "fp16"
            problem = QuantizeRowsProblem(m=x.shape[0], k=x.shape[1], dtype=dtype, out_dtype=name, group=group)
            configs = {c.to_row()["kind"]: c for c in QUANTIZE_ROWS.space.legal(problem, find_device("h200"))}
            for config in configs.values():
                out, out_scale = torch.empty_like(values, device=device), torch.empty_like(scale, device=device)
                launch = QUANTIZE_ROWS.launch.bind(
                    config, problem, x.to(device), Operands(out_scale), out, device=find_device("h200"), scratch=None
                )
                launch(torch.cuda.current_stream().cuda_stream if device == "cuda" else 0)
                same = torch.equal(out_scale.cpu().nan_to_num(-1.0), scale.nan_to_num(-1.0))
                # NaN of 8-bit floats may have either sign.
                if not same or not torch.equal(_comparable(out.cpu()), _comparable(values)):
                    found.append(f"{config.key()} on {x.dtype} to {name}, group {group}")
    return found


def _comparable(values: torch.Tensor) -> torch.Tensor:
    return values.float().nan_to_num(1e6)


def test_the_interpreted_kernel_does_as_pytorch() -> None:
    words = "import tests.ops.interpreted, json; from tests.ops.test_quantize_rows import differences;"
    answer = subprocess.run(
        [sys.executable, "-c", f"{words} print(json.dumps(differences('cpu')))"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert json.loads(answer.stdout) == []


@pytest.mark.gpu
def test_the_kernel_does_as_pytorch_on_gpu() -> None:
    assert differences("cuda") == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_row", [True, False])
def test_values_times_scales_are_near(dtype: torch.dtype, by_row: bool) -> None:
    x = special_rows()[[0, 3, 7]][: 3 if by_row else 1]
    values, scale = quantize(x, dtype, by_row)
    assert scale.shape == ((3,) if by_row else (1,)) and values.dtype == dtype
    exact = x.double()
    absmax = exact.abs().amax(-1)  # where all of x has one scale, it is a row
    torch.testing.assert_close(scale.double(), (absmax / TOPS[dtype]).view(-1), rtol=1e-6, atol=0)
    error = (values.double() * scale.double()[:, None] - exact).abs()
    # Half a step: of int8 half a scale; of e4m3 2^-4 of a value, or half of the least step, 2^-9 scales.
    half = 0.5 if dtype == INT8 else 2.0**-10
    allowed = half * scale.double()[:, None] + (0 if dtype == INT8 else 2.0**-4) * exact.abs()
    assert (error <= allowed * (1 + 1e-4)).all()
    assert values.float().abs().amax() == TOPS[dtype]


def test_halves_go_to_even() -> None:
    row = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 3.25]])
    values, scale = quantize(row, INT8)
    assert scale.tolist() == [1.0]
    assert values.tolist() == [[127, 0, 2, 2, 0, -2, -126, 3]]
    row = torch.tensor([[448.0, 17.0, 19.0, -17.0, 2.0**-10, 3 * 2.0**-10, 432.0]])
    values, scale = quantize(row, FP8)
    assert scale.tolist() == [1.0]
    assert values.float().tolist() == [[448.0, 16.0, 20.0, -16.0, 0.0, 2 * 2.0**-9, 448.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    x = special_rows()
    values, scale = quantize(x, dtype)
    assert scale.isfinite().tolist() == [True, True, True, True, False, False, False, True]
    assert scale[1] == FLOOR / TOPS[dtype] and not values[1].float().any()
    product = values.float().sum(-1) * scale  # with a weight of ones
    assert product.isnan().tolist() == [False, False, False, False, True, True, True, False]
    assert values[:4].float().isfinite().all()


@pytest.mark.parametrize("shape", [(5, 300), (1, 128), (130, 260), (128, 100), (3, 4100)])
@pytest.mark.parametrize("rows", [1, 128])
def test_blocks_are_quantised_each_by_itself(shape: tuple[int, int], rows: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values, scale = quantize_blocks(x, FP8, rows)
    assert values.shape == shape and scale.shape == (-(-shape[0] // rows), -(-shape[1] // 128))
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            part = slice(rows * row, rows * row + rows), slice(128 * column, 128 * column + 128)
            alone, [alone_scale] = quantize(x[part].reshape(1, -1), FP8)
            assert scale[row, column] == alone_scale
            assert torch.equal(values[part].float().reshape(1, -1), alone.float())


def test_what_is_not_finite_stays_in_its_group() -> None:
    x = special_rows()
    values, scale = quantize_blocks(x, FP8, 1)
    assert (~scale.isfinite()).nonzero().tolist() == [[4, 0], [5, K // 128], [6, 0]]
    assert values[4:7, 128 : K - K % 128].float().isfinite().all()


def test_groups_are_of_8_bit_floats_alone() -> None:
    with pytest.raises(InvalidProblemError, match=r"out_dtype='int8' and group=128; .*group must be 0"):
        QuantizeRowsProblem(m=1, k=128, out_dtype="int8", group=128)
    with pytest.raises(InvalidProblemError, match=r"group=64; group must be one of \(0, 128\)"):
        QuantizeRowsProblem(m=1, k=128, group=64)


@pytest.mark.parametrize("rows", [(1,), (6,), (2, 3), (8,), ()])
def test_scales_of_groups_lie_as_cublaslt_wants_them(rows: tuple[int, ...]) -> None:
    m = math.prod(rows)
    memory = torch.arange(count_scales(m, 300, 128), dtype=torch.float32)
    scale = as_scales(memory, rows, 300, 128)
    flat = scale.reshape(m, 3)
    assert scale.shape == (*rows, 3) and flat.data_ptr() == memory.data_ptr()
    wide = -(-m // 4) * 4
    assert flat.tolist() == [[wide * group + row for group in range(3)] for row in range(m)]


def test_a_call_has_the_strides_of_its_scales() -> None:
    x = torch.zeros(6, 304, dtype=torch.bfloat16)
    out = torch.empty_like(x, dtype=FP8)
    for scale in (torch.zeros(6, 3), torch.zeros(3, 8).T[:6]):
        call = call_of(x, scale, out, 128)
        assert call is not None and (call.scale_step, call.scale_block) == scale.stride()
        assert call.problem() == QuantizeRowsProblem(m=6, k=304, group=128)
    for scale in (torch.zeros(6), torch.zeros(3, 6), torch.zeros(6, 3, dtype=torch.float64)):
        assert call_of(x, scale, out, 128) is None
    call = call_of(x, torch.zeros(6), out)
    assert call is not None and (call.scale_step, call.scale_block) == (1, 0)


def compiled_cases() -> list[tuple[QuantizeRowsProblem, Any]]:
    """Every tile, early and late."""
    problem = QuantizeRowsProblem(m=64, k=7168, group=128)
    legal: list[Any] = QUANTIZE_ROWS.space.legal(problem, find_device("h200"))
    return [(problem, config) for config in legal if config.kind == "tile"]


@pytest.mark.parametrize(("problem", "config"), compiled_cases(), ids=lambda value: value.key().replace(" ", ","))
def test_tiles_are_read_and_written_in_vectors(problem, config) -> None:
    ptx = QUANTIZE_ROWS.launch.compile_variant(QUANTIZE_ROWS.launch.variant_of(config, problem), 90).asm["ptx"]
    each = config.block_m * config.block_k // (32 * config.num_warps)
    assert f"ld.global.v{min(4, each // 2)}.b32" in ptx and "ld.global.b16" not in ptx
    assert "st.global.b8" not in ptx


def test_every_tile_is_legal_somewhere() -> None:
    tiles = {config for _, config in compiled_cases()}
    configs: Any = QUANTIZE_ROWS.space.configs
    assert tiles == {config for config in configs if config.kind == "tile"}
    rows: list[Any] = QUANTIZE_ROWS.space.legal(QuantizeRowsProblem(m=64, k=7168), find_device("h200"))
    assert not tiles & set(rows)


def test_wrong_scales_of_groups_are_caught() -> None:
    problem = QuantizeRowsProblem(m=3, k=208, group=128)
    reference = QUANTIZE_ROWS.reference
    inputs = reference.make_inputs(problem, device="cpu")
    expected = reference.reference(problem, inputs.x, inputs.w[0])
    reference.vendor(problem, inputs.x, inputs.w[0], inputs.out)()
    assert reference.check(problem, inputs.out, expected) == ""
    inputs.out.view(torch.uint8)[3, 4 * (4 + 2) + 2] += 1  # 3 rows of 208 bytes end on a multiple of 4
    assert "1 scales are wrong; the first, of group 1 of row 2" in reference.check(problem, inputs.out, expected)
    reference.poison(inputs.out)
    assert "6 scales are wrong" in reference.check(problem, inputs.out, expected)


def test_wrong_results_are_caught() -> None:
    for name in OUT_DTYPES:
        problem = QuantizeRowsProblem(m=3, k=80, out_dtype=name)
        reference = QUANTIZE_ROWS.reference
        inputs = reference.make_inputs(problem, device="cpu")
        expected = reference.reference(problem, inputs.x, inputs.w[0])
        reference.vendor(problem, inputs.x, inputs.w[0], inputs.out)()
        right = inputs.out.clone()
        assert reference.check(problem, right, expected) == ""
        assert "wanted 3 rows of 80" in reference.check(problem, right[:3], expected)
        wrong = right.clone()
        wrong[1, 7] = wrong[1, 7].float() * 2 + 1
        assert "1 of 240 values are wrong; the first, at (1, 7)" in reference.check(problem, wrong, expected)
        wrong = right.clone()
        wrong.view(torch.uint8)[3, 6] += 1  # of row 1's scale, whose bytes are behind the rows
        assert "1 scales are wrong; the first, of row 1" in reference.check(problem, wrong, expected)
        reference.poison(inputs.out)
        assert "3 scales are wrong" in reference.check(problem, inputs.out, expected)
