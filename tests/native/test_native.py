"""The native dispatcher on a stand-in driver: it chooses as the predictor, and launches what the op says."""

from __future__ import annotations

import gc
import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aks.core import artifact
from aks.core.bundle import read_bundle
from aks.core.errors import ArtifactError, DriverError, InvalidProblemError
from aks.core.tree import Tree
from aks.ops import OPS
from aks.ops.gemm.spec import GEMM, GemmProblem
from aks.ops.op import Op
from aks.runtime import native
from aks.runtime.predictor import ILLEGAL_FAVOURITE, Predictor
from tests.export.test_agreement import crossings
from tests.kernels import export_fake
from tests.native.conftest import Standin, needs_module
from tests.runtime.test_predictor import problem_rows
from tests.selectors import random_problems, random_selector

pytestmark = needs_module
every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))
MODELS = Path(__file__).parents[2] / "models"
SHIPPED = sorted(path for path in MODELS.rglob("selector.json") if "versions" not in path.parts)
GEMM_SELECTOR = MODELS / "gemm" / "h200" / "selector.json"


def shipped_selector(path: Path) -> dict[str, Any]:
    return artifact.parse(path.read_bytes(), path)


def predictor_choices(predictor: Predictor, tree: Tree, columns: dict[str, np.ndarray]) -> list[int]:
    converted = []
    for parameter in tree.parameters:
        column = columns[parameter.name].tolist()
        if parameter.choices and isinstance(parameter.choices[0], str):
            column = [parameter.choices[value] for value in column]
        elif parameter.choices:
            column = [type(parameter.choices[0])(value) for value in column]
        converted.append(column)
    return [predictor.select(*row) for row in zip(*converted, strict=True)]


def check_choices(folder: Path, op: Op, standin: Standin, columns: dict[str, np.ndarray]) -> set[int]:
    predictor, kernels = Predictor.load(op, path=folder), standin.load(folder)
    wanted = predictor_choices(predictor, predictor.tree, columns)
    rows = zip(*(columns[parameter.name].tolist() for parameter in predictor.tree.parameters), strict=True)
    got = [kernels.select(*row) for row in rows]
    np.testing.assert_array_equal(got, wanted)
    return set(wanted)


@every_op
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_chooses_as_the_predictor_at_every_threshold_and_at_random(op: Op, seed: int, tmp_path_factory, standin):
    folder = export_fake(tmp_path_factory.mktemp("tree"), random_selector(seed, op=op, levels=7))
    tree, rng = Predictor.load(op, path=folder).tree, np.random.default_rng(seed)
    parts = [random_problems(op, 2000, rng, top=40_000), crossings(tree, op, rng)]
    columns = {name: np.concatenate([part[name] for part in parts if part]) for name in parts[0]}
    check_choices(folder, op, standin, columns)


def launch_answers(kernels: native.Kernels, tree: Tree, op: Op, columns: dict[str, np.ndarray]) -> np.ndarray:
    """The configs that launches of such problems are answered, whoever has to run them."""
    derived, operands = op.launch_spec.derived, op.launch_spec.operands
    names = [parameter.name for parameter in tree.parameters if parameter.name not in derived]
    step = (
        columns.get("alignment", np.zeros_like(columns[names[0]])) % 16
    )  # all operands are aligned as the problem says, and no better
    places = [(1 << 40) + step if name.endswith("_ptr") else np.full_like(step, 1 << 20) for name in operands]
    rows = zip(*(columns[name].tolist() for name in names), *(place.tolist() for place in places), strict=True)
    answers = np.array([kernels.launch(*row, 0) for row in rows])
    return np.where(answers < 0, -1 - answers, answers)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "-".join(path.relative_to(MODELS).parts[:-1]))
