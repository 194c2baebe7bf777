"""The Python dispatcher over the native one: what it asks for, and on a GPU that all of it comes out right."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import aks
from aks.core.bundle import read_bundle
from aks.core.device import current_device, find_device
from aks.core.errors import InvalidProblemError
from aks.export import bundle
from aks.ops import OPS
from aks.ops.gemm import launch
from aks.ops.gemm.call import call_of, problem_of
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher as dispatchers
from aks.runtime import native
from aks.runtime.predictor import MAX_MISSED, Predictor
from tests.kernels import export_fake
from tests.native.conftest import needs_module
from tests.native.test_aks_h import CC, CXX, NATIVE, SOURCES, build, run
from tests.native.test_native import GEMM_SELECTOR, SPLIT, one_leaf, random_gemms, shipped_selector
from tests.native.test_native import call_of as gemm_call
from tests.runtime.test_dispatcher import close, gpu_operands
from tests.selectors import random_selector

gpu = pytest.mark.gpu
H200 = find_device("h200")
ROOT = Path(__file__).parents[2]


@needs_module
@pytest.mark.parametrize("layout", ["nk", "kn"])
def test_what_was_launched_natively_is_not_run_again(layout: str, tmp_path: Path, standin, monkeypatch):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    made = dispatchers.GemmDispatcher(Predictor.load(GEMM, path=folder), H200, 0, standin.load(folder))
    monkeypatch.setattr(dispatchers, "_current_stream", lambda device: 0x70)
    x, w = torch.zeros(64, 1024, dtype=torch.bfloat16), torch.zeros(512, 1024, dtype=torch.bfloat16)
    w = w if layout == "nk" else w.T.contiguous().T
    out = torch.empty(64, 512, dtype=torch.bfloat16)
    call = call_of(x, w, out, True)
    assert call is not None
    made.run(x, w, out, call)
    assert f"stream={0x70} " in standin.last() and f" {x.data_ptr()} {w.data_ptr()} {out.data_ptr()} " in standin.last()
    assert made.kernels is not None and made.kernels.counts()["launches"] == 1


@needs_module
def test_what_is_left_to_the_vendor_runs_here_and_is_counted(tmp_path: Path, standin, monkeypatch):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    made = dispatchers.GemmDispatcher(Predictor.load(GEMM, path=folder), H200, 0, standin.load(folder))
    monkeypatch.setattr(dispatchers, "_current_stream", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    x, w = torch.randn(30_000, 16).bfloat16(), torch.randn(32, 16).bfloat16()
    out = torch.empty(30_000, 32, dtype=torch.bfloat16)
    call = call_of(x, w, out, True)
    assert call is not None
    made.run(x, w, out, call)
    assert close(out, x, w)
    assert made.predictor.counts() == {"outside m": 1}


@needs_module
def test_what_the_tree_did_not_know_is_counted_as_the_predictor_does(tmp_path: Path, standin):
    folder = export_fake(tmp_path, shipped_selector(GEMM_SELECTOR))
    predictor, alone = (Predictor.load(GEMM, path=folder) for _ in range(2))
    kernels, rng = standin.load(folder), random.Random(3)
    dispatchers.GemmDispatcher(predictor, H200, 0, kernels)
    for again in range(2):
        for problem in random_gemms(1500, rng):
            for _ in range(1 + problem.m % 2):
                kernels.launch(*gemm_call(problem, rng), 0)
                kernels.prepare(*gemm_call(problem, rng), 0)  # is not serving
                alone.select(**problem.to_row())
        assert predictor.counts() == alone.counts() and len(alone.counts()) > 2
        if not again:
            assert sorted(predictor.missed(), key=str) == sorted(alone.missed(), key=str)
    assert len(predictor.missed()) == len(alone.missed()) == MAX_MISSED


def test_a_call_is_the_problem_and_its_operands():
    x, w = torch.zeros(3, 64, dtype=torch.float16), torch.zeros(64, 40, dtype=torch.float16)[:, :32].T
    out = torch.zeros(3, 32, dtype=torch.float16)
    call = call_of(x, w, out, False)
    assert call is not None
    assert call[:6] == (3, 32, 64, 1, 1, False) and call[9:] == (64, 40, 32)
    assert len(call) == len(GEMM.launch_spec.operands) + 6
    assert call.problem() == problem_of(x, w, out, False)


def test_rows_are_counted_over_all_dimensions_but_the_last():
    w = torch.zeros(32, 64, dtype=torch.bfloat16)

    def call(x: torch.Tensor, *shape: int):
        return call_of(x, w, torch.zeros(*shape, 32, dtype=torch.bfloat16), True)

    x = torch.zeros(2, 3, 64, dtype=torch.bfloat16)
    made, flat = call(x, 2, 3), call(x.view(6, 64), 6)
    assert made is not None and flat is not None
    assert made._replace(out_ptr=0) == flat._replace(out_ptr=0)
    assert (made.m, made.x_row, made.out_row) == (6, 64, 32)
    assert call(x[:, -1:], 2, 1) is None  # two rows, not one after the other: reshaped by whoever calls
    assert call(x[:, -1:].reshape(2, 64), 2).x_row == 192  # type: ignore[union-attr]
    assert call(torch.zeros(2, 0, 64, dtype=torch.bfloat16), 2, 0) is None
    assert call(x, 2, 2) is None


@needs_module
@pytest.mark.parametrize(("batch", "k"), [(64, 1024), (20_000, 16)])
def test_three_dimensions_are_launched_or_multiplied_like_two(batch, k, tmp_path: Path, standin, monkeypatch):
    """Up to 16,384 rows are inside the tree's support; more are left to torch.mm."""
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    made = dispatchers.GemmDispatcher(Predictor.load(GEMM, path=folder), H200, 0, standin.load(folder))
    monkeypatch.setattr(dispatchers, "_current_stream", lambda device: 0x70)
    x, w = torch.randn(batch, 2, k).bfloat16(), torch.randn(512, k).bfloat16()
    for given in (x, x[:, -1:]):
        out = made.linear(given, w, None, True)
        assert out is not None and out.shape == (*given.shape[:-1], 512)
        if batch == 64:
            assert f" {given.data_ptr()} {w.data_ptr()} {out.data_ptr()} " in standin.last()
        else:
            assert close(out, given, w)
        again = torch.empty_like(out)
        assert made.linear(given, w, again, True) is again
        assert made.linear(given, w, again[..., :-1], True) is None
        assert made.linear(given, w[0], None, True) is None and made.linear(given, w[0, 0], None, True) is None
        if batch != 64:
            assert close(again, given, w)


