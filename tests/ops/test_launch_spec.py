"""The formulas of a launch against plain Python over random problems."""

from __future__ import annotations

import random
from operator import attrgetter

import pytest

from aks.core import formula
from aks.core.device import find_device
from aks.ops import OPS
from aks.ops.op import Op
from tests.runtime.test_predictor import problem_rows

DEVICE = find_device("h200")


def divisor(*values: int) -> int:
    return min(16, *(value & -value for value in values))


def expected_gemm(c, p, device) -> tuple[tuple[int, ...], int]:
    vector = min(p["alignment"], divisor(2 * p["n"], 2 * p["k"]))
    masked = (c.kind == "gemv" and c.num_stages > 0) or c.kind == "tiled"
    by_descriptor = c.kind in ("tma", "persistent")
    widths = (0, int(vector == 16)) if by_descriptor else (vector, 0)
    even = int(masked and p["k"] % (c.block_k * c.split_k) == 0)
    rows = 0 if c.block_m else formula.next_pow2(p["m"])
    tiles = -(-p["m"] // (c.block_m or p["m"])) * -(-p["n"] // c.block_n)
    programs = min(tiles, device.sm_count * c.ctas_per_sm) if c.ctas_per_sm else tiles * c.split_k
    return (p["dtype"], p["w_layout"], *widths, even, rows), programs


def expected_mm(c, p, device) -> tuple[tuple[int, ...], int]:
    size, even = (2, 2, 4)[p["dtype"]], p["k"] % c.block_k == 0
    m_bytes = divisor(size * p["m"]) if p["x_layout"] else size
    k_bytes = size if even else divisor(size * p["k"])
    values = p["dtype"], p["x_layout"], p["w_layout"], p["alignment"], m_bytes, divisor(size * p["n"]), k_bytes, even
    return values, -(-p["m"] // c.block_m) * -(-p["n"] // c.block_n)


def expected_fused_linear(c, p, device) -> tuple[tuple[int, ...], int]:
    gated = int(p["epilogue"] >= 5)
    even = int(c.kind == "gemv" and c.num_stages > 0 and p["k"] % c.block_k == 0)
    (_, _, _, _, _, rows), programs = expected_gemm(c, p | {"w_layout": 0}, device)
    return (p["dtype"], gated, even, rows), programs


def expected_rms_norm(c, p, device) -> tuple[tuple[int, ...], int]:
    return (p["dtype"], p["residual"], 1 << (p["k"] - 1).bit_length()), p["m"]


def expected_scaled(c, p, device) -> tuple[tuple[int, ...], int]:
    vector = min(p["alignment"], divisor(2 * p["n"], p["k"]))
    widths = (0, int(vector == 16)) if c.kind in ("tma", "persistent") else (vector, 0)
    (*_, even, rows), programs = expected_gemm(c, p | {"dtype": 0, "w_layout": 0}, device)
    block_scaled = int(p.get("scaling", 0) == 2)
    accurate = int(c.kind not in ("gemv", "stream") and not block_scaled and not p.get("fast_accum", 1))
    return (*widths, even, rows, accurate, block_scaled), programs


def expected_quantize_rows(c, p, device) -> tuple[tuple[int, ...], int]:
    block_k = 1 << (p["k"] - 1).bit_length() if c.kind == "row" else 0
    steps = -(-p["k"] // c.block_k) if c.kind == "tile" else 1
    return (p["dtype"], p["out_dtype"], block_k), -(-p["m"] // c.block_m) * steps


def expected_int4(c, p, device) -> tuple[tuple[int, ...], int]:
    blocks = -(-p["k"] // 128)
    splits = -(-blocks // c.blocks_k) if c.kind in ("burst", "sparse") else c.split_k
    vector = 16 if min(p["alignment"], divisor(2 * p["n"], 2 * p["k"])) == 16 else 2
    even = int(c.kind != "sparse" and p["k"] % 128 == 0 and blocks % (splits * c.blocks_k) == 0)
    programs = -(-p["m"] // c.block_m) * -(-p["n"] // c.block_n) * splits
    return (p["group"], p["zeros"], vector, even, formula.next_pow2(splits) if c.kind == "burst" else 0), programs


EXPECTED = {
    "quantize_rows": expected_quantize_rows,
    "fp8_gemm": expected_scaled,
    "int4_gemm": expected_int4,
    "int8_gemm": expected_scaled,
    "gemm": expected_gemm,
    "fused_linear": expected_fused_linear,
    "rms_norm": expected_rms_norm,
    "mm": expected_mm,
}


def legal_pairs(op: Op, seeds: int):
    rng = random.Random(5)
    kernels = [config for config in op.space.configs if op.launch_spec.config_has_kernel(config)]
    for seed in range(seeds):
        rows = problem_rows(op, seed)
        # Some kernels want rows of whole vectors.
        even = {axis: 64 * rng.randrange(1, 80) for axis in op.problem_type.AXES[1:]} | {"alignment": 16}
        for row in (*rows, *(row | even for row in rows)):
            problem = op.problem_type.from_row(row)
            for config in op.space.legal(problem, DEVICE, rng.sample(kernels, min(30, len(kernels)))):
                yield config, problem.variables()


@pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))
def test_variants_and_grids(op: Op):
    spec, seen = op.launch_spec, 0
    for config, problem in legal_pairs(op, 15):
        values, programs = EXPECTED[op.name](config, problem, DEVICE)
        assert spec.variant_values(config, problem) == values
        assert all(value in part.values for part, value in zip(spec.variant, values, strict=True))
        assert spec.count_programs(config, problem, DEVICE.sm_count) == programs
        seen += 1
    assert seen > 500


@pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))
def test_tidied_formulas_mean_the_same(op: Op):
    texts = [part.formula for part in op.launch_spec.variant] + [op.launch_spec.programs]
    for config, problem in legal_pairs(op, 2):
        for text in texts:
            folded = formula.fold(text, {**config.variables(), "sm_count": 132})
            expected = formula.compile_python(folded)(problem)
            assert formula.compile_python(formula.tidy(folded))(problem) == expected


def test_the_vendors_routines_have_no_kernel():
    spec = OPS["gemm"].launch_spec
    kinds = {config.to_row()["kind"] for config in OPS["gemm"].space.configs if not spec.config_has_kernel(config)}
    assert kinds == {"torch_mm", "cublaslt"}