def test_chooses_and_launches_as_the_predictor_on_a_million_problems(path: Path, tmp_path: Path, standin):
    """Random ones, and those on both sides of every threshold; of any alignment, so that favourites are illegal."""
    selector = shipped_selector(path)
    op = OPS[selector["op"]]
    folder = export_fake(tmp_path, selector)
    predictor, kernels = Predictor.load(op, path=folder), standin.load(folder)
    standin.library.standin_quiet(1)
    tree, rng, count, answers = predictor.tree, np.random.default_rng(0), 0, set()
    while count < 1_000_000:
        edges = crossings(tree, op, rng)
        top = (5000, 20_000, 300_000)[count % 3]
        parts = [edges, random_problems(op, 100_000 - len(edges["m"]), rng, top=top)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in edges}
        wanted = np.array(predictor_choices(predictor, tree, columns))
        rows = zip(*(columns[parameter.name].tolist() for parameter in tree.parameters), strict=True)
        np.testing.assert_array_equal([kernels.select(*row) for row in rows], wanted)
        np.testing.assert_array_equal(launch_answers(kernels, tree, op, columns), wanted)
        count += len(wanted)
        answers |= set(wanted.tolist())
    reasons, alone = kernels.take_misses()[0], predictor.counts()
    assert sum(reasons) == sum(alone.values()) and reasons[-1] == alone.get(ILLEGAL_FAVOURITE, 0)
    assert len(answers) > min(30, len(selector["portfolio"]) // 2)
    assert op is not GEMM or reasons[-1] > 5000


def call_of(problem: GemmProblem, rng: random.Random) -> list[int]:
    """A call that poses ``problem``: addresses and strides that are aligned as it says, by the plain reading."""
    step = problem.alignment // 2
    row = problem.k if problem.w_layout == "nk" else problem.n
    strides = [(length + step - 1) // step * step for length in (problem.k, row, problem.n)]
    pointers = [0x7F00_0000_0000 + 4096 * rng.randrange(10**6) for _ in range(3)]
    if problem.alignment < 16:  # one of the six decides
        pointers[rng.randrange(3)] += problem.alignment
    known = problem.variables()
    return [*(known[name] for name in ("m", "n", "k", "dtype", "w_layout", "static_weights")), *pointers, *strides]


def expected_launch(predictor: Predictor, problem: GemmProblem, call: list[int], stream: int, scratch: str) -> str:
    """The stand-in's line for the launch, from the predictor's choice and the op's own Python."""
    config: Any = predictor.predict(**problem.to_row())
    spec, known = GEMM.launch_spec, problem.variables()
    m, n, k, *_, x, w, out, x_row, w_row, out_row = call
    w_rows, w_columns = (n, k) if problem.w_layout == "nk" else (k, n)

    def matrix(pointer: int, rows: int, columns: int, stride: int) -> str:
        flag = 0xFFFF_FFFF_FFDF_FFFF if 2 * ((rows - 1) * stride + columns - 1) + 1 < 128 * 1024 else 2**64 - 1
        words = (pointer, flag, columns, rows, 2 * stride, 64, 16, 9, 3)
        return f"map,{','.join(f'{word:x}' for word in words)} {rows} {columns} {stride} 1"

    arguments = [x, w, out, scratch, x_row, w_row, out_row, m, n, k]
    matrices = [matrix(x, m, k, x_row), matrix(w, w_rows, w_columns, w_row)]
    values = spec.variant_values(config, known)
    return (
        f"grid={spec.count_programs(config, known, 132)} block={32 * config.num_warps} "
        f"shared={1024 * config.num_stages} stream={stream} early={int(config.pdl > 0)} | {config.key()} {values}  | "
        f"{' '.join(map(str, arguments))} {' '.join(matrices)} 0 0"
    )


def random_gemms(count: int, rng: random.Random):
    for _ in range(count):
        m, n, k = (int(2 ** rng.uniform(0, 14)) for _ in range(3))
        step = rng.choice((1, 2, 8, 64))
        choices = GemmProblem.CHOICES
        n, k = max(32, n // step * step), max(64, k // step * step)
        yield GemmProblem(m, n, k, *(rng.choice(choices[name]) for name in choices))


@pytest.mark.parametrize("seed", [0, 2, None])
def test_launches_what_the_op_says(seed: int | None, tmp_path: Path, standin):
    made = shipped_selector(GEMM_SELECTOR) if seed is None else random_selector(seed, levels=6, portfolio=20)
    folder = export_fake(tmp_path, made)
    predictor, kernels, rng = Predictor.load(GEMM, path=folder), standin.load(folder), random.Random(seed)
    launched = 0
    for problem in random_gemms(4000, rng):
        call, stream = call_of(problem, rng), rng.choice((0, 0x5000, 0x6000))
        chosen = kernels.launch(*call, stream)
        wanted = predictor.select(**problem.to_row())
        if not GEMM.launch_spec.config_has_kernel(predictor.configs[wanted]):
            assert chosen == -1 - wanted
            continue
        assert chosen == wanted
        launched += 1
        got, line = standin.last(), expected_launch(predictor, problem, call, stream, "0 0")
        config: Any = predictor.configs[wanted]
        if config.split_k > 1:  # whatever memory the stream has, it is not nothing
            workspace, counters = got.split("| ")[2].split()[3:5]
            assert int(workspace) and int(counters) and workspace != counters
            line = expected_launch(predictor, problem, call, stream, f"{workspace} {counters}")
        assert got == line
    assert launched > 150
    assert kernels.counts()["launches"] == launched and kernels.counts()["without_kernel"] == 0


@every_op
def test_launches_of_every_op(op: Op, tmp_path: Path, standin):
    # A random tree may leave nearly all to the vendor, three of them do not.
    assert sum(launches_of(op, seed, tmp_path / str(seed), standin) for seed in (2, 3, 4)) > 20


def launches_of(op: Op, seed: int, folder: Path, standin: Standin) -> int:
    """How many of a few thousand problems a random tree launches, each of them as the op says."""
    selector = random_selector(seed, op=op, levels=6, portfolio=20)
    selector["support"]["choices"] = {name: list(values) for name, values in op.problem_type.CHOICES.items()}
    folder = export_fake(folder, selector)
    predictor, kernels, spec = Predictor.load(op, path=folder), standin.load(folder), op.launch_spec
    launched = 0
    rows = list(itertools.chain.from_iterable(problem_rows(op, index) for index in range(40)))
    # Some kernels want rows of whole vectors.
    rows += [row | {axis: -(-row[axis] // 64) * 64 for axis in op.problem_type.AXES[1:]} for row in rows]
    for row in rows:
        problem = op.problem_type.from_row(row | {"alignment": 16})
        known = problem.variables()
        passed = [value for name, value in known.items() if name not in spec.derived]
        # Aligned to 16 bytes, which is what every op derives from them.
        operands = [1 << 40 if name.endswith("_ptr") else 1 << 20 for name in spec.operands]
        answer, wanted = kernels.launch(*passed, *operands, 0x10), predictor.select(**problem.to_row())
        config = predictor.configs[wanted]
        assert answer == (wanted if spec.config_has_kernel(config) else -1 - wanted)
        if answer >= 0:
            launched += 1
            assert standin.last().startswith(f"grid={spec.count_programs(config, known, 132)} block=")
            assert f"| {config.key()} {spec.variant_values(config, known)} " in standin.last()
    return launched


def one_leaf(config: dict[str, Any]) -> dict[str, Any]:
    """A selector whose tree answers one config, wherever it is legal."""
    selector = random_selector(0)
    row = selector["portfolio"][0] | config
    selector["portfolio"] = [selector["portfolio"][0], row]
    selector["support"] = {"axes": {axis: [1, 20_000] for axis in ("m", "n", "k")}, "choices": {}}
    leaf = {"feature": -1, "threshold": 0.0, "left": -1, "right": -1, "ranking": [1, 0]}
    leaf |= {"expected_slowdown": [1.0, 1.1], "count": 1, "abstain": False}
    selector["tree"] = {name: [value] for name, value in leaf.items()}
    return selector


SPLIT = {"kind": "tiled", "block_m": 64, "block_n": 64, "block_k": 64, "split_k": 2, "num_warps": 4, "num_stages": 4}
TMA = SPLIT | {"kind": "tma", "split_k": 1, "block_k": 128}
CALL = [64, 512, 1024, 0, 0, 0, 1 << 40, 1 << 41, 1 << 42, 1024, 1024, 512]


def scratch_of(standin: Standin) -> tuple[str, ...]:
    return tuple(standin.last().split("| ")[2].split()[3:5])


def test_scratch_belongs_to_a_stream_and_captures_take_the_reserve(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    at_load = kernels.counts()["allocations"]
    seen = {}
    for stream in (0, 0x10, 0, 0x20, 0x10):
        assert kernels.launch(*CALL, stream) == 1
        assert seen.setdefault(stream, scratch_of(standin)) == scratch_of(standin)
    assert len(set(seen.values())) == 3
    assert kernels.counts()["allocations"] == at_load + 4
    standin.library.standin_capture(1)
    assert kernels.launch(*CALL, 0x30) == 1
    assert scratch_of(standin) not in seen.values()
    assert kernels.launch(*CALL, 0x40) == -1  # the reserve is gone, and nothing may be allocated now
    assert kernels.launch(*CALL, 0x30) == 1
    assert kernels.counts()["allocations"] == at_load + 4 and kernels.counts()["without_scratch"] == 1
    standin.library.standin_capture(0)
    assert kernels.launch(*CALL, 0x40) == 1
    standin.library.standin_capture(1)
    assert kernels.launch(*CALL, 0x50) == 1  # there is a reserve again


def test_descriptors_are_made_once_for_the_same_operands(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(TMA)))
    made = standin.library.standin_encodings
    lines, before = set(), made()
    for _ in range(3):
        assert kernels.launch(*CALL, 0) == 1
        lines.add(standin.last())
    assert len(lines) == 1 and made() - before <= 2
    other = [*CALL[:7], CALL[7] + 4096, *CALL[8:]]
    assert kernels.launch(*other, 0) == 1
    assert f"map,{other[7]:x}," in standin.last() and made() - before <= 3
    standin.fail("cuTensorMapEncodeTiled")
    far = [*CALL[:7], CALL[7] + 8192, *CALL[8:]]
    with pytest.raises(DriverError, match="cuTensorMapEncodeTiled failed"):
        kernels.launch(*far, 0)
    assert kernels.launch(*far, 0) == 1 and f"map,{far[7]:x}," in standin.last()


def test_streams_that_get_scratch_are_bounded(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    answers = [kernels.launch(*CALL, 16 * stream) for stream in range(1, 80)]
    assert answers == [1] * 63 + [-1] * 16


def test_kernels_without_split_k_take_no_scratch(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT | {"split_k": 1})))
    assert kernels.launch(*CALL, 0x10) == 1
    assert scratch_of(standin) == ("0", "0") and kernels.counts()["allocations"] == 0


def test_everything_is_given_back(tmp_path: Path, standin):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    gc.collect()
    before = standin.library.standin_modules(), standin.library.standin_allocations()
    kernels = standin.load(folder)
    kernels.launch(*CALL, 0x10)
    assert standin.library.standin_modules() > before[0]
    del kernels
    gc.collect()
    assert (standin.library.standin_modules(), standin.library.standin_allocations()) == before


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc", "cuInit"])
def test_a_failure_while_loading_is_said_and_leaks_nothing(call: str, tmp_path: Path, standin):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    gc.collect()
    before = standin.library.standin_modules(), standin.library.standin_allocations()
    standin.fail(call)
    with pytest.raises(DriverError, match=r"failed with 999 \(made up\)"):
        standin.load(folder)
    assert (standin.library.standin_modules(), standin.library.standin_allocations()) == before
    standin.load(folder)


@pytest.mark.parametrize(
    ("facts", "error", "what"),
    [
        ({"version": 12040}, DriverError, r"the driver has CUDA 12\.4; these kernels need 12\.8 or newer: update"),
        ({"capability": 80}, ArtifactError, r"for h200 \(capability 9\.0, 132 SMs\); device 0 has capability 8\.0"),
        ({"sm_count": 114}, ArtifactError, r"and 114 SMs: export for it \(aks export --bundle --device"),
    ],
)
def test_another_driver_or_gpu_is_refused(facts, error, what: str, tmp_path: Path, standin):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    standin.set(**facts)
    with pytest.raises(error, match=what):
        standin.load(folder)


def test_a_missing_driver_and_a_missing_gpu_are_said(tmp_path: Path, standin):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    with pytest.raises(DriverError, match="cuDeviceGet failed with 101"):
        standin.load(folder, index=5)
    standin.path, kept = tmp_path / "no.so", standin.path
    try:
        with pytest.raises(DriverError, match=r"no\.so cannot be opened.*install NVIDIA's driver"):
            standin.load(folder)
    finally:
        standin.path = kept


def test_a_launch_that_fails_raises_and_the_next_one_runs(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    standin.fail("cuLaunchKernelEx")
    with pytest.raises(DriverError, match="cuLaunchKernelEx failed with 999"):
        kernels.launch(*CALL, 0)
    assert kernels.launch(*CALL, 0) == 1


def test_calls_are_counted_and_typed(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    assert kernels.call_count == len(CALL) and kernels.problem_count == len(fields(GemmProblem))
    with pytest.raises(InvalidProblemError, match="a call has 11 values; wanted 12"):
        kernels.launch(*CALL)
    with pytest.raises(InvalidProblemError, match="a problem has 2 values; wanted 7"):
        kernels.select(1, 2)
    with pytest.raises(InvalidProblemError):
        kernels.launch()
    with pytest.raises(InvalidProblemError, match="at most 64"):
        kernels.launch(*range(100))
    with pytest.raises(TypeError):
        kernels.launch(*CALL[:-1], "512", 0)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        kernels.launch(*CALL[:-1], 1 << 70, 0)
    kind: Any = type(kernels)
    with pytest.raises(TypeError, match="never loaded"):
        kind.__new__(kind).launch(*CALL, 0)


def test_what_is_no_problem_is_left_to_the_vendor(tmp_path: Path, standin):
    kernels = standin.load(export_fake(tmp_path, one_leaf(SPLIT)))
    for place, value in itertools.product(range(6), (-1, 2**62, -(2**63))):
        assert kernels.launch(*[value if at == place else old for at, old in enumerate(CALL)], 0) == -1


def test_a_favourite_that_is_not_legal_is_counted(tmp_path: Path, standin):
    selector = one_leaf(SPLIT | {"kind": "tma", "split_k": 1, "block_k": 128, "pdl": 1, "prefetch_kib": 32})
    selector["portfolio"].append(selector["portfolio"][0] | SPLIT)
    selector["tree"]["ranking"], selector["tree"]["expected_slowdown"] = [[1, 2, 0]], [[1.0, 1.1, 1.2]]
    kernels = standin.load(export_fake(tmp_path, selector))
    assert kernels.launch(*CALL, 0) == 1
    assert kernels.launch(*CALL[:6], CALL[6] + 2, *CALL[7:], 0) == 2
    assert kernels.counts()["illegal_favourites"] == 1


def test_threads_share_it(tmp_path: Path, standin):
    folder = export_fake(tmp_path, random_selector(1, levels=6, portfolio=20))
    kernels, rng = standin.load(folder), random.Random(0)
    calls = [call_of(problem, rng) for problem in random_gemms(2000, rng)]
    wanted = [kernels.launch(*call, 0) for call in calls]
    before = kernels.counts()["launches"]

    def work(stream: int) -> list[int]:
        return [kernels.launch(*call, stream) for call in calls]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, (0, 0x10, 0x20, 0x10))) == [wanted] * 4
    assert kernels.counts()["launches"] == 5 * before


def test_answers_are_remembered_for_each_kernels_alone(tmp_path: Path, standin):
    folders = [export_fake(tmp_path / str(seed), random_selector(seed, levels=6, portfolio=20)) for seed in (1, 2)]
    rng = random.Random(0)
    problems = list(random_gemms(1500, rng))  # more than a thread remembers
    calls = [call_of(problem, rng) for problem in problems]
    known: list[list[int]] = [[], []]
    for _ in range(2):  # others take the place of the first, perhaps at their address
        both = [standin.load(folder) for folder in folders]
        for call in calls * 2:
            for kernels, answers in zip(both, known, strict=True):
                answers.append(kernels.launch(*call, 0))
        for kernels in both:
            counts = sum(kernels.take_misses()[0][:-1])
            assert counts and counts % 2 == 0  # a problem that is asked again is missed again
        del both, kernels
        gc.collect()
    for answers, folder in zip(known, folders, strict=True):
        predictor = Predictor.load(GEMM, path=folder)
        wanted = [predictor.select(**problem.to_row()) for problem in problems]
        assert [answer if answer >= 0 else -1 - answer for answer in answers] == wanted * 4
    assert known[0] != known[1]


def test_what_follows_from_the_problem_may_not_read_operands(tmp_path: Path, standin):
    folder = export_fake(tmp_path, one_leaf(SPLIT))
    table = artifact.parse((folder / "kernels.json").read_bytes(), folder)
    operand = len(table["parameters"])
    table["formulas"].append([1, operand])
    next(config for config in table["configs"] if config)["programs"] = len(table["formulas"]) - 1
    module = native.import_module("aks.runtime.native._native")
    with pytest.raises(ArtifactError, match="depends on the problem alone reads an operand; export them again"):
        module.Kernels(artifact.dump(table), (folder / "kernels.bin").read_bytes(), 0, str(standin.path))


def test_a_folder_without_kernels_has_none(standin):
    assert native.load_kernels(read_bundle(MODELS / "gemm" / "h200"), driver=str(standin.path)) is None
