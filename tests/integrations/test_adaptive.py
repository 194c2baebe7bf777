"""Launches of a user's kernel: which config runs, for which GPU, and what is counted."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as triton_driver

from aks.core.device import find_device
from aks.core.errors import ArtifactError, InvalidProblemError, KernelError
from aks.export.bundle import export
from aks.integrations import adaptive as module
from aks.integrations import launches
from aks.integrations.adaptive import adaptive
from aks.ops import find_op
from aks.runtime.predictor import MAX_MISSED, Predictor
from tests.integrations.own_kernels import SPACE, FakeJit
from tests.selectors import random_selector

OP: Any = find_op("tests.integrations.own_kernels:scale")
NAMES = ("h200", "h100-80gb-hbm3")


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    place = 0

    def get_device(self) -> int:
        return self.place


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16, index: int = 0) -> torch.Tensor:
    made = torch.zeros(shape, dtype=dtype).as_subclass(OnGpu)
    made.place = index
    return made


SAID: dict[str, Any] = {
    "space": SPACE,
    "key": ("rows", "columns"),
    "rules": {"a block is no longer than four rows": "BLOCK <= 4 * next_pow2(columns)"},
    "default": {"BLOCK": 256, "num_warps": 4, "num_stages": 1},
    "bytes_moved": "2 * rows * columns * element_bytes",
    "outputs": ("y",),
    "dtypes": ("bf16", "fp32"),
}


def make_kernel(**changed: Any) -> Any:
    """``own_kernels.scale`` over a stand-in: same space, so that its trees fit."""

    def scale(x, y, rows, columns, factor, BLOCK: tl.constexpr):  # noqa: F821 # type: ignore
        """A kernel."""

    return adaptive(**{**SAID, **changed})(FakeJit(scale))


def write_tree(folder: Path, few_rows: Any, many_rows: Any, device: str = "h200") -> Path:
    """A tree for bf16 and up to 4096 rows and columns: one config for up to 16 rows, another for more."""
    selector = random_selector(op=OP, device=device)
    selector["portfolio"] = [config.to_row() for config in (OP.vendor, few_rows, many_rows)]
    selector["support"] = {"axes": {"rows": [1, 4096], "columns": [1, 4096]}, "choices": {"dtype": ["bf16"]}}
    selector["tree"] = {
        "feature": [0, -1, -1],
        "threshold": [16.5, 0.0, 0.0],
        "left": [1, -1, -1],
        "right": [2, -1, -1],
        "ranking": [[], [1, 0], [2, 0]],
        "expected_slowdown": [[], [1.0, 1.5], [1.0, 1.5]],
        "count": [0, 5, 5],
        "abstain": [False, False, False],
    }
    folder.mkdir(parents=True)
    path = folder / "selector.json"
    path.write_text(json.dumps(selector))
    export(path, folder / "scale" / device)
    return folder


SMALL, LARGE = (OP.config_type(block, 1, 1) for block in (64, 1024))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Trees for two GPUs, which choose the other way round."""
    folder = tmp_path_factory.mktemp("models")
    write_tree(folder / "a", SMALL, LARGE)
    write_tree(folder / "b", LARGE, SMALL, NAMES[1])
    (folder / "b" / "scale" / NAMES[1]).rename(folder / "a" / "scale" / NAMES[1])
    return folder / "a"


@pytest.fixture
def gpus(monkeypatch) -> None:
    """Two GPUs, different ones."""
    monkeypatch.setattr(module, "current_device", lambda index: find_device(NAMES[index]))


def ran(kernel: Any) -> list[dict[str, Any]]:
    """What the launches so far were given beside the arguments."""
    knobs = ("BLOCK", "num_warps", "num_stages")
    return [{name: arguments[name] for name in knobs} for _, arguments in kernel.fn.launched]


def options(*configs: Any) -> list[dict[str, Any]]:
    return [OP.options(config) for config in configs]


def call(kernel: Any, rows: Any, columns: Any, x: torch.Tensor | None = None) -> None:
    x = tensor(1) if x is None else x
    kernel[(1,)](x, x, rows, columns, 2.0)


def test_the_tree_of_the_gpu_chooses_and_each_gpu_has_its_own(models, gpus) -> None:
    kernel = make_kernel(models=models)
    for index in (0, 1):
        for rows in (16, 17):
            call(kernel, rows, 2048, tensor(1, index=index))
    assert ran(kernel) == options(SMALL, LARGE, LARGE, SMALL)
    assert kernel.counts() == {} and kernel.missed() == []


def test_the_environment_says_where_trees_are(models, gpus, monkeypatch) -> None:
    monkeypatch.setenv("AKS_MODELS", str(models))
    kernel = make_kernel()
    call(kernel, 3, 2048)
    assert ran(kernel) == options(SMALL)


