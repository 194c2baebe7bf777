"""The gate that every measured kernel passes, and how cuBLASLt is called; no GPU needed."""

from __future__ import annotations

import ctypes
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aks.core.errors import InvalidProblemError
from aks.ops.gemm import cublaslt, reference
from aks.ops.gemm.spec import GemmProblem


def _problem(m: int, n: int, k: int, **attributes: Any) -> GemmProblem:
    return GemmProblem(m=m, n=n, k=k, **attributes)


def _run(problem: GemmProblem) -> tuple[reference.Inputs, torch.Tensor]:
    inputs = reference.make_inputs(problem, device="cpu")
    expected = reference.reference(problem, inputs.x, inputs.w[0])
    reference.vendor(problem, inputs.x, inputs.w[0], inputs.out)()
    return inputs, expected


def _alignment_of(*tensors: torch.Tensor) -> int:
    """Largest power of two, up to 16, that divides every pointer and every row stride in bytes."""
    return math.gcd(16, *(t.data_ptr() for t in tensors), *(t.stride(0) * t.element_size() for t in tensors))


@settings(max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.sampled_from(["nk", "kn"]),
    st.sampled_from([2, 4, 8, 16]), st.integers(1, 3),
)  # fmt: skip
def test_alignment_is_exact_for_every_copy(m, n, k, w_layout, alignment, copies):
    problem = _problem(m, n, k, w_layout=w_layout, alignment=alignment)
    inputs = reference.make_inputs(problem, copies=copies, device="cpu")
    assert [_alignment_of(inputs.x, w, inputs.out) for w in inputs.w] == [alignment] * copies
    assert len({w.data_ptr() for w in inputs.w}) == copies
    assert all(w.shape == ((n, k) if w_layout == "nk" else (k, n)) for w in inputs.w)
    assert all(w.isfinite().all() for w in inputs.w)
    assert inputs.x.isfinite().all()
    assert inputs.out.isnan().all()
    assert len(inputs.w) == 1 or n * k < 4 or not torch.equal(inputs.w[0], inputs.w[1])


def test_rows_stay_contiguous_where_their_length_gives_the_alignment():
    inputs = reference.make_inputs(_problem(3, 64, 2882, alignment=4), device="cpu")
    assert (inputs.x.stride(0), inputs.w[0].stride(0), inputs.out.stride(0)) == (2882, 2882, 64)
    assert inputs.out.data_ptr() % 16 == 0


def test_padding_between_rows_is_nan():
    inputs = reference.make_inputs(_problem(3, 5, 33, alignment=16), device="cpu")
    assert inputs.x.stride(0) == 40
    assert inputs.x.as_strided((3, 7), (40, 1), inputs.x.storage_offset() + 33).isnan().all()


def test_long_inputs_repeat_no_row(monkeypatch):
    monkeypatch.setattr(reference, "_RANDOM_BLOCK", 1021)
    inputs = reference.make_inputs(_problem(1, 64, 64), copies=3, device="cpu")
    rows = torch.cat(inputs.w)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert float(rows.float().std()) == pytest.approx(64**-0.5, rel=0.1)


