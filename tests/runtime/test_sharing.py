"""A GPU that is not ours alone: other processes, captures under way, and a second GPU with a tree of its own."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import aks
from aks.core.device import find_device
from aks.ops.gemm.spec import GEMM
from aks.runtime import dispatcher as dispatchers
from aks.runtime.predictor import Predictor

MODELS = Path(aks.__file__).resolve().parents[1] / "models"
SIZES = (1, 2, 5, 16, 33, 100, 300)
pytestmark = pytest.mark.gpu


def make_dispatcher(index: int, folder: str = "gemm/h200") -> dispatchers.GemmDispatcher:
    """With a shipped tree, whatever the GPU is."""
    device = find_device("h200")
    return dispatchers.GemmDispatcher(Predictor.load(GEMM, device=device, path=MODELS / folder), device, index)


def is_close(y: Tensor, x: Tensor, w: Tensor) -> bool:
    expected = functional.linear(x.float(), w.float())
    return bool((y.float() - expected).norm() <= 0.01 * expected.norm())


def serve_many(seed: int, barrier_path: str, rounds: int = 30) -> int:
    """How many products of this process were right, while another does the same."""
    served = make_dispatcher(0)
    dispatchers.dispatcher_of = lambda index: served  # type: ignore[assignment]  # this process does nothing else
    torch.manual_seed(seed)
    w = torch.randn(4096, 2048, device="cuda").bfloat16()
    right = 0
    Path(barrier_path, str(seed)).touch()
    deadline = time.monotonic() + 120
    while len(list(Path(barrier_path).iterdir())) < 2 and time.monotonic() < deadline:  # until both are ready
        aks.linear(torch.zeros(1, 2048, device="cuda", dtype=w.dtype), w)
    for _ in range(rounds):
        for m in SIZES:
            x = torch.randn(m, 2048, device="cuda").bfloat16()
            right += is_close(aks.linear(x, w, static_weights=True), x, w)
    return right


def test_two_processes_on_one_gpu(tmp_path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(serve_many, seed, str(tmp_path)) for seed in range(2)]
        assert [job.result(timeout=300) for job in jobs] == [30 * len(SIZES)] * 2


@pytest.fixture
def served(monkeypatch) -> dispatchers.GemmDispatcher:
    made = make_dispatcher(0)
    monkeypatch.setattr(dispatchers, "dispatcher_of", lambda index: made)
    return made


@pytest.mark.parametrize("mode", ["thread_local", "relaxed"])
def test_a_stream_is_captured_while_another_launches(served, mode: str) -> None:
    w = torch.randn(4096, 4096, device="cuda").bfloat16() / 64
    for m in SIZES:  # each captured shape once before
        aks.linear(torch.zeros(m, 4096, device="cuda", dtype=w.dtype), w, static_weights=True)
    stop, wrong, rounds = threading.Event(), [], []
    drawn = [torch.randn(m, 4096, device="cuda").bfloat16() for m in SIZES]  # PyTorch draws none during a capture

    def launch() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():
                x = drawn[len(rounds) % len(SIZES)]
                if not is_close(aks.linear(x, w, static_weights=True), x, w):
                    wrong.append(len(x))
                rounds.append(1)

    inputs = {m: torch.zeros(m, 4096, device="cuda", dtype=w.dtype) for m in SIZES}
    stream, outputs, graphs = torch.cuda.Stream(), {}, {}
    with torch.cuda.stream(stream):
        for x in inputs.values():
            aks.linear(x, w, static_weights=True)
    torch.cuda.synchronize()
    thread = threading.Thread(target=launch)
    thread.start()
    try:
        with torch.cuda.stream(stream):
            for m, x in inputs.items():
                graphs[m] = torch.cuda.CUDAGraph()
                graphs[m].capture_begin(capture_error_mode=mode)
                outputs[m] = aks.linear(aks.linear(x, w, static_weights=True), w, static_weights=True)
                graphs[m].capture_end()
    finally:
        stop.set()
        thread.join()
    assert rounds and not wrong
    for m, x in inputs.items():
        x.copy_(torch.randn_like(x))
        graphs[m].replay()
        torch.cuda.synchronize()
        expected = functional.linear(functional.linear(x, w), w).float()
        assert (outputs[m].float() - expected).norm() <= 0.02 * expected.norm(), m


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_a_tree_each(monkeypatch) -> None:
    trees = [make_dispatcher(0), make_dispatcher(1, "chain/gemm/h200")]
    monkeypatch.setattr(dispatchers, "dispatcher_of", trees.__getitem__)
    assert trees[0].predictor.version != trees[1].predictor.version
    asked: list[tuple[int, int]] = []
    for index, tree in enumerate(trees):

        def choose(problem, index=index, known=tree.choose):
            asked.append((index, problem.m))
            return known(problem)

        monkeypatch.setattr(tree, "choose", choose)
    results = []
    for m in SIZES:
        for index in range(2):
            x, w = (torch.randn(rows, 2048, device=f"cuda:{index}").bfloat16() for rows in (m, 4096))
            results.append((aks.linear(x, w), x, w))
    assert all(is_close(y, x, w) and y.device == x.device for y, x, w in results)
    assert asked == [(index, m) for m in SIZES for index in range(2)]
