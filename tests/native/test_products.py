"""cuBLASLt's algorithms launched natively, on a stand-in library: as Python's path asks and launches them."""

from __future__ import annotations

import gc
import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aks.core.bundle import read_bundle
from aks.core.device import current_device, find_device
from aks.core.errors import DriverError, InvalidProblemError, UnsupportedRoutineError
from aks.export import bundle
from aks.ops.gemm import cublaslt, routines
from aks.ops.gemm.call import Call, call_of
from aks.ops.gemm.spec import CUBLASLT_ALGOS, GEMM, GemmConfig
from aks.runtime import dispatcher as dispatchers
from aks.runtime import native
from aks.runtime.predictor import Predictor
from tests.kernels import export_fake, fake_compiler
from tests.native.conftest import needs_module
from tests.native.test_native import SPLIT, one_leaf
from tests.runtime.test_dispatcher import close
from tests.selectors import write_selector

pytestmark = needs_module
gpu = pytest.mark.gpu

PLANS = 4096
"""That are kept: ``Products`` in products.hpp."""


def product_leaf(algo: int = 1) -> dict[str, Any]:
    return one_leaf({"kind": "cublaslt", "algo": algo})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """A tree that answers that algorithm wherever it is legal, for each."""
    return [export_fake(tmp_path_factory.mktemp(f"algo{algo}"), product_leaf(algo)) for algo in range(CUBLASLT_ALGOS)]


@pytest.fixture
def python_path(monkeypatch, standin_lt):
    """Runs a call as Python's own path does, on the same stand-in: its query and its launch as lines."""
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    library = cublaslt.CublasLt(0, standin_lt.library)
    monkeypatch.setattr(cublaslt, "for_device", lambda index: library)

    def run(call: Call, algo: int, workspace: int, stream: int) -> tuple[str, str]:
        def operand(pointer: int, row: int) -> Any:
            return SimpleNamespace(data_ptr=lambda: pointer, stride=lambda axis: (row, 1)[axis], get_device=lambda: 0)

        x, w, out = (operand(*pair) for pair in zip(call[6:9], call[9:], strict=True))
        scratch: Any = SimpleNamespace(workspace=operand(workspace, 1))
        routines.bind_routine(GemmConfig("cublaslt", algo=algo), call.problem(), x, w, out, scratch)(stream)
        return standin_lt.query(), standin_lt.last()

    return run


