"""aks.h: the example program in C, built and run on the stand-in driver; errors; our declarations against cuda.h."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aks.ops.gemm.spec import GEMM
from aks.runtime.predictor import Predictor
from tests.kernels import export_fake
from tests.native.conftest import CC, HERE, build_standin
from tests.native.test_native import GEMM_SELECTOR, shipped_selector

NATIVE = HERE.parents[1] / "aks" / "runtime" / "native"
NAMES = ("json", "driver", "table", "cublaslt", "products", "answers", "kernels", "folder", "aks")
SOURCES = [str(NATIVE / "src" / f"{name}.cpp") for name in NAMES]
CXX = shutil.which("c++") or shutil.which("g++")
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-pedantic"]

pytestmark = pytest.mark.skipif(CC is None or CXX is None, reason="needs C and C++ compilers")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=os.environ | environment)


def build(*command: object) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """A folder with libaks.so, the example, and stand-ins for libcuda.so.1 and libcublasLt.so.13."""
    folder = tmp_path_factory.mktemp("aks_h")
    build(CXX, "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DAKS_BUILDING", *WARNINGS, *SOURCES,
          "-o", folder / "libaks.so", "-ldl")  # fmt: skip
    build_standin(folder, "libcuda.so.1")
    build_standin(folder, "libcublasLt.so.13", "standin_lt.c")
    build(CC, "-std=c99", *WARNINGS, NATIVE / "example.c", f"-I{NATIVE}", f"-L{folder}", "-laks",
          folder / "libcuda.so.1", f"-Wl,-rpath,{folder}", "-o", folder / "example")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return export_fake(tmp_path_factory.mktemp("bundle"), shipped_selector(GEMM_SELECTOR))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 4096, 4096), (16, 2880, 4096), (64, 4096, 4096), (5000, 4096, 4096), (40_000, 64, 64)]
)
def test_the_example_runs(m: int, n: int, k: int, programs: Path, bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "launches"
    done = run(programs / "example", bundle, m, n, k, LD_LIBRARY_PATH=str(programs), STANDIN_LOG=str(log))
    assert done.returncode == 0, done.stderr
    predictor = Predictor.load(GEMM, path=bundle)
    chosen = predictor.select(m, n, k, static_weights=True)
    config = predictor.configs[chosen]
    product = GEMM.launch_spec.product
    if GEMM.launch_spec.config_has_kernel(config) or (product and product.algorithm_of(config) is not None):
        assert done.stdout == f"selected config {chosen}\nlaunched config {chosen}\n"
    if GEMM.launch_spec.config_has_kernel(config):
        assert f"| {config.key()} (" in log.read_text()
    elif config == GEMM.vendor:
        assert done.stdout == f"selected config {chosen}\nleft to the vendor's library: config {chosen}\n"
        assert not log.exists()


def test_errors_are_codes_and_messages(programs: Path, bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    code = (broken / "kernels.bin").read_bytes()
    for change, what in [
        (lambda: (broken / "kernels.bin").write_bytes(b"!" + code[1:]), "kernels.bin was altered"),
        (lambda: (broken / "kernels.bin").unlink(), "kernels.bin cannot be read"),
        (lambda: (broken / "manifest.json").write_text("{}"), "manifest.json was altered"),
        (lambda: (broken / "manifest.json").unlink(), "manifest.json cannot be read"),
    ]:
        change()
        done = run(programs / "example", broken, 1, 64, 64, LD_LIBRARY_PATH=str(programs))
        assert done.returncode == 1 and what in done.stderr and "export it again" in done.stderr


def test_codes(programs: Path, bundle: Path, tmp_path: Path) -> None:
    library = ctypes.CDLL(str(programs / "libaks.so"))
    library.aks_message.restype = ctypes.c_char_p
    kernels, config = ctypes.c_void_p(), ctypes.c_int()
    assert library.aks_load(str(tmp_path).encode(), 0, ctypes.byref(kernels)) == 2
    assert b"manifest.json cannot be read" in library.aks_message()
    assert library.aks_load(None, 0, ctypes.byref(kernels)) == 5
    values = (ctypes.c_int64 * 3)(1, 2, 3)
    assert library.aks_select(None, values, ctypes.c_size_t(3), ctypes.byref(config)) == 5
    library.aks_unload(None)
    exported = run("nm", "-D", "--defined-only", programs / "libaks.so").stdout
    if exported:  # only what the header says, and what C++ shares
        names = {line.split()[-1] for line in exported.splitlines() if " T " in line}
        assert {name for name in names if not name.startswith("_Z")} == {
            "aks_load", "aks_unload", "aks_select", "aks_launch", "aks_prepare", "aks_problem_count", "aks_call_count",
            "aks_message",
        }  # fmt: skip


LAYOUTS = """
#include <cstddef>
#include "cuda.h"
#include "driver.hpp"
namespace ours = aks::cuda;
static_assert(sizeof(ours::LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(ours::LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(ours::LaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(ours::LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(ours::LaunchConfig, num_attributes) == offsetof(CUlaunchConfig, numAttrs));
static_assert(sizeof(ours::LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(ours::LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(ours::TensorMap) == sizeof(CUtensorMap) && alignof(ours::TensorMap) >= alignof(CUtensorMap));
static_assert(sizeof(ours::Pointer) == sizeof(CUdeviceptr) && sizeof(ours::Device) == sizeof(CUdevice));
static_assert(ours::kEarlyStart == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
static_assert(ours::kMultiprocessorCount == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(ours::kCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(ours::kCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(ours::kSharedBytesPerBlock == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(ours::kMaxDynamicSharedBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(ours::kPreferShared == CU_FUNC_CACHE_PREFER_SHARED);
static_assert(ours::kL2Promotion128 == CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
static_assert(ours::kNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(ours::kCaptureRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(CUDA_SUCCESS == 0 && CU_STREAM_CAPTURE_STATUS_NONE == 0 && CU_TENSOR_MAP_INTERLEAVE_NONE == 0);
"""


DLPACK_LAYOUTS = """
#include <cstddef>
#include "ATen/dlpack.h"
#include "dlpack.hpp"
namespace ours = aks::dlpack;
static_assert(DLPACK_MAJOR_VERSION == ours::kMajorVersion && kDLFloat == ours::kFloat && kDLBfloat == ours::kBfloat);
static_assert(sizeof(ours::Tensor) == sizeof(DLTensor) && sizeof(ours::ExchangeApi) == sizeof(DLPackExchangeAPI));
static_assert(offsetof(ours::Tensor, device_type) == offsetof(DLTensor, device));
static_assert(offsetof(ours::Tensor, dimensions) == offsetof(DLTensor, ndim));
static_assert(offsetof(ours::Tensor, type_code) == offsetof(DLTensor, dtype));
static_assert(offsetof(ours::Tensor, shape) == offsetof(DLTensor, shape));
static_assert(offsetof(ours::Tensor, strides) == offsetof(DLTensor, strides));
static_assert(offsetof(ours::Tensor, byte_offset) == offsetof(DLTensor, byte_offset));
static_assert(offsetof(ours::ExchangeApi, previous) == offsetof(DLPackExchangeAPI, header.prev_api));
static_assert(offsetof(ours::ExchangeApi, lend) == offsetof(DLPackExchangeAPI, dltensor_from_py_object_no_sync));
"""


@pytest.mark.parametrize(
    ("package", "folder", "header", "layouts"),
    [
        ("triton", "backends/nvidia/include", "cuda.h", LAYOUTS),
        ("torch", "include", "ATen/dlpack.h", DLPACK_LAYOUTS),
    ],
)
def test_our_declarations_are_those_of(package: str, folder: str, header: str, layouts: str, tmp_path: Path) -> None:
    spec = importlib.util.find_spec(package)
    headers = Path(str(spec.origin)).parent / folder if spec else tmp_path
    if not (headers / header).exists():
        pytest.skip(f"needs {header}, which {package} brings")
    source = tmp_path / "layouts.cpp"
    source.write_text(layouts)
    build(CXX, "-std=c++20", "-fsyntax-only", f"-I{headers}", f"-I{NATIVE / 'src'}", source)