ALIGNED = SPLIT | {"kind": "tma", "split_k": 1, "block_m": 16, "block_k": 256, "swap_ab": 1}


def random_operands(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, w and out as callers might have them, some of which no kernel takes."""

    def tensor(*shape: int) -> torch.Tensor:
        dtype = rng.choice([torch.bfloat16] * 8 + [torch.float16] * 8 + [torch.float32])
        pad, shift = rng.choice((0, 0, 1, 8)), rng.choice((0, 0, 0, 1, 4))
        whole = torch.zeros(*shape[:-1], shape[-1] + pad + shift, dtype=dtype)[..., shift : shift + shape[-1]]
        return rng.choice((whole, whole, whole.contiguous(), whole[..., ::2], whole.expand(*shape)))

    n, k = rng.choice((1, 64, 100, 512)), rng.choice((1, 64, 72, 1024))
    leading = [rng.choice((1, 1, 2, 5, 0)) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
    x, out = tensor(*leading, k), tensor(*leading, n)
    w = rng.choice((tensor(n, k), tensor(n, k), tensor(k, n).T, tensor(n, k)[:, :1], tensor(n, k)[0], tensor(2, n, k)))
    if rng.random() < 0.7:  # or hardly any would be of one dtype
        w, out = w.to(x.dtype), out.to(x.dtype)
    return x, w, rng.choice((out, out, out, out.movedim(0, -1) if out.dim() else out, out.unsqueeze(0), x))


@needs_module
def test_tensors_are_read_as_call_of_reads_them(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(ALIGNED)))
    linear, rng, seen = native.linear_of(kernels, torch.Tensor), random.Random(0), [0, 0, 0]
    assert linear is not None
    for _ in range(3000):
        x, w, out = random_operands(rng)
        if x.dim() > 2 and not x.is_contiguous():
            continue  # is for whoever calls
        static = rng.random() < 0.5
        for given in (out, None):
            got, got_line = linear.launch(x, w, given, static, 0x70), standin.last()
            call = call_of(x, w, given, static)
            if call is None:
                assert got is None
                seen[0] += 1
                continue
            if given is None and got.__class__ is not int:
                assert got.shape == (*x.shape[:-1], w.shape[0]) and got.dtype == x.dtype and got.is_contiguous()
                call = call._replace(out_ptr=got.data_ptr())
            wanted = kernels.launch(*call, 0x70)
            seen[1 if wanted < 0 else 2] += 1
            if wanted < 0:
                assert got == wanted
            else:
                assert (given is None or got is given) and got_line == standin.last()
    assert min(seen) > 50


@needs_module
def test_what_is_read_of_tensors_must_be_theirs_and_of_gemm(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    assert native.linear_of(kernels, int) is None
    linear = native.linear_of(kernels, torch.Tensor)
    x, w = torch.zeros(64, 1024, dtype=torch.bfloat16), torch.zeros(512, 1024, dtype=torch.bfloat16)
    assert linear is not None
    for given in (w.to_sparse(), torch.empty(512, 1024, dtype=torch.bfloat16, device="meta"), w.to(torch.complex64)):
        assert linear.launch(x, given, None, True, 0) is None
    assert torch.is_tensor(linear.launch(x, w, None, True, 0))
    other = standin.load(export_fake(tmp_path / "mm", random_selector(0, op=OPS["mm"])))
    with pytest.raises(InvalidProblemError, match="for kernels of gemm"):
        native.linear_of(other, torch.Tensor)


@pytest.fixture
def alone_or_native(request, tmp_path: Path, standin, monkeypatch) -> dispatchers.GemmDispatcher:
    """A dispatcher for CPU tensors; its tree answers a kernel up to 16,384 rows, and above those the vendor's."""
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    kernels = standin.load(folder) if request.param else None
    monkeypatch.setattr(dispatchers, "_current_stream", lambda device: 0x70)
    return dispatchers.GemmDispatcher(Predictor.load(GEMM, path=folder), H200, 0, kernels)


@needs_module
@pytest.mark.parametrize("alone_or_native", [False, True], indirect=True, ids=["alone", "native"])
def test_the_vendors_own_result_is_returned_and_the_tree_asked_once(alone_or_native, monkeypatch):
    x, w = torch.randn(15_000, 2, 16).bfloat16(), torch.randn(32, 16).bfloat16()
    monkeypatch.setattr(torch.Tensor, "new_empty", None)  # nothing is made for it
    got = alone_or_native.linear(x, w, None, True)
    assert torch.equal(got, torch.nn.functional.linear(x, w))
    assert alone_or_native.predictor.counts() == {"outside m": 1}


@needs_module
@pytest.mark.parametrize("alone_or_native", [True], indirect=True)
def test_a_result_is_made_anew_for_each_call(alone_or_native, standin):
    x, w = torch.zeros(64, 1024).bfloat16(), torch.zeros(512, 1024).bfloat16()
    kept = []
    for _ in range(3):
        kept.append(alone_or_native.linear(x, w, None, True))
        assert f" {x.data_ptr()} {w.data_ptr()} {kept[-1].data_ptr()} " in standin.last()
    assert alone_or_native.kernels is not None and alone_or_native.kernels.counts()["launches"] == 3


# On a GPU: AKS_BUNDLE names a folder that was exported for it; without one, the H200's tree is compiled for it here.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    if given := os.environ.get("AKS_BUNDLE"):
        return Path(given)
    out = tmp_path_factory.mktemp("bundle")
    bundle.export(ROOT / "models/gemm/h200/selector.json", out, device=current_device(), kernels=True)
    return out


def serve(folder: Path, monkeypatch) -> dispatchers.GemmDispatcher:
    predictor = Predictor.load(GEMM, device=current_device(), path=folder)
    kernels = native.load_kernels(predictor.bundle, torch.cuda.current_device())
    assert kernels is not None
    made = dispatchers.GemmDispatcher(predictor, current_device(), torch.cuda.current_device(), kernels)
    monkeypatch.setattr(dispatchers, "dispatcher_of", lambda index: made)
    return made


@gpu
@needs_module
def test_every_dtype_layout_and_alignment(folder, monkeypatch):
    made, compiled = serve(folder, monkeypatch), len(launch.VARIANTS.loaded)
    for x, w in gpu_operands():
        for static in (False, True):
            out = torch.full((x.shape[0], w.shape[0]), float("nan"), dtype=x.dtype, device="cuda")
            assert close(aks.linear(x, w, out=out, static_weights=static), x, w), (x.shape, x.stride(), w.stride())
    assert made.kernels is not None
    counts = made.kernels.counts()
    assert counts["launches"] > 20 and not counts["without_kernel"] and not counts["without_scratch"]
    assert len(launch.VARIANTS.loaded) == compiled  # Triton was not asked


@gpu
@needs_module
def test_the_same_bits_as_the_python_dispatcher(folder, monkeypatch):
    import triton

    if read_bundle(folder).manifest["kernels"]["triton"] != triton.__version__:
        pytest.skip("the bundle is of another Triton")
    made = serve(folder, monkeypatch)
    alone = dispatchers.GemmDispatcher(made.predictor, made.device, made.index)
    for x, w in gpu_operands():
        outs = [torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device="cuda") for _ in range(2)]
        for one, out in zip((made, alone), outs, strict=True):
            call = call_of(x, w, out, True)
            assert call is not None
            one.run(x, w, out, call)
        assert torch.equal(*outs), (x.shape, x.stride(), w.stride())