def test_inputs_follow_the_seed():
    first, second, other = (reference.make_inputs(_problem(4, 8, 8), device="cpu", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.w[0], second.w[0])
    assert not torch.equal(first.w[0], other.w[0])


def test_no_copies_are_refused():
    with pytest.raises(InvalidProblemError, match="copies=0"):
        reference.make_inputs(_problem(1, 8, 8), copies=0, device="cpu")


@pytest.mark.parametrize("w_layout", ["nk", "kn"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_reference_in_pieces_is_the_product(monkeypatch, dtype, w_layout):
    problem = _problem(13, 29, 37, dtype=dtype, w_layout=w_layout, alignment=2)
    inputs = reference.make_inputs(problem, device="cpu")
    w = inputs.w[0] if w_layout == "nk" else inputs.w[0].T
    exact = torch.einsum("mk,nk->mn", inputs.x.double(), w.double()).float()
    assert torch.equal(reference.reference(problem, inputs.x, inputs.w[0]), exact)
    monkeypatch.setattr(reference, "_CHUNK", 100)
    torch.testing.assert_close(reference.reference(problem, inputs.x, inputs.w[0]), exact, rtol=1e-6, atol=1e-6)


def test_reference_restores_the_precision_flag():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        _run(_problem(2, 8, 8))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 300), (3, 17, 2881), (1, 257, 64), (65, 130, 512)])
@pytest.mark.parametrize(("w_layout", "alignment"), [("nk", 16), ("kn", 2)])
def test_right_results_pass(monkeypatch, dtype, shape, w_layout, alignment):
    problem = _problem(*shape, dtype=dtype, w_layout=w_layout, alignment=alignment)
    inputs, expected = _run(problem)
    assert reference.check(problem, inputs.out, expected) == ""
    monkeypatch.setattr(reference, "_CHUNK", 100)
    assert reference.check(problem, inputs.out, expected) == ""


@pytest.mark.parametrize("splits", [2, 8])
def test_partial_sums_rounded_to_the_output_type_pass(splits):
    problem = _problem(32, 256, 1024)
    inputs, expected = _run(problem)
    parts = zip(inputs.x.chunk(splits, 1), inputs.w[0].chunk(splits, 1), strict=True)
    total = torch.zeros_like(inputs.out)
    for x, w in parts:
        total += (x.float() @ w.float().T).bfloat16()
    assert reference.check(problem, total, expected) == ""


@pytest.mark.parametrize("chunk", [2**26, 100])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "1 of 390 elements are NaN"),
        (math.inf, "1 infinite"),
        (-1e38, "1 of 390 elements are wrong"),
        (9.0, "1 of 390 elements are wrong"),
    ],
)
def test_one_bad_element_is_caught_and_placed(monkeypatch, chunk, value, says):
    monkeypatch.setattr(reference, "_CHUNK", chunk)
    problem = _problem(3, 130, 64)
    inputs, expected = _run(problem)
    inputs.out[2, 129] = value
    message = reference.check(problem, inputs.out, expected)
    assert says in message
    assert "(2, 129)" in message


