"""Packing, foreign layouts and routines of ``int4_gemm``; its kernels' agreement is in ``test_other_kernels``."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from aks.collect.workloads import workload_problems
from aks.core.device import find_device
from aks.core.errors import InvalidProblemError
from aks.ops.int4_gemm import call, reference
from aks.ops.int4_gemm.packing import (
    Int4Weight,
    by_k,
    dequantize,
    exact_rows,
    from_awq,
    from_gptq,
    pack,
    quantize,
    unpack,
)
from aks.ops.int4_gemm.spec import DENSITIES, GROUPS, INT4_GEMM, Int4GemmConfig, Int4GemmProblem

H200 = find_device("h200")
SHAPES = ((1, 1), (3, 40), (64, 128), (72, 260), (130, 512))


def random_codes(n: int, k: int, group: int, seed: int = 0):
    """q [n, k], scales and zeros [n, groups]."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // group)
    q = torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, groups, generator=generator).add_(0.5).bfloat16()
    return q, scales, torch.randint(0, 16, (n, groups), generator=generator, dtype=torch.uint8)


def nibble(word: int, place: int) -> int:
    return (word & 0xFFFFFFFF) >> (4 * place) & 15


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_unpack_gives_what_was_packed(n: int, k: int, group: int, zeros: bool) -> None:
    q, scales, points = random_codes(n, k, group)
    again = unpack(pack(q, scales, points if zeros else None, group))
    assert torch.equal(again[0], q) and torch.equal(again[1], scales)
    assert torch.equal(again[2], points) if zeros and again[2] is not None else again[2] is None