@gpu
@needs_module
def test_captured_in_a_graph_and_on_other_streams(folder, monkeypatch):
    serve(folder, monkeypatch)
    x, w = torch.randn(4, 4096, device="cuda").bfloat16(), torch.randn(4096, 4096, device="cuda").bfloat16()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # nothing ran before: no shape needs a first call outside
        y = aks.linear(x, w, static_weights=True)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert close(y, x, w)

    def work(seed: int, w=w) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.randn(1 + 7 * seed, 4096, device="cuda").bfloat16()
            return all(close(aks.linear(x, w), x, w) for _ in range(20))

    torch.cuda.synchronize()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@gpu
@needs_module
def test_nothing_is_loaded_or_allocated_while_serving(folder):
    from aks.evaluate.dispatch import check_steady

    steady = check_steady(folder)
    before, after = steady["before"], steady["after"]
    assert after["launches"] - before["launches"] == steady["problems"] - steady["left_to_libraries"] > 0
    for name in ("modules", "allocations", "without_kernel", "without_scratch", "triton_kernels"):
        assert after[name] == before[name], name
    assert after["torch_device_allocations"] == before["torch_device_allocations"]


@gpu
@pytest.mark.skipif(CC is None or CXX is None, reason="needs C and C++ compilers")
def test_the_c_example_runs_on_the_real_driver(folder, tmp_path: Path):
    build(CXX, "-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DAKS_BUILDING", *SOURCES, "-o",
          tmp_path / "libaks.so", "-ldl")  # fmt: skip
    torch.cuda.init()
    loaded = Path("/proc/self/maps").read_text().split()
    driver = next(path for path in loaded if path.rpartition("/")[2].startswith("libcuda.so."))
    build(CC, NATIVE / "example.c", f"-I{NATIVE}", f"-L{tmp_path}", "-laks", driver,
          f"-Wl,-rpath,{tmp_path}", "-o", tmp_path / "example")  # fmt: skip
    done = run(tmp_path / "example", folder, 16, 4096, 4096)
    assert done.returncode == 0 and "config" in done.stdout, done.stderr


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it fails
from pathlib import Path
import torch
from aks.core.device import find_device
from aks.ops.gemm.call import call_of
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher, native
from aks.runtime.predictor import Predictor
predictor = Predictor.load(GEMM, path=sys.argv[1])
kernels = native.load_kernels(predictor.bundle, 0, sys.argv[2])
dispatcher._current_stream = lambda device: 0
made = dispatcher.GemmDispatcher(predictor, find_device("h200"), 0, kernels)
x, w, out = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((64, 1024), (512, 1024), (64, 512)))
made.run(x, w, out, call_of(x, w, out, True))
print(kernels.counts()["launches"])
"""


@needs_module
def test_serving_from_a_bundle_needs_no_triton(tmp_path: Path, standin):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    done = run(sys.executable, "-c", WITHOUT_TRITON, folder, standin.path)
    assert done.stdout == "1\n", done.stderr