def test_unwritten_elements_are_caught():
    problem = _problem(3, 130, 64)
    inputs, expected = _run(problem)
    right = inputs.out.clone()
    reference.poison(inputs.out)
    inputs.out[:, :128] = right[:, :128]
    assert "6 of 390 elements are NaN" in reference.check(problem, inputs.out, expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_forgotten_last_product_is_caught(dtype):
    problem = _problem(64, 256, 2881, dtype=dtype, alignment=2)
    inputs, expected = _run(problem)
    inputs.out.copy_(inputs.x[:, :-1].float() @ inputs.w[0][:, :-1].float().T)
    assert reference.check(problem, inputs.out, expected)


def test_a_small_error_everywhere_is_caught():
    problem = _problem(64, 256, 512)
    inputs, expected = _run(problem)
    inputs.out.copy_(expected * 1.006)
    assert "relative error of the whole" in reference.check(problem, inputs.out, expected)


def test_an_unusable_reference_and_a_wrong_shape_are_named():
    problem = _problem(3, 16, 64)
    inputs, expected = _run(problem)
    assert "wanted (3, 16)" in reference.check(problem, inputs.out[:2], expected)
    expected[1, 1] = math.inf
    assert "the reference has 1 elements" in reference.check(problem, inputs.out, expected)


class FakeLibrary:
    """Real C entry points that note what arrives, made from the declared signatures."""

    def __init__(self, found: int = 3, status: int = 0) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.found, self.status, self.created = found, status, 0
        for name, argtypes in cublaslt.SIGNATURES.items():
            prototype = ctypes.CFUNCTYPE(ctypes.c_int, *argtypes)
            setattr(self, name, prototype(lambda *arguments, n=name: self._called(n, arguments)))

    def _called(self, name: str, arguments: tuple[Any, ...]) -> int:
        if name.endswith("SetAttribute"):
            value = int.from_bytes(ctypes.string_at(arguments[2], arguments[3]), "little")
            arguments = (*arguments[:2], value, arguments[3])
        elif name.endswith("Create"):
            self.created += 1
            arguments[0][0] = self.created
            arguments = (self.created, *arguments[1:])
        elif name == "cublasLtMatmulAlgoGetHeuristic":
            for index in range(min(self.found, arguments[7])):
                arguments[8][index].algo.data[0] = 100 + index
                arguments[8][index].workspaceSize = 4096 * index
            arguments[9][0] = min(self.found, arguments[7])
        elif name == "cublasLtMatmul":
            floats = [ctypes.cast(arguments[i], ctypes.POINTER(ctypes.c_float))[0] for i in (2, 7)]
            first = ctypes.cast(arguments[12], ctypes.POINTER(ctypes.c_uint64))[0]
            arguments = (
                *arguments[:2],
                floats[0],
                *arguments[3:7],
                floats[1],
                *arguments[8:12],
                first,
                *arguments[13:],
            )
            self.calls.append((name, arguments))
            return self.status
        elif name == "cublasLtMatmulAlgoConfigGetAttribute":
            algo, attribute, value, size, _ = arguments
            if attribute == 8:
                return 7
            ctypes.memmove(value, (attribute + 10).to_bytes(size, "little"), size)
            arguments = (algo.contents.data[0], attribute, size)
        self.calls.append((name, arguments))
        return 0

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == f"cublasLt{name}"]


@pytest.fixture
def no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "init", lambda: None)


PRODUCT: dict[str, Any] = {"m": 5, "n": 32, "k": 64, "dtype": "bf16", "ldx": 72, "ldw": 80, "ldo": 40}


def _product(changes: dict[str, Any]) -> dict[str, Any]:
    return PRODUCT | changes


def test_structures_have_the_sizes_of_the_header():
    assert ctypes.sizeof(cublaslt.Algo) == 64
    assert ctypes.sizeof(cublaslt.HeuristicResult) == 96
    offsets = {
        name: getattr(cublaslt.HeuristicResult, name).offset for name in ("workspaceSize", "state", "wavesCount")
    }
    assert offsets == {"workspaceSize": 64, "state": 72, "wavesCount": 76}


@pytest.mark.parametrize(
    ("dtype", "w_layout", "op_w", "layouts"),
    [
        ("bf16", "nk", 1, [(14, 64, 32, 80), (14, 64, 5, 72), (14, 32, 5, 40)]),
        ("fp16", "kn", 0, [(2, 32, 64, 80), (2, 64, 5, 72), (2, 32, 5, 40)]),
    ],
)
def test_a_product_is_described_column_major(no_device, dtype, w_layout, op_w, layouts):
    library = FakeLibrary()
    lt = cublaslt.CublasLt(0, library)
    lt.heuristics(**_product({"dtype": dtype, "w_layout": w_layout}), align_x=2, align_w=4, align_o=8)
    assert [call[1:] for call in library.called("MatrixLayoutCreate")] == layouts
    assert [call[1:] for call in library.called("MatmulDescCreate")] == [(68, 0)]
    assert [call[1:] for call in library.called("MatmulDescSetAttribute")] == [(3, op_w, 4), (4, 0, 4)]
    assert [call[1:] for call in library.called("MatmulPreferenceSetAttribute")] == [
        (1, 32 * 2**20, 8), (5, 4, 4), (6, 2, 4), (7, 8, 4), (8, 8, 4),
    ]  # fmt: skip