def test_without_a_tree_the_default_runs_and_says_so_once(gpus, tmp_path) -> None:
    kernel = make_kernel(models=tmp_path)
    with pytest.warns(
        UserWarning, match=r"scale runs its default config \(BLOCK=256 num_warps=4 num_stages=1\) on h200"
    ):
        call(kernel, 3, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(kernel, 3, 100)
        call(kernel, 4, 100, tensor(1, dtype=torch.float32))
    assert ran(kernel) == options(OP.vendor) * 3
    assert kernel.counts() == {"no tree": 3}
    assert kernel.missed() == [
        ({"rows": 3, "columns": 100, "dtype": "bf16"}, 2),
        ({"rows": 4, "columns": 100, "dtype": "fp32"}, 1),
    ]


def test_missed_problems_take_bounded_memory(gpus, tmp_path) -> None:
    kernel = make_kernel(models=tmp_path)
    with pytest.warns(UserWarning):
        for rows in range(1, MAX_MISSED + 10):
            call(kernel, rows, 100)
    assert len(kernel.missed()) == MAX_MISSED and kernel.counts() == {"no tree": MAX_MISSED + 9}


def test_outside_its_support_a_tree_answers_the_default(models, gpus) -> None:
    kernel = make_kernel(models=models)
    call(kernel, 5000, 100)
    call(kernel, 3, 5000)
    assert ran(kernel) == options(OP.vendor, OP.vendor)
    assert kernel.counts() == {"outside rows": 1, "outside columns": 1}
    assert kernel.missed()[0] == ({"rows": 5000, "columns": 100, "dtype": "bf16"}, 1)


def test_a_tree_is_not_used_for_dtypes_that_it_was_not_measured_with(models, gpus) -> None:
    kernel = make_kernel(models=models)
    call(kernel, 3, 100, tensor(1, dtype=torch.float32))  # a choice of the op, not in the data
    call(kernel, 3, 100, tensor(1, dtype=torch.float16))  # not even a choice
    kernel[(1,)](tensor(1), tensor(1, dtype=torch.float32), 3, 100, 2.0)
    assert ran(kernel) == options(OP.vendor) * 3
    assert kernel.counts() == {"outside dtype": 1, "dtype fp16": 1, "dtype bf16_fp32": 1}


def test_keys_may_be_other_integers_and_nothing_else(models, gpus) -> None:
    kernel = make_kernel(models=models)
    call(kernel, np.int64(3), np.int32(2048))
    assert ran(kernel) == options(SMALL)
    for wrong in (2.5, "3", None, True, torch.tensor(3)):
        with pytest.raises(InvalidProblemError, match="scale"):
            call(kernel, wrong, 2048)
    assert len(kernel.fn.launched) == 1


def test_what_is_no_problem_runs_the_default(models, gpus) -> None:
    kernel = make_kernel(models=models)
    call(kernel, 0, 100)  # an empty tensor: an empty launch
    call(kernel, 2**31, 100)
    assert ran(kernel) == options(OP.vendor, OP.vendor)
    assert kernel.counts() == {"no problem": 2} and kernel.missed() == []


def test_rules_hold_while_serving_too(models, gpus) -> None:
    kernel = make_kernel(models=models)
    call(kernel, 3000, 100)  # LARGE would have a block longer than four rows
    assert ran(kernel) == options(OP.vendor)
    assert kernel.counts() == {"illegal favourite": 1}


def test_arguments_come_by_position_or_by_name(models, gpus) -> None:
    kernel = make_kernel(models=models)
    x, y = tensor(1), tensor(2)
    kernel[(7,)](x, y, 3, 2048, 2.0)
    kernel[(7,)](x, y, columns=2048, rows=3, factor=2.0)
    for grid, arguments in kernel.fn.launched:
        assert grid == (7,)
        assert arguments == {"x": x, "y": y, "rows": 3, "columns": 2048, "factor": 2.0, **OP.options(SMALL)}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "it was not given x, y, rows, columns, factor"),
        ((1, 2, 3), {"rows": 3}, "it was given an argument twice, or too many"),
        (range(9), {}, "it was given an argument twice, or too many"),
        (range(6), {}, "it was given BLOCK, which its configs set; pass what comes after them by name"),
        (range(5), {"num_warps": 4}, "it was given num_warps, which its configs set"),
        (range(5), {"colums": 4}, "it was given colums"),
        (range(5), {}, "launched without a tensor"),
    ],
)
def test_calls_that_do_not_fit_are_refused(args, kwargs, message) -> None:
    with pytest.raises(KernelError, match=re.escape(message)):
        make_kernel()[(1,)](*args, **kwargs)


