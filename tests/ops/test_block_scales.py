"""``fp8_gemm`` with scales of blocks: how they are recognised and passed on, the vendor's call, compiled kernels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from aks.core import formula
from aks.core.device import find_device
from aks.core.errors import InvalidProblemError
from aks.ops import OPS
from aks.ops.fp8_gemm import blocks, reference
from aks.ops.fp8_gemm.call import call_for, call_of
from aks.ops.fp8_gemm.spec import Fp8GemmProblem
from aks.ops.scaled.call import Operands

OP = OPS["fp8_gemm"]
DEVICE = find_device("h200")
RAGGED = ((1, 130, 900), (4, 144, 272), (6, 48, 96), (17, 300, 1030), (64, 128, 512), (70, 576, 640))


def problem_of(m: int, n: int, k: int, **more: Any) -> Fp8GemmProblem:
    divisor = math.gcd(16, k, 2 * n)
    return Fp8GemmProblem(m=m, n=n, k=k, scaling="block", **{"alignment": divisor, **more})


def inputs_of(problem: Fp8GemmProblem, device: str = "cpu") -> tuple[torch.Tensor, Operands, torch.Tensor]:
    inputs = reference.make_inputs(problem, device=device, seed=5)
    return inputs.x, inputs.w[0], inputs.out


def test_fast_accumulation_is_refused() -> None:
    with pytest.raises(InvalidProblemError, match="fast_accum must be False"):
        Fp8GemmProblem(m=1, n=128, k=128, scaling="block", fast_accum=True)


@pytest.mark.parametrize("shape", RAGGED)
def test_reference_is_the_sum_over_blocks(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    problem = problem_of(*shape)
    x, w, _ = inputs_of(problem)
    assert w.x_scale.shape == (m, -(-k // 128)) and w.w_scale.shape == (-(-n // 128), -(-k // 128))
    assert w.bias is not None
    expected = w.bias.double().repeat(m, 1)
    for block in range(w.x_scale.shape[1]):
        part = slice(128 * block, min(k, 128 * block + 128))
        product = x[:, part].double() @ w.w[:, part].double().T
        w_scale = w.w_scale[:, block].double()[torch.arange(n) // 128]
        expected += product * w.x_scale[:, block].double()[:, None] * w_scale
    torch.testing.assert_close(reference.reference(problem, x, w).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", RAGGED)
def test_a_call_has_the_strides_of_scales_of_any_layout(shape: tuple[int, int, int]) -> None:
    problem = problem_of(*shape)
    x, w, out = inputs_of(problem)
    other = w._replace(x_scale=w.x_scale.contiguous(), w_scale=w.w_scale.T.contiguous().T)
    for operands in (w, other):
        call = call_for(problem, x, operands, out)
        assert call is not None and call.problem() == problem
        assert (call.x_scale_step, call.x_scale_block) == operands.x_scale.stride()
        assert (call.w_scale_step, call.w_scale_block) == operands.w_scale.stride()


def test_whoever_may_accumulate_fast_poses_blocks_too() -> None:
    problem = problem_of(4, 144, 272)
    x, w, out = inputs_of(problem)
    call = call_of(x, w, out, fast_accum=True, static_weights=False)
    assert call is not None and call.problem() == problem


def test_strides_of_other_scales_are_steps_or_nothing() -> None:
    for scaling, strides in (("row", (1, 0, 1, 0)), ("tensor", (0, 0, 0, 0))):
        problem = Fp8GemmProblem(m=4, n=144, k=272, scaling=scaling)
        call = call_for(problem, *inputs_of(problem))
        assert call is not None and call.problem() == problem
        assert (call.x_scale_step, call.x_scale_block, call.w_scale_step, call.w_scale_block) == strides


def test_scales_that_do_not_cover_the_matrices_are_not_taken() -> None:
    x, w, out = inputs_of(problem_of(4, 144, 272))
    for wrong in (
        w._replace(x_scale=w.x_scale[:, :2]),
        w._replace(w_scale=w.w_scale[:1]),
        w._replace(w_scale=w.w_scale.double()),
        w._replace(x_scale=w.x_scale.T),
        w._replace(w_scale=torch.ones(144)),
    ):
        assert call_of(x, wrong, out, fast_accum=False, static_weights=False) is None


def test_legal_configs_are_few_and_of_every_kind() -> None:
    kinds = set()
    for m in (1, 2, 4, 8, 16, 32, 64, 128, 512, 4096):
        legal: list[Any] = OP.space.legal(problem_of(m, 4096, 4096, static_weights=True), DEVICE)
        assert len(legal) <= 90
        kinds |= {config.kind for config in legal}
    assert kinds == set(OP.config_type.CHOICES["kind"])


def test_configs_for_blocks_alone_are_not_measured_for_others() -> None:
    for m in (1, 16, 64, 512):
        problems = (
            Fp8GemmProblem(m=m, n=4096, k=4096, scaling=name, static_weights=True) for name in ("row", "tensor")
        )
        for problem in problems:
            assert all(c.num_stages <= 6 for c in OP.space.legal(problem, DEVICE))  # type: ignore[attr-defined]


def emulate(x, w, x_scale, w_scale, bias, out) -> None:
    """The product that PyTorch has on Hopper, which refuses what that refuses (``ScaledBlas.cpp``) and cuBLASLt."""
    (m, k), n = x.shape, w.shape[0]
    depth = -(-k // 128)
    assert m % 4 == 0 and n % 16 == 0 and k % 16 == 0
    assert x_scale.shape == (m, depth) and x_scale.stride() == (1, m)
    rounded = -(-depth // 4) * 4
    assert w_scale.shape == (rounded, -(-n // 128)) and w_scale.stride() == (1, rounded)
    assert all(tensor.data_ptr() % 16 == 0 for tensor in (x, w, x_scale, w_scale, out))
    assert all(tensor.stride(0) * tensor.element_size() % 16 == 0 for tensor in (x, w, out))
    operands = Operands(w, x_scale, w_scale.T[:, :depth], bias)
    out.copy_(reference.reference(problem_of(m, n, k, alignment=16), x, operands))


@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("multiple", [16, 128])
@pytest.mark.parametrize("bias", ["added by cuBLASLt", "added after it", "none"])
def test_the_vendors_operands_are_padded(shape, multiple, bias, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "_multiply", emulate)
    problem = problem_of(*shape)
    x, w, out = inputs_of(problem)
    w = w._replace(bias=None) if bias == "none" else w
    for operands in (w, w._replace(x_scale=w.x_scale.contiguous(), w_scale=w.w_scale.contiguous())):
        reference.poison(out)
        blocks._scaled_mm(problem, x, operands, out, multiple, bias == "added by cuBLASLt")()
        assert reference.check(problem, out, reference.reference(problem, x, w)) == ""


def test_operands_as_the_vendor_wants_them_are_not_copied(monkeypatch) -> None:
    seen: list[torch.Tensor | None] = []
    monkeypatch.setattr(blocks, "_multiply", lambda *operands: seen.extend(operands))
    problem = problem_of(64, 256, 640)
    x, w, out = inputs_of(problem)
    blocks._scaled_mm(problem, x, w, out, 128, True)()
    wanted = (x, w.w, w.x_scale, w.w_scale, w.bias, out)
    assert [one.data_ptr() for one in seen if one is not None] == [one.data_ptr() for one in wanted if one is not None]


@pytest.mark.parametrize(
    ("refused", "way"),
    [(lambda w, bias: False, (16, True)), (lambda w, bias: bias is not None, (16, False)),
     (lambda w, bias: w.shape[0] % 128, (128, True)), (lambda w, bias: True, None)],
)  # fmt: skip
def test_what_cublaslt_refuses_is_found_out_once(refused, way, monkeypatch) -> None:
    launched: list[int] = []

    def multiply(x, w, x_scale, w_scale, bias, out) -> None:
        launched.append(w.shape[0])
        if refused(w, bias):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling ...")
        emulate(x, w, x_scale, w_scale, bias, out)

    monkeypatch.setattr(blocks, "_found", {})
    monkeypatch.setattr(blocks, "_has_scaled_mm", lambda device: True)
    monkeypatch.setattr(blocks, "_multiply", multiply)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    problem = problem_of(6, 144, 272)
    x, w, out = inputs_of(problem)
    expected = reference.reference(problem, x, w)
    blocks.vendor(problem, x, w, out)
    assert list(blocks._found.values()) == [way]
    launched.clear()
    reference.poison(out)
    blocks.vendor(problem, x, w, out)()
    assert len(launched) == (way is not None)
    assert reference.check(problem, out, expected) == ""


@pytest.mark.parametrize("bias", [True, False])
def test_without_such_a_product_the_vendor_multiplies_in_bf16(bias: bool) -> None:
    problem = problem_of(17, 300, 1030)
    x, w, out = inputs_of(problem)
    w = w if bias else w._replace(bias=None)
    blocks._dequantized_mm(x, w, out)
    assert reference.check(problem, out, reference.reference(problem, x, w)) == ""


def compiled_cases() -> list[tuple[Fp8GemmProblem, Any]]:
    """The config of each kind and orientation that takes the most shared memory."""
    cases: dict[tuple, tuple[Fp8GemmProblem, Any]] = {}
    for m in (1, 2, 32, 64, 4096):
        problem = problem_of(m, 4096, 4096, static_weights=True)
        for config in sorted(OP.space.legal(problem, DEVICE), key=claimed_bytes):
            if OP.launch_spec.config_has_kernel(config):
                cases[config.kind, config.swap_ab, config.pdl == 2] = problem, config  # type: ignore[attr-defined]
    return list(cases.values())


def claimed_bytes(config: Any) -> int:
    """Of shared memory, what the rule says."""
    [rule] = [rule for rule in OP.space.rules if rule.name == "stages of x and w fit shared memory"]
    needed, _, limit = rule.formula.partition(" <= ")
    assert limit == "smem_bytes_per_block"
    return formula.compile_python(needed)(config.variables())


@pytest.mark.parametrize(("problem", "config"), compiled_cases(), ids=lambda value: value.key().replace(" ", ","))
def test_kernels_compile_for_hopper_within_the_shared_memory_that_the_rule_says(problem, config) -> None:
    compiled = OP.launch.compile_variant(OP.launch.variant_of(config, problem), 90)
    shared = compiled.metadata.shared
    if config.kind in ("tiled", "tma", "persistent"):
        assert shared <= claimed_bytes(config)
    else:  # reductions of matrix-vector kernels, which no config makes large
        assert shared <= DEVICE.smem_bytes_per_block // 4
    if config.kind in ("tma", "persistent"):
        assert "cp.async.bulk.tensor" in compiled.asm["ptx"]
    if config.kind in ("tma", "persistent") and config.block_m >= 16:
        assert "wgmma.mma_async" in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*RAGGED, (1, 4096, 7168), (3, 1536, 7168), (128, 7168, 2048), (4096, 576, 7168)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_vendor_takes_every_shape_on_gpu(shape, bias) -> None:
    problem = problem_of(*shape)
    x, w, out = inputs_of(problem, "cuda")
    w = w if bias else w._replace(bias=None)
    call = reference.vendor(problem, x, w, out)
    reference.poison(out)
    call()
    assert reference.check(problem, out, reference.reference(problem, x, w)) == ""


@pytest.mark.gpu
def test_on_hopper_the_vendors_call_is_cublaslts(monkeypatch) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("only Hopper has it")
    monkeypatch.setattr(blocks, "_dequantized_mm", lambda *_: pytest.fail("cuBLASLt refused the product"))
    for shape in ((1, 4096, 4096), (64, 4096, 7168), (300, 576, 7168), (128, 2880, 2880)):
        problem = problem_of(*shape)
        reference.vendor(problem, *inputs_of(problem, "cuda"))()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 300, 2000), (2, 4096, 7168), (16, 1536, 7168), (200, 576, 1536)])
def test_scales_of_any_layout_give_the_same_bits_on_gpu(shape) -> None:
    problem = dataclasses.replace(problem_of(*shape), static_weights=True)
    x, w, out = inputs_of(problem, "cuda")
    other = w._replace(x_scale=w.x_scale.contiguous(), w_scale=w.w_scale.T.contiguous().T)
    scratch = OP.launch.Scratch(torch.device("cuda"))
    by_kind = {config.kind: config for config in OP.space.legal(problem, DEVICE)}  # type: ignore[attr-defined]
    for config in by_kind.values():
        results = []
        for operands in (w, other):
            reference.poison(out)
            launch = OP.launch.bind(config, problem, x, operands, out, device=DEVICE, scratch=scratch)
            launch(torch.cuda.current_stream().cuda_stream)
            results.append(out.clone())
        assert reference.check(problem, results[0], reference.reference(problem, x, w)) == ""
        assert torch.equal(*results), config.key()