def random_call(rng: random.Random, **fixed: int) -> Call:
    """A call whose operands are aligned to 16 bytes."""
    m, n, k = (max(1, int(2 ** rng.uniform(0, 13))) for _ in range(3))
    dtype, w_layout = rng.randrange(2), rng.randrange(2)
    pointers = [rng.randrange(1, 1 << 40) * 16 for _ in range(3)]
    rows = [-(-length // 8) * 8 + rng.choice((0, 0, 8, 1024)) for length in (k, n if w_layout else k, n)]
    if m == 1 and rng.random() < 0.5:  # never used, and may be anything
        rows[0] = rows[2] = 8
    return Call(m, n, k, dtype, w_layout, bool(rng.randrange(2)), *pointers, *rows)._replace(**fixed)


def workspace_of(line: str) -> int:
    return int(re.findall(r"workspace=(0x[0-9a-f]+),", line)[0], 16)


CALL = Call(64, 512, 1024, 0, 0, True, 1 << 40, 1 << 41, 1 << 42, 1024, 1024, 512)


@pytest.mark.parametrize("algo", range(CUBLASLT_ALGOS))
def test_asks_and_launches_what_pythons_path_does(algo: int, folders, standin, standin_lt, python_path):
    kernels, rng, seen = standin.load(folders[algo], cublaslt=standin_lt), random.Random(algo), set()
    assert kernels.cublaslt == str(standin_lt.path)
    for _ in range(300):
        call, stream = random_call(rng), rng.choice((0, 0x5000))
        assert kernels.launch(*call, stream) == 1, call
        query, line = standin_lt.query(), standin_lt.last()
        assert (query, line) == python_path(call, algo, workspace_of(line), stream), call
        seen.add(query)
    assert f"algorithm={algo}," in standin_lt.last() and len(seen) > 250
    counts = kernels.counts()
    assert counts["launches"] == 300 and counts["plans"] == len(seen) and not counts["without_plan"]


def test_unusable_entries_do_not_count(folders, standin, standin_lt, python_path):
    standin_lt.set(unusable=0b0101)
    kernels, rng = standin.load(folders[1], cublaslt=standin_lt), random.Random(1)
    for _ in range(20):
        call = random_call(rng)
        assert kernels.launch(*call, 0) == 1
        line = standin_lt.last()
        assert "algorithm=3," in line and line == python_path(call, 1, workspace_of(line), 0)[1]


@pytest.mark.parametrize("found", [0, 1, 2])
def test_too_few_algorithms_are_the_vendors_as_in_python(found: int, folders, standin, standin_lt, python_path):
    standin_lt.set(found=found)
    kernels = standin.load(folders[2], cublaslt=standin_lt)
    assert [kernels.launch(*CALL, 0) for _ in range(3)] == [-1] * 3
    with pytest.raises(UnsupportedRoutineError):
        python_path(CALL, 2, 0, 0)
    assert kernels.counts()["plans"] == 1 and kernels.counts()["without_plan"] == 3  # it is not asked again
    assert standin.load(folders[0], cublaslt=standin_lt).launch(*CALL, 0) == (1 if found else -1)


def test_not_supported_is_the_vendors_and_other_failures_raise(folders, standin, standin_lt):
    kernels = standin.load(folders[1], cublaslt=standin_lt)
    standin_lt.set(query=15)
    assert kernels.launch(*CALL, 0) == -1
    standin_lt.set(query=14)
    other = CALL._replace(m=65)
    with pytest.raises(DriverError, match="cublasLtMatmulAlgoGetHeuristic failed with cublasStatus_t 14"):
        kernels.launch(*other, 0)
    standin_lt.set(matmul=15)
    assert kernels.launch(*other, 0) == -1
    standin_lt.set(matmul=13)
    with pytest.raises(DriverError, match="cublasLtMatmul failed with cublasStatus_t 13"):
        kernels.launch(*other, 0)
    standin_lt.set()
    assert kernels.launch(*other, 0) == 1
    assert kernels.counts()["without_plan"] == 2 and kernels.counts()["launches"] == 1
    with pytest.raises(InvalidProblemError, match="rows of 1024 elements but row stride 1016"):
        kernels.launch(*CALL._replace(x_row=1016), 0)


def test_without_the_library_the_config_is_the_callers(folders, standin, standin_lt, tmp_path: Path):
    standin_lt.path, kept = tmp_path / "no.so", standin_lt.path
    try:
        missing = standin.load(folders[1], cublaslt=standin_lt)
        standin_lt.path = standin.path  # a library that is another
        other = standin.load(folders[1], cublaslt=standin_lt)
    finally:
        standin_lt.path = kept
    for kernels in (missing, other, standin.load(folders[1])):
        assert kernels.cublaslt == "" and kernels.launch(*CALL, 0) == kernels.prepare(*CALL, 0) == -2
        assert kernels.counts()["allocations"] == kernels.counts()["without_plan"] == 0


def test_a_misaligned_call_is_not_cublaslts(folders, standin, standin_lt):
    kernels = standin.load(folders[1], cublaslt=standin_lt)
    assert kernels.launch(*CALL._replace(x_ptr=CALL.x_ptr + 8), 0) == -1
    assert kernels.counts()["plans"] == 0


def test_prepare_asks_ahead_and_launches_nothing(folders, standin, standin_lt):
    kernels = standin.load(folders[1], cublaslt=standin_lt)
    assert kernels.launch(*CALL._replace(m=1), 0) == 1
    before = standin_lt.last()
    assert kernels.prepare(*CALL._replace(x_ptr=16, w_ptr=16, out_ptr=16), 0x30) == 1
    assert standin_lt.last() == before
    made = kernels.counts()
    assert made["plans"] == 2 and made["launches"] == 1
    assert kernels.launch(*CALL, 0x30) == 1 and standin_lt.last() != before
    assert kernels.counts() == made | {"launches": 2}
    with pytest.raises(InvalidProblemError, match="a call has 3 values; wanted 12"):
        kernels.prepare(1, 2, 3, 0)


def vendor_leaf() -> dict[str, Any]:
    """A selector whose tree abstains everywhere."""
    selector = product_leaf()
    selector["tree"]["abstain"] = [True]
    return selector


def test_the_vendors_routine_is_the_first_algorithm_once_it_was_prepared(tmp_path: Path, standin, standin_lt):
    kernels = standin.load(export_fake(tmp_path, vendor_leaf()), cublaslt=standin_lt)
    other = CALL._replace(m=65)
    before = standin_lt.last()
    assert kernels.launch(*CALL, 0) == -1  # the caller's library knows a new shape sooner
    assert kernels.counts()["plans"] == kernels.counts()["launches"] == 0 and standin_lt.last() == before
    assert kernels.prepare(*CALL, 0) == 0
    assert kernels.launch(*CALL, 0x30) == 0 and "algorithm=0," in standin_lt.last()
    assert kernels.launch(*CALL._replace(m=20_001), 0) == -1  # outside the support, and new
    kernels.plans_ahead = True
    assert kernels.launch(*other, 0) == 0
    kernels.plans_ahead = False
    assert kernels.launch(*other, 0) == 0 and kernels.launch(*CALL._replace(m=66), 0) == -1
    assert kernels.counts()["plans"] == 2 and kernels.counts()["launches"] == 3
    assert sum(kernels.take_misses()[0]) == 6  # each launch, whoever ran it
    standin_lt.set(matmul=15)
    assert kernels.launch(*other, 0) == -1 and kernels.counts()["without_plan"] == 1


def test_cublaslt_is_asked_in_the_context_of_the_kernels(folders, tmp_path: Path, standin, standin_lt):
    """Whatever thread calls, and for the vendor's routine too."""
    standin_lt.probe(standin.library.standin_has_context)
    for folder in (folders[1], export_fake(tmp_path, vendor_leaf())):
        kernels = standin.load(folder, cublaslt=standin_lt)
        assert kernels.prepare(*CALL, 0) >= 0 and standin_lt.probed()[0] == 1
        kernels.plans_ahead = True
        assert kernels.launch(*CALL._replace(m=65), 0) >= 0 and standin_lt.probed() == (1, 1)
        assert standin.library.standin_has_context() == 0


def test_a_misaligned_vendors_call_is_not_cublaslts(tmp_path: Path, standin, standin_lt):
    kernels = standin.load(export_fake(tmp_path, vendor_leaf()), cublaslt=standin_lt)
    call = CALL._replace(x_ptr=CALL.x_ptr + 8)
    assert kernels.prepare(*call, 0) == kernels.launch(*call, 0) == -1 and kernels.counts()["plans"] == 0


def test_a_vendors_answer_on_tensors_is_launched_once_prepared(tmp_path: Path, standin, standin_lt, monkeypatch):
    folder = export_fake(tmp_path, vendor_leaf())
    kernels = standin.load(folder, cublaslt=standin_lt)
    made = dispatchers.GemmDispatcher(Predictor.load(GEMM, path=folder), find_device("h200"), 0, kernels)
    monkeypatch.setattr(dispatchers, "_current_stream", lambda device: 0x70)
    monkeypatch.setattr(dispatchers, "dispatcher_of", lambda index: made)
    x, w = torch.randn(8, 1024).bfloat16(), torch.randn(512, 1024).bfloat16()
    y = made.linear(x, w, None, True)
    assert y is not None and close(y, x, w) and kernels.counts()["launches"] == 0
    with dispatchers.preparing(0):
        made.linear(x, w, None, True)
    assert not kernels.plans_ahead
    y = made.linear(x, w, None, True)
    assert y is not None and f"d={y.data_ptr():#x} " in standin_lt.last() and kernels.counts()["launches"] == 2
    assert made.linear(torch.randn(9, 1024).bfloat16(), w, None, True) is not None
    assert kernels.counts()["launches"] == 2


def test_prepare_makes_no_launch_of_a_kernel_either(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    assert kernels.prepare(*CALL, 0x30) == 1
    allocations = kernels.counts()["allocations"]
    assert kernels.counts()["launches"] == 0 and "stream=48" not in standin.last()
    assert kernels.launch(*CALL, 0x30) == 1 and kernels.counts()["allocations"] == allocations


def test_while_capturing_a_new_shape_is_asked_for_and_the_workspace_is_the_reserve(folders, standin, standin_lt):
    standin_lt.probe(standin.library.standin_capture_mode)
    kernels = standin.load(folders[1], cublaslt=standin_lt)
    at_load = kernels.counts()["allocations"]
    standin.library.standin_capture(1)
    assert kernels.launch(*CALL, 0x30) == 1
    assert standin_lt.probed() == (2, 2)  # relaxed: what cuBLASLt loads, it may load
    captured = workspace_of(standin_lt.last())
    assert kernels.launch(*CALL, 0x30) == 1 and workspace_of(standin_lt.last()) == captured
    assert standin_lt.probed()[1] == 0  # as it was
    assert kernels.launch(*CALL, 0x40) == -1  # the reserve is gone
    assert kernels.counts()["without_scratch"] == 1 and kernels.counts()["allocations"] == at_load
    standin.library.standin_capture(0)
    assert kernels.prepare(*CALL._replace(m=3), 0x40) == 1
    standin.library.standin_capture(1)
    assert kernels.launch(*CALL._replace(m=3), 0x40) == 1 and workspace_of(standin_lt.last()) != captured
    assert standin_lt.probed()[1] == 2 and standin.library.standin_capture_mode() == 0


def test_plans_are_bounded_and_the_last_ones_are_kept(folders, standin, standin_lt):
    gc.collect()
    before = standin_lt.objects()
    kernels = standin.load(folders[1], cublaslt=standin_lt)
    calls = [CALL._replace(m=m, n=8 * n, out_row=8 * n) for n in (64, 65, 66) for m in range(1, 3001)]
    always = CALL._replace(n=1024, out_row=1024)
    for call in calls:
        assert kernels.launch(*call, 0) == 1 and f",{call.m}," in standin_lt.last()
        kernels.launch(*always, 0)  # never forgotten, because it is used
    assert kernels.counts()["plans"] == len(calls) + 1
    assert 0.8 * PLANS * 4 < standin_lt.objects() - before - 1 <= PLANS * 4  # an operation and three layouts each
    for call in calls[-PLANS // 2 :]:
        kernels.launch(*call, 0)
    assert kernels.counts()["plans"] == len(calls) + 1
    kernels.launch(*calls[0], 0)
    assert kernels.counts()["plans"] == len(calls) + 2
    del kernels
    gc.collect()
    assert standin_lt.objects() == before


def test_threads_share_the_plans(folders, standin, standin_lt):
    """More shapes than are kept, so that plans are dropped while others launch them."""
    kernels = standin.load(folders[1], cublaslt=standin_lt)
    calls = [CALL._replace(m=m, x_ptr=(1 << 40) + 4096 * m) for m in range(1, PLANS + 1500)]

    def work(seed: int) -> bool:
        stream = 0x10 * seed
        for call in random.Random(seed).sample(calls, len(calls)):
            good = kernels.launch(*call, stream) == 1
            line = standin_lt.last()  # of this thread
            good &= f"b={call.x_ptr:#x} " in line and f" L,14,1024,{call.m},1024," in line
            if not good or f"stream={stream:#x} " not in line:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))
    assert kernels.counts()["launches"] == 4 * len(calls)


def test_the_dispatcher_does_not_run_it_again(folders, standin, standin_lt, monkeypatch):
    made = dispatchers.GemmDispatcher(
        Predictor.load(GEMM, path=folders[1]), find_device("h200"), 0, standin.load(folders[1], cublaslt=standin_lt)
    )
    monkeypatch.setattr(dispatchers, "_current_stream", lambda device: 0x70)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    x, w = torch.randn(8, 1024).bfloat16(), torch.randn(512, 1024).bfloat16()
    out = torch.zeros(8, 512, dtype=torch.bfloat16)
    call = call_of(x, w, out, True)
    assert call is not None and call.problem().alignment == 16
    made.run(x, w, out, call)
    assert not out.any() and f"d={out.data_ptr():#x} " in standin_lt.last()
    monkeypatch.setattr(cublaslt, "for_device", None)  # Python's path is not asked where the native one has said no
    standin_lt.set(matmul=15)
    made.run(x, w, out, call)
    assert close(out, x, w)


# On a GPU, with the cuBLASLt of PyTorch. The trees have no kernel of ours, so none is compiled.


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> list[native.Kernels]:
    """Kernels on this GPU for a tree that answers one algorithm, for each."""
    torch.cuda.init()
    loaded = []
    for algo in range(CUBLASLT_ALGOS):
        folder = tmp_path_factory.mktemp(f"served{algo}")
        selector = write_selector(folder, product_leaf(algo))
        bundle.export(selector, folder / "out", device=current_device(), kernels=True, compiler=fake_compiler())
        index = torch.cuda.current_device()
        loaded.append(native.load_kernels(read_bundle(folder / "out"), index, cublaslt=cublaslt.library_paths()))
    return loaded


def current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def tensors(m: int, n: int, k: int, dtype: torch.dtype, layout: str, pad: int, offset: int):
    """x, w as [N, K] and two outputs, with rows that are so much longer and start so many elements late."""
    generator = torch.Generator("cuda").manual_seed(m * n + k)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        flat = torch.randn(rows * (columns + pad) + offset, device="cuda", generator=generator)
        return flat.to(dtype)[offset:].view(rows, columns + pad)[:, :columns]

    w = matrix(n, k) if layout == "nk" else matrix(k, n).T
    return matrix(m, k), w, matrix(m, n), matrix(m, n)


SHAPES = [(1, 4096, 4096), (2, 512, 2048), (16, 2880, 4096), (64, 4096, 4096), (100, 4104, 1032), (333, 64, 8192),
          (512, 512, 512), (2048, 1024, 256)]  # fmt: skip


@gpu
@pytest.mark.parametrize("layout", ["nk", "kn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_bits_as_pythons_path(dtype, layout: str, served):
    scratch, ran = routines.Scratch(torch.device("cuda", torch.cuda.current_device())), 0
    for shape in SHAPES:
        for pad, offset in ((0, 0), (8, 0), (64, 8), (1, 0), (0, 1), (4, 4)):
            x, w, first, second = tensors(*shape, dtype, layout, pad, offset)
            for algo, kernels in enumerate(served):
                for out in (first, second):
                    out.fill_(float("nan"))
                call = call_of(x, w, first, True)
                assert call is not None
                answer = kernels.launch(*call, current_stream())
                if call.problem().alignment < 16:
                    assert answer == -1
                    continue
                rows = w.T if layout == "kn" else w
                try:
                    config = GemmConfig("cublaslt", algo=algo)
                    bound = routines.bind_routine(config, call.problem(), x, rows, second, scratch)
                except UnsupportedRoutineError:
                    assert answer == -1
                    continue
                bound(current_stream())
                assert answer == 1 and torch.equal(first, second), (shape, pad, offset, algo)
                assert close(first, x, w)
                ran += 1
    assert ran > 40


@gpu
def test_a_new_shape_in_a_captured_graph(served):
    x, w, y, _ = tensors(72, 3072, 1536, torch.bfloat16, "nk", 0, 0)
    call, graph = call_of(x, w, y, True), torch.cuda.CUDAGraph()
    assert call is not None
    plans = served[1].counts()["plans"]
    with torch.cuda.graph(graph):
        answer = served[1].launch(*call, current_stream())
    assert answer == 1 and served[1].counts()["plans"] == plans + 1
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert close(y, x, w)


@gpu
def test_a_new_shape_while_another_stream_is_captured(served):
    x, w, y, _ = tensors(24, 1536, 3072, torch.float16, "nk", 0, 0)
    other, stream = tensors(40, 768, 5120, torch.float16, "kn", 0, 0), torch.cuda.Stream()
    here, there = call_of(x, w, y, True), call_of(*other[:3], True)
    assert here is not None and there is not None
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), ThreadPoolExecutor(1) as pool:
        launched = pool.submit(served[2].launch, *there, stream.cuda_stream)
        answers = served[2].launch(*here, current_stream()), launched.result()
    assert answers == (1, 1)
    graph.replay()
    torch.cuda.synchronize()
    assert close(y, x, w) and close(other[2], *other[:2])


@gpu
def test_threads_on_streams_of_their_own(served):
    torch.cuda.synchronize()

    def work(seed: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            for m in range(seed + 1, 200, 16):
                x, w, y, _ = tensors(m, 1024, 2048, torch.bfloat16, "nk", 0, 0)
                call = call_of(x, w, y, True)
                if call is None or served[0].launch(*call, current_stream()) != 1 or not close(y, x, w):
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
