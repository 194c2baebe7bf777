"""The command line: help with examples, and bad input as one line, exit code 2 and no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from aks.cli import EXTRAS, app, main
from aks.cli.options import split_integers, split_words
from aks.cli.problem import parse_problem
from aks.core.device import find_device
from aks.core.errors import InvalidProblemError
from aks.export.bundle import export
from aks.ops import OPS
from aks.runtime.predictor import Predictor
from tests.data.test_autoheuristic import ATEN, TRITON, record, written
from tests.selectors import random_selector, write_selector

ROOT = Path(__file__).parent.parent
COMMANDS = ["collect", "train", "export", "evaluate", "stability", "explain", "report", "doctor", "devices"]
COMMANDS += ["bench", "calibrate", "data", "import"]
LEAVES = [
    *((name,) for name in COMMANDS if name not in ("bench", "data", "import")),
    ("bench", "decode"),
    ("bench", "dispatch"),
    ("bench", "serving"),
    *(("data", name) for name in ("list", "check", "merge", "problems", "sentinels")),
    ("import", "autoheuristic"),
    ("calibrate", "simulate"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """As the folder of shipped models, with one tree in it."""
    folder = tmp_path_factory.mktemp("models")
    selector = random_selector()
    selector["dataset"]["held_out_families"] = ["llama-3"]
    export(write_selector(folder, selector), folder / "gemm" / "h200")
    return folder


@pytest.fixture
def aks(capsys, monkeypatch, tmp_path, models):
    """A call of ``aks`` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("AKS_MODELS", str(models))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aks", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_help_lists_every_command(aks):
    code, out, _ = aks("--help")
    assert code == 0
    assert re.findall(r"^│ (\w+) +[A-Z]", out, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_shows_examples_that_it_accepts(aks, words):
    code, out, _ = aks(*words, "--help")
    assert code == 0
    examples = re.findall(rf"^ +(aks {' '.join(words)}.*?) *$", out.partition("Examples:")[2], re.MULTILINE)
    assert examples
    command = _command(words)
    for example in examples:
        # Parsing alone: the command itself is not run, and files need not exist.
        arguments = [word for word in example.split()[1 + len(words) :]]
        options = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        assert {word for word in arguments if word.startswith("-")} <= options, example


@pytest.mark.parametrize("entry", ["collect", "train", "evaluate"])
def test_mlflow_entry_points_are_commands(entry):
    point = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"][entry]
    command = point["command"]
    assert command.split()[:2] == ["aks", entry]
    known = {option for parameter in _command((entry,)).params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
    assert set(re.findall(r"{(\w+)}", command)) == set(point["parameters"])


def _command(words) -> Any:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return command


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_option_is_explained(words):
    for parameter in _command(words).params:
        assert getattr(parameter, "help", None), f"{' '.join(words)} {parameter.name}"


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", out + err).split())
    assert code == 2
    assert "Traceback" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["explain", "conv", "m=1"], ["no op 'conv'; known: fp8_gemm, fused_linear, gemm"]),
        (["explain", "gemm", "m=-1", "n=64", "k=64"], ["m=-1", "from 1 to 2147483647"]),
        (["explain", "gemm", "m=1.5", "n=64", "k=64"], ["m='1.5'", "from 1 to 2147483647"]),
        (["explain", "gemm", "m=1", "n=64"], ["lacks k", "write m=16 n=4096 k=4096"]),
        (["explain", "gemm", "16", "4096", "4096"], ["'16'", "name=value"]),
        (["explain", "gemm", "m=1", "m=2", "n=64", "k=64"], ["given twice"]),
        (["explain", "gemm", "m=1", "n=64", "k=64", "depth=3"], ["'depth=3'", "static_weights"]),
        (["explain", "gemm", "m=1", "n=64", "k=64", "dtype=fp7"], ["dtype='fp7'", "bf16"]),
        (["explain", "gemm", "m=1", "n=64", "k=64", "--device", "abacus"], ["abacus"]),
        (["explain", "gemm", "m=1", "n=64", "k=64", "--model", "nowhere"], ["nowhere"]),
        (["collect", "--op", "conv"], ["no op 'conv'"]),
        (["collect", "--device", "abacus"], ["no DeviceSpec for 'abacus'", "devices.toml"]),
        (["collect", "--families", "llama-99"], ["'llama-99'", "llama-3"]),
        (["collect", "--dtypes", "fp7"], ["fp7", "bf16"]),
        (["collect", "--regimes", "tepid"], ["tepid", "cold, warm, chain"]),
        (["collect", "--problems", "none.csv"], ["none.csv"]),
        (["collect", "--from-model", "no_such_module:make"], ["no_such_module"]),
        (["collect", "--num-problems", "0"], ["--num-problems"]),
        (["collect", "--sms", "0"], ["--sms"]),
        (["train", "--op", "conv"], ["no op 'conv'"]),
        (["train", "--data", "none.parquet"], ["none.parquet"]),
        (["train", "--max-portfolio", "91"], ["--max-portfolio", "90"]),
        (["export", "none.json"], ["none.json", "aks train"]),
        (["export", "none.json", "--device", "abacus"], ["no DeviceSpec for 'abacus'"]),
        (["evaluate", "--data", "none.parquet"], ["none.parquet"]),
        (["stability", "--data", "none.parquet"], ["none.parquet"]),
        (["data", "list"], ["no file of measurements", "aks collect"]),
        (["data", "check", "none.parquet"], ["none.parquet"]),
        (["data", "merge", "none.db", "--out", "x.parquet"], ["none.db"]),
        (["data", "problems", "none.db", "--out", "x.csv"], ["none.db"]),
        (["import", "autoheuristic", "none.parquet"], ["none.parquet", "mat1_stride_0"]),
        (["bench", "decode", "--steps", "0"], ["--steps"]),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_bad_input_is_refused_in_a_line(aks, words, parts):
    assert_refused(aks(*words), *parts)


@pytest.mark.parametrize(
    "words",
    [
        ["collect", "--problems", "FILE"],
        ["train", "--data", "FILE"],
        ["export", "FILE"],
        ["evaluate", "--data", "FILE"],
        ["data", "check", "FILE"],
        ["data", "merge", "FILE", "--out", "x.parquet"],
        ["import", "autoheuristic", "FILE"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_empty_file_is_refused_by_name(aks, words, tmp_path):
    (tmp_path / "empty").touch()
    assert_refused(aks(*("empty" if word == "FILE" else word for word in words)), "empty")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("torch", ["collect"]),
        ("xgboost", ["train"]),
        ("mlflow", ["train"]),
        ("pandas", ["evaluate"]),
        ("jinja2", ["report"]),
        ("pyarrow", ["data", "check", "x.parquet"]),
        ("transformers", ["bench", "decode"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_extra_is_named(module, words, tmp_path):
    """As on a machine without it: the import system is told that the module is not there."""
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv[1:] = {words!r}; from aks.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    extra = next(extra for extra, modules in EXTRAS.items() if module in modules)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'aks[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_ours_is_not_disguised(monkeypatch):
    """A module that no extra brings is a bug, and must be seen as one."""
    monkeypatch.setattr("aks.cli.app", lambda: __import__("no_such_module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main()


def test_collecting_passes_on_what_was_asked(aks, monkeypatch, tmp_path):
    """All options, with a GPU and a runner that only pretend."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("aks.core.device.current_device", lambda: find_device("h200"))
    monkeypatch.setattr("aks.collect.runner.collect", lambda op, workloads, **rest: asked.update(rest, work=workloads))
    (tmp_path / "shapes.csv").write_text("m,n,k\n16,64,128\n1,64,128\n")
    selector = write_selector(tmp_path, random_selector())

    options = ["--problems", "shapes.csv", "--regimes", "cold,chain", "--minutes", "1.5", "--out", "x.db"]
    code, _, err = aks("collect", *options, "--configs-from", str(selector), "--device", "NVIDIA H200")
    assert code == 0, err
    assert {(one.problem.m, one.problem.n, one.problem.k) for one in asked["work"]} == {(16, 64, 128), (1, 64, 128)}
    assert asked["regimes"] == ["cold", "chain"]
    assert (asked["minutes"], asked["out"], asked["device"].name) == (1.5, Path("x.db"), "h200")
    assert [config.to_row() for config in asked["configs"]] == json.loads(selector.read_text())["portfolio"]

    code, _, err = aks("collect", "--families", "llama-3,sample", "--num-problems", "20", "--dtypes", "fp16")
    assert code == 0, err
    assert len(asked["work"]) == 20
    assert {family for one in asked["work"] for family in one.families} >= {"llama-3", "sample"}
    assert {one.problem.dtype for one in asked["work"]} == {"fp16"}
    assert asked["configs"] is None

    assert_refused(aks("collect", "--device", "a100-sxm4-80gb"), "132 SMs", "'a100-sxm4-80gb' has 108 of 80")


def test_what_a_file_has_is_collected_again_with_its_configs(aks, monkeypatch, tmp_path):
    asked: dict[str, Any] = {}
    monkeypatch.setattr("aks.core.device.current_device", lambda: find_device("h200"))
    monkeypatch.setattr(
        "aks.collect.runner.collect", lambda op, workloads, **rest: asked.update(rest, op=op, work=workloads)
    )
    rows = [
        record(m, **knobs, device=device)
        for m in (16, 64, 4096)
        for device, knobs in (("a100", ATEN), ("h100", TRITON))
    ]
    written(tmp_path / "records.parquet", *rows, record(16, dtype="bfloat16"))
    code, _, err = aks("import", "autoheuristic", "records.parquet", "--out", "made.parquet")
    assert code == 0, err
    for file in ("made.parquet", "records.parquet"):
        code, _, err = aks("collect", "--same-as", file, "--max-flops", "1e9", "--dtypes", "fp16")
        assert code == 0, err
        assert asked["op"].name == "mm"
        assert {(one.problem.m, one.problem.dtype) for one in asked["work"]} == {(16, "fp16"), (64, "fp16")}
        assert {one.families for one in asked["work"]} == {("autoheuristic",)}
        assert {config.kind for one in asked["work"] for config in asked["configs"][one.problem]} == {"aten", "triton"}
    assert aks("collect", "--same-as", "made.parquet")[0] == 0
    assert len(asked["work"]) == 4
    aks("collect", "--same-as", "made.parquet", "--num-problems", "2")
    assert len(asked["work"]) == 2

    assert_refused(aks("collect", "--same-as", "made.parquet", "--problems", "x.csv"), "--same-as says what")
    (tmp_path / "text.parquet").write_text("m,n,k")
    assert_refused(aks("collect", "--same-as", "text.parquet"), "text.parquet is no Parquet file")


def test_export_goes_where_shipped_models_are(aks, tmp_path):
    write_selector(tmp_path, random_selector())
    code, out, err = aks("export", "selector.json")
    assert code == 0, err
    assert "written to models/gemm/h200" in out
    assert (tmp_path / "models/gemm/h200/manifest.json").is_file()
    code, out, err = aks("export", "selector.json", "--device", "NVIDIA A100-SXM4-80GB")
    assert code == 0, err
    assert (tmp_path / "models/gemm/a100-sxm4-80gb/tree.h").is_file()


def test_explain_says_what_runs_and_why(aks, models):
    code, out, err = aks("explain", "gemm", "m=16", "n=4096", "k=4096", "static_weights=true")
    assert code == 0, err
    predictor = Predictor.load("gemm", path=models / "gemm/h200")
    assert f"runs      {predictor.predict(16, 4096, 4096, static_weights=True).key()}" in out
    assert "static_weights=True" in out.splitlines()[0]
    assert aks("explain", "gemm", "m=1", "n=64", "k=64", "--model", str(models / "gemm/h200"))[0] == 0


def test_devices_are_listed(aks):
    code, out, _ = aks("devices")
    assert code == 0
    assert "h200" in out


def test_a_problem_is_read_from_words():
    op = OPS["gemm"]
    problem = parse_problem(op, ["m=16", "n=4096", "k=64", "dtype=FP16", "static_weights=true", "alignment=8"])
    wanted = {"m": 16, "n": 4096, "k": 64, "dtype": "fp16", "alignment": 8, "static_weights": True}
    assert problem == op.problem_type.from_row(wanted)
    with pytest.raises(InvalidProblemError, match="static_weights='maybe'"):
        parse_problem(op, ["m=1", "n=1", "k=1", "static_weights=maybe"])


def test_lists_of_words_and_integers():
    assert split_words("cold, warm,", "regime", ["cold", "warm"]) == ["cold", "warm"]
    assert split_integers("1,2", "m") == [1, 2]
    for text in ("", ",", "1,-2", "1;2", "many"):
        with pytest.raises(typer.BadParameter, match="m is"):
            split_integers(text, "m")