def test_a_tree_of_another_space_or_op_is_refused(models, gpus) -> None:
    other = make_kernel(space={"BLOCK": (256, 512), "num_warps": (4,), "num_stages": (1,)}, models=models)
    with pytest.raises(ArtifactError, match="is for config space"):
        Predictor.load(other.op, path=models / "scale" / "h200")
    with pytest.warns(UserWarning, match="its rules or kernels changed since"):
        call(other, 3, 2048)
    for name in ("scale", "gemm"):
        with pytest.raises(KernelError, match="not loaded for its own; write"):
            other.use(Predictor.load(name, "h200", path=models / "scale" / "h200" if name == "scale" else None))


class FakeDriver:
    """Triton's driver as far as launches ask it, and a kernel that notes how it was compiled and run."""

    def __init__(self, kernel: Any) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.runs: list[tuple[Any, ...]] = []
        self.device = 0
        self.active = self
        kernel.fn.warmup, kernel.fn.pre_run_hooks = self.warmup, []
        kernel._launches._direct = True

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 77

    def warmup(self, *, grid: Any, **arguments: Any) -> Any:
        self.compiled.append(arguments)
        return SimpleNamespace(run=lambda *given: self.runs.append(given), function="f", packed_metadata="meta")


@pytest.fixture
def direct(models, gpus, monkeypatch):
    """A kernel whose launches go past Triton's."""
    kernel = make_kernel(models=models)
    driver = FakeDriver(kernel)
    monkeypatch.setattr(launches, "driver", driver)
    return kernel, driver


def test_a_compiled_kernel_is_launched_directly(direct) -> None:
    kernel, driver = direct
    x = tensor(4)
    seen = []

    def grid(meta):
        seen.append(meta)
        return meta["rows"], 2

    for _ in range(2):
        kernel[grid](x, x, 3, 2048, 2.0)
    assert len(driver.compiled) == 1 and kernel.fn.launched == []
    assert driver.runs == [(3, 2, 1, 77, "f", "meta", None, None, None, x, x, 3, 2048, 2.0, 64)] * 2
    assert seen[0] == {"x": x, "y": x, "rows": 3, "columns": 2048, "factor": 2.0, "BLOCK": 64}


def test_what_triton_compiles_anew_for_is_compiled_anew(direct) -> None:
    kernel, driver = direct
    whole = tensor(64)
    calls = [
        (whole, 3, 2048, 2.0),
        (whole[1:], 3, 2048, 2.0),  # an odd address
        (whole, 1, 2048, 2.0),  # 1 is a constant
        (whole, 16, 2048, 2.0),  # a multiple of 16
        (whole, 3, 2047, 2.0),
        (whole, 3, 2048, 2),  # an integer
        (whole, 3, 2048, 2**40),  # a wide one
        (whole, 17, 2048, 2.0),  # another config
    ]
    for x, rows, columns, factor in calls:
        kernel[(1,)](x, whole, rows, columns, factor)
        kernel[(1,)](x, whole, rows, columns, factor)
    assert len(driver.compiled) == len(calls) and len(driver.runs) == 2 * len(calls)
    kernel[(1,)](whole, whole, 5, 4080, 3.0)
    kernel[(1,)](whole[8:], whole, 15, 2048, 3.0)
    assert len(driver.compiled) == len(calls)


def test_the_rest_goes_tritons_way(direct) -> None:
    kernel, driver = direct
    x = tensor(1)
    kernel[(1,)](x, x, 3, 2048, np.float32(2.0))  # Triton knows what it is
    driver.device = 1  # not the tensors'
    call(kernel, 3, 2048)
    driver.device = 0
    kernel.fn.pre_run_hooks.append(print)
    call(kernel, 3, 2048)
    assert len(kernel.fn.launched) == 3 and driver.runs == []


def test_prepare_compiles_all_that_may_run(direct) -> None:
    kernel, driver = direct
    x = tensor(1)
    assert kernel.prepare(x, x, 3, 2048, 2.0) == 3
    call(kernel, 3, 2048)
    call(kernel, 19, 2048)
    call(kernel, 4099, 2048)
    assert {arguments["BLOCK"] for arguments in driver.compiled} == {64, 256, 1024}
    assert len(driver.compiled) == 3 and len(driver.runs) == 3
    assert kernel.prepare(x, x, 3, 100, 2.0) == 2  # a rule forbids the long block


