"""What a user installs: little, complete, and cheap to import."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import aks

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {
    "torch",
    "triton",
    "numpy",
    "pandas",
    "pyarrow",
    "xgboost",
    "sklearn",
    "mlflow",
    "matplotlib",
    "jinja2",
    "scipy",
}


def modules_after(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``statements``."""
    code = f"import sys, json\n{statements}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_aks_costs_nothing_heavy():
    assert not modules_after("import aks") & (HEAVY | {"typer", "rich"})


def test_specs_and_predictor_cost_nothing_heavy():
    assert not modules_after("import aks; aks.OPS; aks.Predictor; aks.find_device('h200')") & (
        HEAVY | {"typer", "rich"}
    )


def test_the_command_line_starts_light():
    assert not modules_after("import aks.cli") & HEAVY


def test_public_names_are_loaded_when_used():
    assert set(aks.__all__) <= set(dir(aks))
    assert all(getattr(aks, name) is not None for name in aks.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", aks.__version__)
    with pytest.raises(AttributeError, match="no attribute 'linaer'"):
        _ = aks.linaer


def test_the_base_install_needs_the_command_line_parser_alone():
    assert [Requirement(text).name for text in PROJECT["dependencies"]] == ["typer"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_every_dependency_is_pinned_inside_its_range():
    pins = constraints()
    texts = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in (requirement for requirement in map(Requirement, texts) if requirement.name != "aks"):
        assert requirement.name in pins, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(pins[requirement.name]), requirement


BUILD = """
import sys
from scikit_build_core.build import build_wheel
build_wheel(sys.argv[1], {"wheel.cmake": sys.argv[2], "build-dir": sys.argv[1] + "/build"})
"""


def build_wheel(folder: Path, *, native: bool) -> Path:
    """The wheel that ``pip wheel .`` would make, unpacked; native: with the C++ module."""
    pytest.importorskip("scikit_build_core")
    command = [sys.executable, "-c", BUILD, str(folder), str(native).lower()]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel as it is where there is no C++ compiler."""
    return build_wheel(tmp_path_factory.mktemp("wheel"), native=False)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    tracked = [path for path in (ROOT / "aks").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    built = {path for path in tracked if path.suffix == ".so"}  # of a checkout; ignored by git
    missing = [path for path in tracked if path not in built and not (wheel / path.relative_to(ROOT)).exists()]
    assert not missing
    assert not list(wheel.rglob("*.so"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("cmake") is None, reason="needs c++ and cmake")
def test_a_wheel_has_the_native_module_where_there_is_a_compiler(tmp_path):
    pytest.importorskip("nanobind")
    wheel = build_wheel(tmp_path, native=True)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from aks.runtime import native; print(native.is_built())"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(wheel)], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
    assert {path.name for path in (wheel / "aks/runtime/native").iterdir()} >= {"aks.h", "libaks.so", "example.c"}


def test_the_wheel_holds_the_shipped_models(wheel):
    found = (path.relative_to(ROOT) for path in (ROOT / "models").rglob("*.json"))
    # What git ignores, training left there.
    shipped = [path for path in found if "versions" not in path.parts and path.name != "xgboost.json"]
    assert shipped
    assert all((wheel / "aks" / path).exists() for path in shipped)


def test_the_wheel_predicts_on_the_standard_library_alone(wheel):
    """-I and -S: no site-packages, no checkout on the path."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from aks.runtime import Predictor\n"
        "config = Predictor.load('gemm', device='h200').predict(m=16, n=4096, k=4096)\n"
        "print(config.key())"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    keys = {config.key() for config in aks.OPS["gemm"].space.configs}
    assert done.stdout.strip() in keys