def test_launch_passes_its_own_algorithm_and_swapped_operands(no_device):
    library = FakeLibrary()
    lt = cublaslt.CublasLt(0, library)
    plan = lt.plan(2, **PRODUCT, w_layout="nk")
    (handle,) = library.called("Create")[0]
    operation = library.called("MatmulDescCreate")[0][0]
    w, x, out = (call[0] for call in library.called("MatrixLayoutCreate"))
    plan.launch(0x1000, 0x2000, 2**40, 0x4000, 8192, 0x77)
    assert library.called("Matmul") == [
        (handle, operation, 1.0, 0x2000, w, 0x1000, x, 0.0, 2**40, out, 2**40, out, 102, 0x4000, 8192, 0x77)
    ]


def test_plans_are_cached_and_descriptors_outlive_no_user(no_device):
    library = FakeLibrary()
    lt = cublaslt.CublasLt(0, library)
    assert lt.plan(0, **PRODUCT, w_layout="nk") is lt.plan(0, **PRODUCT, w_layout="nk")
    assert len(library.called("MatmulAlgoGetHeuristic")) == 1
    assert library.called("MatmulDescDestroy") == []
    assert len(library.called("MatmulPreferenceDestroy")) == 1
    lt._cached.cache_clear()
    assert len(library.called("MatmulDescDestroy")) == 1
    assert len(library.called("MatrixLayoutDestroy")) == 3


def test_an_index_beyond_what_is_returned_is_unsupported(no_device):
    lt = cublaslt.CublasLt(0, FakeLibrary(found=2))
    assert len(lt.heuristics(**PRODUCT, w_layout="nk", count=8)) == 2
    for index in (2, -1):
        with pytest.raises(cublaslt.UnsupportedAlgoError, match="has 2 algorithms"):
            lt.plan(index, **PRODUCT, w_layout="nk")


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [(15, cublaslt.UnsupportedAlgoError, "cannot run"), (13, cublaslt.CublasLtError, "status 13")],
)
def test_a_failed_launch_says_why(no_device, status, error, says):
    plan = cublaslt.CublasLt(0, FakeLibrary(status=status)).plan(1, **PRODUCT, w_layout="nk")
    with pytest.raises(error, match=says):
        plan.launch(16, 16, 16, 16, 8192, 0)
    with pytest.raises(cublaslt.CublasLtError, match="needs 4096"):
        plan.launch(16, 16, 16, 16, 0, 0)


def test_describe_names_each_part_the_library_tells(no_device):
    plan = cublaslt.CublasLt(0, FakeLibrary()).plan(0, **PRODUCT, w_layout="nk")
    assert plan.describe() == {
        "algo_id": 10, "tile_id": 11, "split_k": 12, "reduction_scheme": 13, "swizzle": 14,
        "custom_option": 15, "stages_id": 16, "inner_shape_id": 17,
    }  # fmt: skip


def test_bad_descriptions_are_refused(no_device):
    lt = cublaslt.CublasLt(0, FakeLibrary())
    with pytest.raises(InvalidProblemError, match="row stride 63"):
        lt.heuristics(**_product({"ldx": 63}), w_layout="nk")
    with pytest.raises(InvalidProblemError, match="dtype='fp8'"):
        lt.heuristics(**_product({"dtype": "fp8"}), w_layout="nk")


def test_the_stride_of_a_single_row_is_ignored(no_device):
    library = FakeLibrary()
    cublaslt.CublasLt(0, library).heuristics(**_product({"m": 1, "ldx": 1, "ldo": 1}), w_layout="nk")
    assert [call[4] for call in library.called("MatrixLayoutCreate")] == [80, 64, 32]


def test_a_missing_library_is_an_error_that_says_so(monkeypatch):
    def refuse(name: str, mode: int = 0):
        raise OSError(f"{name}: not found")

    monkeypatch.setattr(cublaslt.ctypes, "CDLL", refuse)
    with pytest.raises(cublaslt.CublasLtMissingError, match="install PyTorch with CUDA"):
        cublaslt.version()