def test_constants_of_the_call_and_configs_may_stand_in_any_order(gpus, monkeypatch, tmp_path) -> None:
    def mixed(x, BLOCK: tl.constexpr, rows, WIDE: tl.constexpr, y=None):  # noqa: F821 # type: ignore
        """A kernel."""

    kernel = adaptive(space={"BLOCK": (8,)}, key=("rows",), bytes_moved="rows", models=tmp_path)(FakeJit(mixed))
    driver = FakeDriver(kernel)
    monkeypatch.setattr(launches, "driver", driver)
    x = tensor(1)
    with pytest.warns(UserWarning):
        for wide in (7, 7, 9):
            kernel[(1,)](x, rows=5, WIDE=wide)
    assert [run[9:] for run in driver.runs] == [(x, 8, 5, 7, None), (x, 8, 5, 7, None), (x, 8, 5, 9, None)]
    assert len(driver.compiled) == 2  # the value of a constant is part of the kernel


class RecordingDriver:
    """A driver of Triton's for an H200 that is not there: kernels are compiled, and launches noted."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.loaded: list[bytes] = []
        self.utils = SimpleNamespace(
            load_binary=self.load_binary, get_device_properties=lambda device: {"max_shared_mem": 232448}
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 77

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *given: self.launches.append(given)

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.loaded.append(code)
        return "module", len(self.loaded), 32, 0, 1024


@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_direct_launch_is_given_what_triton_gives(models, rows, aligned) -> None:
    """The same kernel, grid, stream and arguments; nothing is compiled or loaded for it a second time."""
    from tests.integrations.own_kernels import scale

    driver = RecordingDriver()
    triton_driver.set_active(driver)  # type: ignore[arg-type]
    try:
        fresh = triton.JITFunction(scale.fn.fn)
        kernel = adaptive(**SAID, models=models)(fresh)
        kernel.use(Predictor.load(kernel.op, path=models / "scale" / "h200"))
        x = tensor(64)[0 if aligned else 1 :]
        config = SMALL if rows <= 16 else LARGE
        fresh[lambda meta: (meta["rows"],)](x, x, rows, 2048, 2.0, **OP.options(config))
        kernel[lambda meta: (meta["rows"],)](x, x, rows, 2048, 2.0)
        kernel[(rows,)](x, x, rows=rows, columns=2048, factor=2.0)
    finally:
        triton_driver._active = None
    first, *rest = [(*launch[:6], *launch[9:]) for launch in driver.launches]
    assert len(rest) == 2 and all(launch == first for launch in rest)
    assert first[:5] == (rows, 1, 1, 77, 1) and len(driver.loaded) == 1
    assert [launch[6:9] for launch in driver.launches[1:]] == [(None, None, None)] * 2  # not through Triton


def test_heuristics_still_derive_constants(gpus, tmp_path) -> None:
    def padded(x, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):  # noqa: F821 # type: ignore
        """A kernel."""

    jit = FakeJit(padded)
    jit.arg_names = ["x", "n", "BLOCK", "EVEN"]  # type: ignore[attr-defined]
    derived = triton.heuristics({"EVEN": lambda given: given["n"] % given["BLOCK"] == 0})(jit)
    launched = []
    jit.run = lambda *args, grid, warmup, **arguments: launched.append(arguments)
    kernel = adaptive(space={"BLOCK": (8,)}, key=("n",), bytes_moved="n", models=tmp_path)(derived)
    x = tensor(1)
    with pytest.warns(UserWarning):
        kernel[(1,)](x, 16)
        kernel[(1,)](x, n=12)
    assert [(given["n"], given["BLOCK"], given["EVEN"]) for given in launched] == [(16, 8, True), (12, 8, False)]


@pytest.mark.gpu
def test_on_a_gpu_a_direct_launch_is_tritons(models) -> None:
    from tests.integrations.own_kernels import scale

    device = torch.device("cuda")
    scale.use(_for_any_gpu(models), 0)
    for rows, columns in ((1, 100), (16, 128), (17, 1000), (300, 4096), (3, 9000)):
        storage = torch.randn(rows * columns + 1, device=device, dtype=torch.bfloat16)
        for x in (storage[:-1], storage[1:]):
            y = torch.full_like(x, torch.nan)
            scale[lambda meta: (meta["rows"],)](x, y, rows, columns, 2.0)
            torch.testing.assert_close(y, x * 2)
            y.fill_(torch.nan)
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                scale[(rows,)](x, y, rows, columns, 3.0)
                torch.cuda.current_stream().synchronize()
            torch.testing.assert_close(y, x * 3)
    assert scale._launches._compiled  # the direct way was gone


@pytest.mark.gpu
def test_on_a_gpu_launches_are_captured(models) -> None:
    from tests.integrations.own_kernels import scale

    scale.use(_for_any_gpu(models), 0)
    x = torch.randn(32, 256, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    assert scale.prepare(x, y, 32, 256, 2.0) >= 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scale[(32,)](x, y, 32, 256, 2.0)
    y.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(y, x * 2)


def _for_any_gpu(models: Path) -> Predictor:
    return Predictor.load(OP, path=models / "scale" / "h200")
