"""The serving bench without a GPU: turns, percentiles, preparation, NVML's lines; and the whole of it with one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aks.core.device import find_device
from aks.core.errors import BenchError
from aks.evaluate import first_request, serving
from aks.evaluate.blocks import Blocks, Load, Sizes
from aks.evaluate.serving_report import write_serving_report
from aks.evaluate.serving_table import serving_row, serving_table
from aks.evaluate.traffic import Step, bursty_trace
from aks.evaluate.utilization import GpuSample, GpuSampler, mean_busy, parse_samples
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.runtime import capture, dispatcher
from aks.runtime.capture import StepGraphs
from aks.runtime.predictor import Predictor
from tests.runtime.test_capture import FakeRecorder

TINY = Load(steps=8, max_batch=20, layers=2, fixed_batch=3, fixed_steps=4, sizes=Sizes(64, 16, 96))
CPU = torch.device("cpu")


def test_a_step_runs_every_layer_of_every_block() -> None:
    blocks, seen = Blocks(TINY, CPU), []

    def linear(x: Tensor, w: Tensor) -> Tensor:
        seen.append((x.shape[0], *w.shape))
        return functional.linear(x, w)

    y = blocks.step(linear, torch.randn(5, 64).bfloat16())
    shapes = [(64, 64), (16, 64), (16, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    assert seen == [(5, *shape) for shape in shapes] * 2
    assert y.shape == (5, 64) and 0 < y.float().std() < 10
    assert len({w.data_ptr() for layer in blocks.weights for w in layer.values()}) == 14


def test_its_layers_are_what_it_runs() -> None:
    layers = Blocks(TINY, CPU).layers()
    assert [(layer.name, layer.problem, layer.count) for layer in layers] == [
        (name, GemmProblem(1, n, k, static_weights=True), 2) for name, (n, k) in TINY.sizes.weights().items()
    ]


def test_sizes_that_are_measured_lie_at_most_32_rows_apart() -> None:
    device = find_device("h200")
    served: Any = SimpleNamespace(predictor=Predictor.load(GEMM, device=device), device=device)
    sizes = serving._candidates(Blocks(TINY, CPU).layers(), 500, served)
    assert (sizes[0], sizes[-1]) == (1, 500) and sizes == sorted(set(sizes))
    assert max(high - low for low, high in pairwise(sizes)) <= 32


def test_ways_take_turns_at_the_same_steps(monkeypatch) -> None:
    monkeypatch.setattr(serving, "_BLOCK_STEPS", 2)
    ran: list[tuple[str, int]] = []

    def run(way: str, x: Tensor) -> Tensor:
        ran.append((way, x.shape[0]))
        return x

    clock = iter(range(1000))
    monkeypatch.setattr(first_request.time, "perf_counter", lambda: float(next(clock)))
    batches = [torch.zeros(rows, 1) for rows in (1, 2, 3, 4, 5)]
    taken = serving.serve_by_turns({way: partial(run, way) for way in "ab"}, batches, lambda: None)
    turns = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("b", 4), ("a", 3), ("a", 4), ("a", 5), ("b", 5)]
    assert ran == turns
    assert taken == {"a": [1.0] * 5, "b": [1.0] * 5}


def test_a_latency_lasts_until_the_gpu_is_done(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(first_request.time, "perf_counter", lambda: now[0])

    def wait() -> None:
        now[0] += 0.5

    def run(x: Tensor) -> Tensor:
        now[0] += 0.25
        return x

    assert first_request.serve(run, [torch.zeros(1)] * 2, wait) == [0.75, 0.75]


def test_percentiles() -> None:
    row = serving.summarize("aks", [value / 1e3 for value in range(1, 1002)])
    assert (row.steps, row.mean_ms, row.p50_ms, row.worst_ms) == pytest.approx((1001, 501, 501, 1001))
    assert (row.p99_ms, row.p999_ms) == (pytest.approx(991), pytest.approx(1000))
    assert row.tail == pytest.approx(991 / 501)


@pytest.fixture
def server(monkeypatch) -> serving.Server:
    """A server of CPU tensors, whose graphs are faked."""
    device = find_device("h200")
    served = SimpleNamespace(predictor=Predictor.load(GEMM, device=device), device=device)
    monkeypatch.setattr(dispatcher, "dispatcher_of", lambda index: served)
    monkeypatch.setattr(capture, "_Recorder", FakeRecorder)
    monkeypatch.setattr(StepGraphs, "time_replay", lambda self, rows: 10.0 + (rows > 4) * 10)
    trace = [Step(1), Step(5), Step(2, 3), Step(9), Step(4)]
    made = serving.Server(Blocks(TINY, CPU), TINY, functional.linear, trace, lambda line: None)
    made.wait = lambda: None
    return made


def test_graphs_are_those_that_measured_costs_ask_for(server) -> None:
    assert server.max_m == 9
    run = server.prepare("aks graphs")
    plan, powers = server.plans["aks graphs"], server.plans["powers of two"]
    assert isinstance(run, StepGraphs) and run.captured == plan.tops == (4, 9)
    assert powers.tops == (1, 2, 4, 8, 9) and powers.worst_padding == 0
    for x in server.batches:
        torch.testing.assert_close(run(x), server.blocks.step(functional.linear, x))
    assert not run.missed


def test_powers_of_two_for_torch(server) -> None:
    run = server.prepare("torch graphs")
    assert isinstance(run, StepGraphs) and run.captured == (1, 2, 4, 8, 9)


@pytest.mark.parametrize(
    ("way", "sizes"), [("aks", range(1, 10)), ("torch prepared", range(1, 10)), ("torch", (1, 3, 9))]
)
def test_a_way_is_prepared_for_all_sizes_or_for_few(server, way: str, sizes) -> None:
    seen: set[int] = set()

    def linear(x: Tensor, w: Tensor) -> Tensor:
        seen.add(x.shape[0])
        return functional.linear(x, w)

    server._linears = dict.fromkeys(server._linears, linear)
    server.prepare(way)
    assert seen == set(sizes)
    assert server.preparing_seconds[way] > 0


def test_tables_json_and_page_say_what_was_measured(server, tmp_path) -> None:
    server.prepare("aks graphs")
    rows = [serving.summarize(way, [0.001, 0.002]) for way in ("aks", "autotune cold")]
    now = datetime(2026, 1, 2, 3, 4, 5)
    result = serving.Serving(
        rows, [serving.summarize("aks", [0.001, 0.002], 87.0)], [first_request.FirstRequest("aks", 2.0, 1.6)],
        [GpuSample(now, 50.0, 1980.0, 400.0)], server.plans, 5, 9, {"autotune": 12.0},
        {"aks": [1.0, 2.0], "autotune cold": [1.0, 2.0]},
    )  # fmt: skip
    text = serving_table(result)
    for words in (
        "5 sizes, up to 9 rows",
        "tunes while it serves",
        "87 %",
        "50 % busy, 1980 MHz",
        "1.25x",
        "2 graphs;",
    ):
        assert words in text
    document = json.loads(json.dumps(serving_row(result)))
    assert document["first"][0]["first_over_steady"] == 1.25
    assert document["gpu"][0]["time"] == "2026-01-02T03:04:05"
    assert document["plans"]["aks graphs"]["tops"] == [4, 9]
    about = {"command": "aks bench serving <now>", "device": "a GPU", "torch": "2.11"}
    write_serving_report(result, TINY, about, tmp_path / "new" / "serving.html")
    page = (tmp_path / "new" / "serving.html").read_text()
    for words in (
        "Serving on a GPU",
        "aks bench serving &lt;now&gt;",
        "87 %",
        "1.25",
        "data:image/svg+xml",
        "<dd>2.11",
    ):
        assert words in page
    assert "http" not in page


def test_lines_of_nvidia_smi() -> None:
    lines = [
        "2026/01/02 03:04:05.250, 40, 1980, 512.30\n",
        "2026/01/02 03:04:05.750, 60, 1965, [N/A]\n",
        "2026/01/02 03:04:06.250, 80, 1965, 600\n",
        "2026/01/02 03:04:06.7",
    ]
    samples = parse_samples(lines)
    assert [(sample.busy_percent, sample.power_w) for sample in samples] == [(40, 512.3), (80, 600)]
    start = datetime(2026, 1, 2, 3, 4, 5)
    assert mean_busy(samples, start, start + timedelta(seconds=2)) == 60
    assert mean_busy(samples, start, start + timedelta(seconds=1)) == 40
    assert mean_busy(samples, start + timedelta(seconds=5), start + timedelta(seconds=9)) is None


def test_without_nvidia_smi_nothing_is_sampled(monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with GpuSampler() as sampler:
        pass
    assert sampler.samples == []


@pytest.mark.parametrize("m", [1, 5, 70])
def test_the_autotuned_kernel_is_right(m: int) -> None:
    program = (
        "import sys, torch\nfrom aks.evaluate.autotuned import CONFIGS, matmul_kernel\n"
        "m = int(sys.argv[1]); n, k = 72, 200\n"
        "x, w = torch.randn(m, k).half(), torch.randn(n, k).half()\n"
        "for config in CONFIGS[:3] + CONFIGS[-2:]:\n"
        "    out = torch.full((m, n), float('nan')).half()\n"
        "    grid = -(-m // config.kwargs['BLOCK_M']) * -(-n // config.kwargs['BLOCK_N'])\n"
        "    matmul_kernel[(grid,)](x, w, out, m, n, k, k, k, n, **config.kwargs)\n"
        "    torch.testing.assert_close(out.float(), x.float() @ w.float().T, rtol=0.01, atol=0.05)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(m)], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_served_is_said() -> None:
    for ways, load, words in (
        (("fast",), TINY, "wanted of aks, torch"),
        (("autotune cold",), TINY, "not the cold one alone"),
        (("aks",), Load(layers=0), "more than 0 each"),
    ):
        with pytest.raises(BenchError, match=words):
            serving.bench_serving(functional.linear, load, ways=ways)
    if not torch.cuda.is_available():
        with pytest.raises(BenchError, match="no CUDA GPU is visible"):
            serving.bench_serving(functional.linear, TINY)


@pytest.mark.gpu
def test_served_on_the_gpu() -> None:
    from aks.integrations.torch_ops import linear

    load = Load(steps=30, max_batch=4, layers=1, fixed_batch=2, fixed_steps=20, cold_seconds=0.1)
    result = serving.bench_serving(partial(linear, static_weights=True), load)
    assert {row.way for row in result.trace} == set(serving.WAYS)
    sizes = {step.m for step in bursty_trace(30, max_batch=4)}
    assert (result.distinct_m, result.max_m) == (len(sizes), max(sizes))
    assert all(0 < row.p50_ms <= row.p99_ms <= row.p999_ms <= row.worst_ms for row in [*result.trace, *result.fixed])
    assert [row.way for row in result.first] == ["aks", "torch"] and all(row.first_ms > 0 for row in result.first)


@pytest.mark.gpu
@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="nvidia-smi is not installed")
def test_nvml_says_that_a_gpu_is_busy() -> None:
    x = torch.randn(8192, 8192, device="cuda").bfloat16()
    start = datetime.now()
    with GpuSampler(torch.cuda.current_device()) as sampler:
        while datetime.now() - start < timedelta(seconds=3):
            torch.mm(x, x)
            torch.cuda.synchronize()
    busy = mean_busy(sampler.samples, start + timedelta(seconds=1.5), datetime.now())
    assert busy is not None and 0 < busy <= 100


@pytest.mark.gpu
def test_the_autotuned_linear_on_the_gpu() -> None:
    from aks.evaluate.autotuned import autotuned_linear, brief_bench

    run = autotuned_linear(brief_bench)
    for m in (1, 7, 300):
        x, w = torch.randn(m, 512, device="cuda").bfloat16(), torch.randn(768, 512, device="cuda").bfloat16()
        expected = functional.linear(x, w).float()
        assert (run(x, w).float() - expected).norm() <= 0.02 * expected.norm()
