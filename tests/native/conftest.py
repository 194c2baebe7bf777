"""What tests of the native dispatcher share: the stand-in driver, and kernels that are loaded on it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aks.core.bundle import read_bundle
from aks.runtime import native

HERE = Path(__file__).parent
CC = shutil.which("cc") or shutil.which("gcc")

needs_module = pytest.mark.skipif(not native.is_built(), reason="the native module is not built")


class Standin:
    """The stand-in driver in this process, as ``path`` and by its own functions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library: Any = ctypes.CDLL(str(path))
        self.library.standin_last.restype = ctypes.c_char_p
        self.library.standin_fail.argtypes = (ctypes.c_char_p, ctypes.c_int)

    def load(self, folder: Path, index: int = 0, cublaslt: StandinLt | None = None) -> native.Kernels:
        """The folder's kernels on it, with a cuBLASLt or none."""
        paths = [str(cublaslt.path)] if cublaslt else []
        kernels = native.load_kernels(read_bundle(folder), index, str(self.path), paths)
        assert kernels is not None
        return kernels

    def last(self) -> str:
        """What this thread launched last."""
        return self.library.standin_last().decode()

    def set(self, version: int = 13000, capability: int = 90, sm_count: int = 132) -> None:
        """The version of the driver, and its GPU."""
        self.library.standin_set(version, capability, sm_count)

    def fail(self, call: str, after: int = 0) -> None:
        """Let a call fail once, after so many that do not."""
        self.library.standin_fail(call.encode(), after)

    def reset(self) -> None:
        """As it was."""
        self.set()
        self.library.standin_capture(0)
        self.library.standin_quiet(0)
        self.fail("", -1)


class StandinLt:
    """The stand-in cuBLASLt in this process; Python's path, by ctypes, can run on it too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library: Any = ctypes.CDLL(str(path))
        for name in ("query", "last"):
            getattr(self.library, f"standin_lt_{name}").restype = ctypes.c_char_p

    def query(self) -> str:
        """What this thread asked last."""
        return self.library.standin_lt_query().decode()

    def last(self) -> str:
        """What this thread launched last."""
        return self.library.standin_lt_last().decode()

    def set(self, found: int = 100, unusable: int = 0, query: int = 0, matmul: int = 0) -> None:
        """How many algorithms it has at most, which (as bits) are unusable, and statuses that it answers."""
        self.library.standin_lt_set(found, unusable, query, matmul)

    def probe(self, function: Any) -> None:
        """Call a C function, ``int f(void)``, at each query and matmul; ``probed`` has the last answers."""
        self.library.standin_lt_probe(ctypes.cast(function, ctypes.c_void_p))

    def probed(self) -> tuple[int, int]:
        """Of the last query and the last matmul of this thread."""
        return self.library.standin_lt_probed(0), self.library.standin_lt_probed(1)

    def objects(self) -> int:
        """Handles, descriptions and preferences that are alive."""
        return self.library.standin_lt_objects()


def build_standin(folder: Path, name: str = "standin.so", source: str = "standin.c") -> Path:
    """The stand-in as a shared library."""
    path = folder / name
    command = [str(CC), "-std=c11", "-Wall", "-shared", "-fPIC", str(HERE / source), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="session")
def built_standin(tmp_path_factory) -> Standin:
    if CC is None:
        pytest.skip("needs a C compiler")
    return Standin(build_standin(tmp_path_factory.mktemp("standin")))


@pytest.fixture
def standin(built_standin: Standin):
    built_standin.reset()
    yield built_standin
    built_standin.reset()


@pytest.fixture(scope="session")
def built_standin_lt(tmp_path_factory) -> StandinLt:
    if CC is None:
        pytest.skip("needs a C compiler")
    return StandinLt(build_standin(tmp_path_factory.mktemp("standin_lt"), "standin_lt.so", "standin_lt.c"))


@pytest.fixture
def standin_lt(built_standin_lt: StandinLt):
    built_standin_lt.set()
    built_standin_lt.probe(None)
    yield built_standin_lt
    built_standin_lt.set()