def test_words_and_meta_lie_where_the_module_says() -> None:
    n, k, group = 72, 260, 32
    q, scales, zeros = random_codes(n, k, group)
    weight = pack(q, scales, zeros, group)
    rows = 128  # 72 rounded up
    for row, column in ((0, 0), (71, 259), (9, 31), (17, 130), (40, 255)):
        kb, rest = divmod(column, 128)
        j, rest = divmod(rest, 32)
        i0, rest = divmod(rest, 16)
        i1, rest = divmod(rest, 8)
        t, h = divmod(rest, 2)
        word = int(weight.words[((kb * rows + row) * 4 + t) * 4 + j])
        assert nibble(word, 4 * h + 2 * i0 + i1) == q[row, column]
        at = ((column // group) * (rows // 16) + row // 16) * 16 + row % 8 * 2
        half = row % 16 // 8
        for place, value in ((at, scales[row, column // group]), (at + 1, 128.0 + zeros[row, column // group])):
            bits = int(weight.meta[place]) >> (16 * half) & 0xFFFF
            assert bits == int(torch.tensor(float(value)).bfloat16().view(torch.int16)) & 0xFFFF


@pytest.mark.parametrize("zeros", [False, True])
def test_dequantised_weights_are_the_exact_ones_rounded_once(zeros: bool) -> None:
    q, scales, points = random_codes(70, 300, 64)
    weight = pack(q, scales, points if zeros else None, 64)
    exact = torch.empty(70, 300, dtype=torch.float64)
    for row in range(70):
        for column in range(300):
            zero = int(points[row, column // 64]) if zeros else 8
            exact[row, column] = (int(q[row, column]) - zero) * float(scales[row, column // 64])
    assert torch.equal(exact_rows(weight, *unpack(weight), slice(None)).double(), exact)
    assert torch.equal(dequantize(weight), exact.bfloat16())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("zeros", [False, True])
def test_quantising_errs_by_half_a_step(group: int, zeros: bool) -> None:
    w = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    w[3] = 0
    w[5] = w[5].abs() + 1  # far from 0 on one side
    weight = quantize(w, group, zeros)
    _, scales, points = unpack(weight)
    assert (points is not None) == zeros == weight.zeros
    steps = scales.double().repeat_interleave(group, 1)[:, :300]
    error = (exact_rows(weight, *unpack(weight), slice(None)).double() - w.double()).abs()
    # Half a step, and at the ends what a scale or a zero is rounded by.
    assert bool((error <= (0.5 + (0.5 if zeros else 0.04)) * steps + 1e-6).all())
    assert not bool((error > 0.3 * steps).all())
    assert torch.equal(dequantize(weight)[3], torch.zeros(300).bfloat16())


def gptq_of(q, scales, zeros, *, v2: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AutoGPTQ's tensors, written value by value."""
    (n, k), groups = q.shape, scales.shape[1]
    qweight, qzeros = torch.zeros(k // 8, n, dtype=torch.int64), torch.zeros(groups, n // 8, dtype=torch.int64)
    for row in range(n):
        for column in range(k):
            qweight[column // 8, row] |= int(q[row, column]) << (4 * (column % 8))
        for group in range(groups):
            stored = int(zeros[row, group]) if v2 else (int(zeros[row, group]) - 1) % 16
            qzeros[group, row // 8] |= stored << (4 * (row % 8))
    return as_int32(qweight), as_int32(qzeros), scales.T.half()


def awq_of(q, scales, zeros) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AutoAWQ's tensors, written value by value."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    (n, k), groups = q.shape, scales.shape[1]
    qweight, qzeros = torch.zeros(k, n // 8, dtype=torch.int64), torch.zeros(groups, n // 8, dtype=torch.int64)
    for word in range(n // 8):
        for place, row in enumerate(order):
            qweight[:, word] |= q[8 * word + row].long() << (4 * place)
            qzeros[:, word] |= zeros[8 * word + row].long() << (4 * place)
    return as_int32(qweight), as_int32(qzeros), scales.T.half()


def as_int32(words: torch.Tensor) -> torch.Tensor:
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def product_error(weight: Int4Weight, q, scales, zeros, group: int, order=None) -> float:
    """How far x @ w.T with the packed weight is from the product in float64."""
    n, k = q.shape
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(7)).bfloat16()
    exact = (q.double() - zeros.double().repeat_interleave(group, 1)[:, :k]) * scales.double().repeat_interleave(
        group, 1
    )[:, :k]
    problem = Int4GemmProblem(3, n, k, group=weight.group, zeros=weight.zeros)
    got = reference.reference(problem, x if order is None else x[:, order], call.Operands(weight))
    return float((got.double() - x.double() @ exact.T).abs().max() / exact.abs().max())


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_gptq(group: int, v2: bool) -> None:
    q, scales, zeros = random_codes(24, 256, group)
    weight, order = from_gptq(*gptq_of(q, scales, zeros, v2=v2), v2=v2)
    assert order is None and (weight.n, weight.k, weight.group, weight.zeros) == (24, 256, group, True)
    for got, wanted in zip(unpack(weight), (q, scales, zeros), strict=True):
        assert got is not None and torch.equal(got, wanted)
    assert product_error(weight, q, scales, zeros, group) < 1e-5


def test_gptq_with_its_columns_out_of_order() -> None:
    q, scales, zeros = random_codes(16, 128, 32)
    shuffled = torch.randperm(128, generator=torch.Generator().manual_seed(2))
    g_idx = (torch.arange(128) // 32)[shuffled].to(torch.int32)  # column i is one that belongs to group g_idx[i]
    weight, order = from_gptq(*gptq_of(q, scales, zeros), g_idx)
    assert order is not None
    x = torch.randn(2, 128).bfloat16()
    exact = (q.double() - zeros.double()[:, g_idx.long()]) * scales.double()[:, g_idx.long()]
    got = reference.reference(Int4GemmProblem(2, 16, 128, group=32, zeros=True), x[:, order], call.Operands(weight))
    torch.testing.assert_close(got.double(), x.double() @ exact.T, rtol=1e-5, atol=1e-4)
    again, none = from_gptq(*gptq_of(q, scales, zeros), torch.arange(128) // 32)
    assert none is None and torch.equal(unpack(again)[0], q)
    with pytest.raises(InvalidProblemError, match="does not give each group 32 of 128"):
        from_gptq(*gptq_of(q, scales, zeros), torch.zeros(128, dtype=torch.int32))


def test_awq() -> None:
    q, scales, zeros = random_codes(24, 256, 64)
    weight = from_awq(*awq_of(q, scales, zeros))
    for got, wanted in zip(unpack(weight), (q, scales, zeros), strict=True):
        assert got is not None and torch.equal(got, wanted)
    assert product_error(weight, q, scales, zeros, 64) < 1e-5


def test_groups_of_more_than_128_have_their_scales_repeated() -> None:
    q, scales, zeros = random_codes(16, 512, 256)
    weight = from_awq(*awq_of(q, scales, zeros))
    assert weight.group == 128 and product_error(weight, q, scales, zeros, 256) < 1e-5
    whole, _ = from_gptq(*gptq_of(q[:, :384], scales[:, :1], zeros[:, :1]))  # one group for all of k
    assert whole.group == 128 and product_error(whole, q[:, :384], scales[:, :1], zeros[:, :1], 384) < 1e-5


def test_zeros_that_are_all_8_are_left_out() -> None:
    q, scales, zeros = random_codes(16, 128, 32)
    weight, _ = from_gptq(*gptq_of(q, scales, torch.full_like(zeros, 8)))
    assert not weight.zeros and unpack(weight)[2] is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda q, s, z: pack(q, s, z, 48), "group=48; the kernels take groups of 32, 64, 128"),
        (lambda q, s, z: pack(q, s[:, 1:], z, 32), r"scales are \(16, 3\); wanted \(16, 4\)"),
        (lambda q, s, z: pack(q, s, z[1:], 32), r"zeros are \(15, 4\); wanted \(16, 4\)"),
        (lambda q, s, z: pack(q + 8, s, z, 32), "q have values from 8 to 23; 4 bits: 0 to 15"),
        (lambda q, s, z: pack(q.float(), s, z, 32), "wanted integers"),
        (lambda q, s, z: quantize(q, 32), "wanted .* of floats"),
        (lambda q, s, z: quantize(torch.full((2, 32), torch.inf), 32), "all of them finite"),
        (lambda q, s, z: from_awq(q, q, s), "qweight is .* wanted a matrix of int32"),
        (lambda q, s, z: from_gptq(*gptq_of(q, s, z)[:2], s[:3].T[:3]), "which they do not divide; say group="),
        (lambda q, s, z: from_gptq(*gptq_of(q, s, z)[:2], s[:3].T), r"scales are \(4, 3\), zeros \(4, 16\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(make: Any, reason: str) -> None:
    with pytest.raises(InvalidProblemError, match=reason):
        make(*random_codes(16, 128, 32))


def test_words_k_by_k() -> None:
    q, scales, _ = random_codes(72, 130, 64)
    words = by_k(pack(q, scales, None, 64))
    assert words.shape == (130, 16) and words.dtype == torch.int32
    for row, column in ((0, 0), (71, 129), (9, 31), (40, 77)):
        assert nibble(int(words[column, row // 8]), row % 8) == q[row, column]
    assert not bool(words[:, 9:].any())


def test_x_is_as_dense_as_the_problem_says() -> None:
    for density in DENSITIES:
        problem = Int4GemmProblem(16, 64, 4096, density=density)
        inputs = reference.make_inputs(problem, device="cpu")
        assert abs(float((inputs.x != 0).float().mean()) - density / 100) < 0.01
        assert 0.9 < float(inputs.x.float().square().mean()) < 1.1
        assert (inputs.w[0].by_k is not None) == (density < 100)
        made = call.call_for(problem, inputs.x, inputs.w[0], inputs.out)
        assert made is not None and made.problem() == problem


def test_zeros_of_x_are_skipped_for_one_row_alone() -> None:
    def kinds(m: int, density: int) -> set[str]:
        return {
            c.to_row()["kind"] for c in INT4_GEMM.space.legal(Int4GemmProblem(m, 4096, 4096, density=density), H200)
        }

    assert "sparse" in kinds(1, 50)
    assert "sparse" not in kinds(1, 100) | kinds(2, 50)


def test_a_call_is_the_problem_and_its_operands() -> None:
    problem = Int4GemmProblem(3, 72, 130, group=32, zeros=True, has_bf16=True, alignment=4, static_weights=True)
    inputs = reference.make_inputs(problem, copies=2, device="cpu")
    made = call.call_for(problem, inputs.x, inputs.w[1], inputs.out)
    assert made is not None and made.problem() == problem
    assert (
        made.bias_ptr == 0 and made.w_ptr == inputs.w[1].weight.words.data_ptr() != inputs.w[0].weight.words.data_ptr()
    )
    bias = torch.zeros(72, dtype=torch.bfloat16)
    assert call.call_of(inputs.x, inputs.w[0]._replace(bias=bias), inputs.out, True).bias_ptr == bias.data_ptr()  # type: ignore[union-attr]
    for x, w, out in (
        (inputs.x.half(), inputs.w[0], inputs.out),
        (inputs.x[:, 1:], inputs.w[0], inputs.out),
        (inputs.x[:2], inputs.w[0], inputs.out),
        (inputs.x, inputs.w[0]._replace(bias=bias[1:]), inputs.out),
        (inputs.x, inputs.w[0], inputs.out[:, 1:]),
    ):
        assert call.call_of(x, w, out, True) is None


def test_inputs_have_the_scale_that_the_check_expects() -> None:
    for zeros in (False, True):
        problem = Int4GemmProblem(64, 256, 1024, group=64, zeros=zeros)
        inputs = reference.make_inputs(problem, device="cpu")
        assert 0.9 < float(reference.reference(problem, inputs.x, inputs.w[0]).std()) < 1.2


def test_a_copy_in_bf16_is_legal_only_where_there_is_one() -> None:
    copied = Int4GemmConfig("dequantized")
    problem = Int4GemmProblem(16, 4096, 4096, has_bf16=True)
    assert not INT4_GEMM.space.broken_rules(copied, problem, H200)
    assert INT4_GEMM.space.broken_rules(copied, replace(problem, has_bf16=False), H200) == [
        "a bf16 copy of the weights is at hand (dequantized)"
    ]


def test_a_workload_has_all_that_the_op_spreads_over() -> None:
    problems: list[Any] = [one.problem for one in workload_problems(INT4_GEMM, num_problems=100)]
    seen = {(problem.group, problem.zeros, problem.has_bf16) for problem in problems}
    assert seen == {(row["group"], row["zeros"], row["has_bf16"]) for row in INT4_GEMM.spread}
    assert any(problem.k % problem.group for problem in problems)  # a short last group


def test_weights_are_unpacked_for_many_rows_alone() -> None:
    unpacked = Int4GemmConfig("unpacked")
    for m, reasons in ((63, ["many rows of x (unpacked)"]), (64, [])):
        assert INT4_GEMM.space.broken_rules(unpacked, Int4GemmProblem(m, 4096, 4096), H200) == reasons


def test_every_config_is_legal_somewhere() -> None:
    found: set[Any] = set()
    for m in (1, 16, 32, 64, 128):
        for k in (1024, 4096, 14336):
            for static in (False, True):
                problem = Int4GemmProblem(m, 4096, k, has_bf16=True, density=25, static_weights=static)
                found |= set(INT4_GEMM.space.legal(problem, H200))
    assert found == set(INT4_GEMM.space.configs)


@pytest.mark.parametrize("capability", [90, 120])
def test_the_kernel_is_told_which_tensor_core_instructions_it_gets(capability: int) -> None:
    """The order of k in its operands rests on it, and with it whether data moves between lanes."""
    from aks.ops.int4_gemm import launch

    kernels: list[Any] = [c for c in INT4_GEMM.space.configs if c.to_row()["kind"] in ("burst", "ring", "double")]
    tall = [config for config in kernels if config.block_m >= 16]
    for config in random.Random(1).sample([c for c in kernels if c.block_m < 16], 2) + random.Random(1).sample(tall, 2):
        variant = launch.make_variant(config, (128, 0, 16, 1, 4 if config.kind == "burst" else 0))
        text = launch.compile_variant(variant, capability).asm["ptx"]
        if capability == 90:
            assert ("wgmma.mma_async" in text) == (config.block_m >= 16 and config.num_warps % 4 == 0), config.key()
        assert "wgmma.mma_async" in text or "mma.sync" in text


def gpu_launch(problem: Int4GemmProblem, config: Int4GemmConfig, x, w, out) -> None:
    from aks.ops.int4_gemm import launch

    device = torch.device("cuda")
    scratch = launch.Scratch(device)
    launch.bind(config, problem, x, w, out, device=H200, scratch=scratch)(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


def one_of_each_kind(problem: Int4GemmProblem) -> list[Int4GemmConfig]:
    legal: list[Any] = INT4_GEMM.space.legal(problem, H200)
    return list({(config.kind, config.scale_sums): config for config in legal}.values())


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 16, 64])
def test_a_bias_is_added_on_gpu(m: int) -> None:
    problem = Int4GemmProblem(m, 1000, 4096, zeros=True, has_bf16=True, static_weights=True)
    inputs = reference.make_inputs(problem)
    w = inputs.w[0]._replace(bias=torch.randn(1000, device="cuda").bfloat16())
    expected = reference.reference(problem, inputs.x, w)
    for config in one_of_each_kind(problem):
        reference.poison(inputs.out)
        gpu_launch(problem, config, inputs.x, w, inputs.out)
        assert reference.check(problem, inputs.out, expected) == "", config.key()


@pytest.mark.gpu
def test_rows_that_are_not_finite_stay_among_themselves_on_gpu() -> None:
    # Without zeros: PyTorch rounds them, and so would know no weight that is 0, and NaN where it meets an infinity.
    problem = Int4GemmProblem(7, 256, 4096 - 32, group=32, has_bf16=True, static_weights=True)
    inputs = reference.make_inputs(problem)
    inputs.x[2, 5], inputs.x[4, 4000] = torch.nan, torch.inf
    expected = reference.reference(problem, inputs.x, inputs.w[0])
    rest = [0, 1, 3, 5, 6]
    assert bool(expected[rest].isfinite().all()) and not bool(expected[[2, 4]].isfinite().any())
    for config in one_of_each_kind(problem):
        gpu_launch(problem, config, inputs.x, inputs.w[0], inputs.out)
        assert torch.equal(inputs.out.isnan(), expected.isnan()), config.key()
        assert torch.equal(inputs.out.isinf(), expected.isinf()), config.key()
        assert reference.check(replace(problem, m=5), inputs.out[rest], expected[rest]) == "", config.key()


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [0, 1, 7, 4096])
def test_any_number_of_zeros_may_be_skipped_on_gpu(kept: int) -> None:
    problem = Int4GemmProblem(1, 1000, 4096, group=32, zeros=True, density=5)
    inputs = reference.make_inputs(problem)
    inputs.x.zero_()
    inputs.x[0, torch.randperm(4096, device="cuda")[:kept]] = 0.5
    expected = reference.reference(problem, inputs.x, inputs.w[0])
    legal: list[Any] = INT4_GEMM.space.legal(problem, H200)
    sparse = [config for config in legal if config.kind == "sparse"]
    assert sparse
    for config in sparse:
        for value in (0.5, torch.nan, torch.inf):
            if kept:
                inputs.x[0, int(inputs.x[0].nonzero()[0])] = value
                expected = reference.reference(problem, inputs.x, inputs.w[0])
            reference.poison(inputs.out)
            gpu_launch(problem, config, inputs.x, inputs.w[0], inputs.out)
            assert torch.equal(inputs.out.isnan(), expected.isnan()), config.key()
            if kept == 0 or value == 0.5:
                assert reference.check(problem, inputs.out, expected) == "", config.key()


@pytest.mark.gpu
def test_captured_tinygemm_leaves_out_alone_on_gpu() -> None:
    problem = Int4GemmProblem(4, 512, 1024)
    inputs = reference.make_inputs(problem)
    run = reference.vendor(problem, inputs.x, inputs.w[0], inputs.out)
    run()
    expected = reference.reference(problem, inputs.x, inputs.w[0])
    assert reference.check(problem, inputs.out, expected) == ""
    reference.poison(inputs.out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    assert bool(inputs.out.isnan().all())
