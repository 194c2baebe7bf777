"""``aks.linear``: right for every dtype, layout, alignment and stride; torch's own where it does not apply."""

from __future__ import annotations

import functools
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional

import aks
from aks.core.device import find_device
from aks.export.bundle import export
from aks.ops.gemm.call import problem_of
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.runtime import dispatcher as dispatchers
from aks.runtime import served
from aks.runtime.predictor import Predictor
from tests.selectors import random_selector

gpu = pytest.mark.gpu
empty = functools.partial(torch.empty, dtype=torch.bfloat16)


def close(got: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> bool:
    expected = x.double() @ w.double().T
    return bool((got.double() - expected).norm() <= 6e-3 * expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_without_a_gpu_torch_answers(dtype) -> None:
    x, w = torch.randn(2, 3, 16, dtype=dtype), torch.randn(8, 16, dtype=dtype)
    assert torch.equal(aks.linear(x, w), functional.linear(x, w))
    out = torch.empty(2, 3, 8, dtype=dtype)
    assert aks.linear(x, w, out=out) is out
    assert torch.equal(out, functional.linear(x, w))


def test_wrong_shapes_raise_what_torch_raises() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        aks.linear(torch.randn(2, 3), torch.randn(4, 5))


@pytest.mark.parametrize(
    ("x", "w", "expected"),
    [
        (empty(3, 64), empty(32, 64), ("nk", 16)),
        (empty(3, 64), empty(64, 32).T, ("kn", 16)),
        (empty(3, 65)[:, 1:], empty(32, 64), ("nk", 2)),
        (empty(3, 64), empty(32, 68)[:, 4:], ("nk", 8)),
        (empty(3, 64)[:, ::2], empty(32, 32), None),
        (empty(1, 64).expand(3, 64), empty(32, 64), None),
        (empty(0, 64), empty(32, 64), None),
        (empty(3, 64), empty(32, 63), None),
    ],
)
def test_tensors_to_problem(x, w, expected) -> None:
    out = torch.empty(x.shape[0], w.shape[0], dtype=torch.bfloat16)
    problem = problem_of(x, w, out, True)
    assert (problem and (problem.w_layout, problem.alignment)) == expected


@pytest.fixture(params=range(4))
def random_tree(request, tmp_path, monkeypatch):
    """A dispatcher whose tree is random: whatever it names must come out right."""
    selector = random_selector(request.param, levels=7, portfolio=14)
    path = tmp_path / "selector.json"
    path.write_text(json.dumps(selector))
    export(path, tmp_path / "models")
    device = find_device("h200")
    made = dispatchers.GemmDispatcher(Predictor.load(GEMM, device=device, path=tmp_path / "models"), device)
    monkeypatch.setattr(dispatchers, "dispatcher_of", lambda index: made)
    return made


def gpu_operands():
    for dtype in (torch.bfloat16, torch.float16):
        for m, n, k in ((1, 4096, 4096), (3, 1000, 520), (16, 2880, 2880), (70, 1536, 264), (300, 513, 77), (1, 1, 1)):
            for shift in (0, 1, 2, 4):
                flat = torch.randn(m * (k + shift) + shift, device="cuda").to(dtype)
                x = flat[shift:].view(m, k + shift)[:, :k]
                yield x, torch.randn(n, k, device="cuda").to(dtype)
                yield x, torch.randn(k, n + shift, device="cuda").to(dtype)[:, :n].T


def test_it_chooses_what_the_predictor_predicts(random_tree) -> None:
    for m in (1, 5, 200, 5000):
        problem = GemmProblem(m, 4096, 2048, static_weights=True)
        assert random_tree.choose(problem) == random_tree.predictor.predict(m, 4096, 2048, static_weights=True)


@gpu
def test_every_dtype_layout_and_alignment(random_tree) -> None:
    for x, w in gpu_operands():
        for static in (False, True):
            out = torch.full((x.shape[0], w.shape[0]), float("nan"), dtype=x.dtype, device="cuda")
            assert close(aks.linear(x, w, out=out, static_weights=static), x, w), (x.shape, x.stride(), w.stride())


@gpu
def test_leading_dimensions_streams_and_gradients(random_tree) -> None:
    x, w = torch.randn(2, 5, 4096, device="cuda").bfloat16(), torch.randn(1024, 4096, device="cuda").bfloat16()
    assert aks.linear(x, w).shape == (2, 5, 1024)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = aks.linear(x, w)
    side.synchronize()
    assert close(y.view(10, 1024), x.view(10, 4096), w)
    w.requires_grad_()
    assert aks.linear(x, w).requires_grad
    with torch.no_grad():
        assert not aks.linear(x, w).requires_grad


@gpu
def test_captured_in_a_graph(random_tree) -> None:
    x, w = torch.randn(4, 4096, device="cuda").bfloat16(), torch.randn(4096, 4096, device="cuda").bfloat16()
    aks.linear(x, w, static_weights=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(4):
            y = aks.linear(y, w, static_weights=True) * 0.015625
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        expected = x
        for _ in range(4):
            expected = functional.linear(expected, w) * 0.015625
        assert (y.float() - expected.float()).norm() <= 0.03 * expected.float().norm()


@gpu
def test_threads_with_a_stream_each(random_tree) -> None:
    w = torch.randn(4096, 2048, device="cuda").bfloat16()

    def work(seed: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.randn(1 + seed, 2048, device="cuda").bfloat16()
            return all(close(aks.linear(x, w), x, w) for _ in range(20))

    torch.cuda.synchronize()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@gpu
def test_a_gpu_without_a_tree_warns_and_runs_torch(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AKS_MODELS", str(tmp_path))
    monkeypatch.setattr("aks.runtime.predictor._model_roots", lambda: [tmp_path])
    served.forget()
    x, w = torch.randn(4, 64, device="cuda").bfloat16(), torch.randn(32, 64, device="cuda").bfloat16()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(aks.linear(x, w), functional.linear(x, w))
    assert any("PyTorch's own kernels" in str(warning.message) for warning in caught)
    served.forget()
