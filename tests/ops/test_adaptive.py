"""Ops made of users' kernels: what is said of a kernel is checked, and becomes types, a space, rules and features."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
import torch

from aks.core.device import find_device
from aks.core.errors import ArtifactError, FormulaError, KernelError, UnknownOpError
from aks.core.measurement import Regime
from aks.ops import find_op
from tests.integrations.own_kernels import FakeJit, latency_us
from tests.integrations.own_kernels import scale as real

OP: Any = find_op("tests.integrations.own_kernels:scale")
H200 = find_device("h200")


class Config:
    """As ``triton.Config``, whose class needs no GPU but triton."""

    def __init__(self, kwargs, num_warps=4, num_stages=3, num_ctas=1, maxnreg=None, pre_hook=None):
        self.kwargs, self.num_warps, self.num_stages = kwargs, num_warps, num_stages
        self.num_ctas, self.maxnreg, self.pre_hook = num_ctas, maxnreg, pre_hook


def adapt(**changed: Any) -> Any:
    """A kernel with most of its description right."""
    from aks.integrations.adaptive import adaptive

    @adaptive(**{"space": [Config({"BLOCK": 64})], "key": ("rows", "n"), "bytes_moved": "rows * n", **changed})
    @FakeJit
    def kernel(x, y, rows, n, eps, BLOCK: tl.constexpr, EVEN: tl.constexpr = False, KIND: tl.constexpr = "a"):  # noqa: F821 # type: ignore
        """A kernel."""

    return kernel


def test_a_list_of_triton_configs_becomes_a_space_whose_first_is_the_default() -> None:
    op = adapt(space=[Config({"BLOCK": 64}, num_warps=2), Config({"BLOCK": 128}, num_stages=4)]).op
    assert [config.key() for config in op.space.configs] == [
        "BLOCK=64 num_warps=2 num_stages=3",
        "BLOCK=128 num_warps=4 num_stages=4",
    ]
    assert op.vendor == op.space.configs[0]
    assert op.options(op.vendor) == {"BLOCK": 64, "num_warps": 2, "num_stages": 3}


def test_values_by_name_are_combined_and_keep_their_types() -> None:
    op = adapt(
        space={"BLOCK": (64, 128), "EVEN": (False, True), "KIND": ("a", "b"), "maxnreg": (0, 64)},
        default={"BLOCK": 128, "EVEN": True, "KIND": "b"},
    ).op
    assert len(op.space.configs) == 16
    wanted = {"BLOCK": 128, "EVEN": True, "KIND": "b", "num_warps": 4, "num_stages": 3, "maxnreg": None}
    assert op.options(op.vendor) == wanted and op.options(op.vendor)["EVEN"] is True
    assert op.vendor.variables()["KIND"] == 1


def test_the_default_is_exempt_from_rules() -> None:
    small, big = OP.problem_type(rows=1, columns=8), OP.problem_type(rows=1, columns=1024)
    assert {config.BLOCK for config in OP.space.legal(big, H200)} == {64, 256, 1024}
    assert OP.space.legal(small, H200) == [OP.vendor]
    assert OP.space.legality(OP.vendor, H200) == "True"


def test_element_bytes_follow_the_first_tensor() -> None:
    op = adapt(bytes_moved="n * element_bytes", dtypes=("bf16", "fp32", "i8_bf16")).op
    limits = [
        op.limit_us(op.problem_type(rows=1, n=1 << 20, dtype=dtype), H200) for dtype in op.problem_type.CHOICES["dtype"]
    ]
    assert limits[1] == pytest.approx(2 * limits[0]) and limits[2] == pytest.approx(limits[0] / 2)


def test_own_formulas_go_where_they_can_be_read() -> None:
    op = adapt(features={"blocks": "ceil_div(n, BLOCK)", "row_kib": "n * 2 // 1024"}).op
    assert "blocks" in [feature.name for feature in op.config_features]
    assert "row_kib" in [feature.name for feature in op.features] and "row_kib" in op.tree_features


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"key": ("rows", "m")}, "has 'm' in its key, which is none of its arguments: x, y, rows"),
        ({"key": "rows"}, "name integer arguments of it, each once"),
        ({"key": ("rows", "rows")}, "each once"),
        ({"key": ()}, "each once"),
        ({"key": ("BLOCK",)}, "'BLOCK' in its key, but its configs or heuristics set it"),
        (
            {"space": [Config({"BLOCK": 64}), Config({"EVEN": True})]},
            "configs that set BLOCK, EVEN and configs that do not",
        ),
        ({"space": [Config({"BLOK": 64})]}, "sets 'BLOK'; its constants (tl.constexpr) are BLOCK, EVEN, KIND"),
        ({"space": [Config({"rows": 64})]}, "sets 'rows'"),
        ({"space": [Config({"BLOCK": 64}, pre_hook=print)]}, "a config with pre_hook, which is not run while serving"),
        ({"space": [Config({"BLOCK": -1})]}, "BLOCK=-1; wanted an integer from 0"),
        ({"space": [Config({"BLOCK": 0.5})]}, "BLOCK=0.5; wanted an integer from 0"),
        ({"space": [Config({"EVEN": True}), Config({"EVEN": 1})]}, "EVEN as bool and int in its configs"),
        ({"space": []}, "wanted a list of triton.Config"),
        ({"space": ["BLOCK"]}, "the config 'BLOCK'; wanted a triton.Config"),
        ({"space": {"BLOCK": 64}}, "BLOCK=64 in its space; wanted a list of values"),
        ({"default": Config({"BLOCK": 32})}, "which is none of the 1 configs in its space"),
        ({"rules": lambda config: True}, "A Python function cannot go into a tree"),
        ({"rules": {"fits": lambda config: True}}, "wanted a formula as a text"),
        ({"rules": {"fits": "BLOCK <= k"}}, "of 'fits' reads k; allowed: element_bytes, rows, n, dtype, BLOCK"),
        ({"bytes_moved": "n * BLOCK"}, "of 'bytes_moved' reads BLOCK"),
        ({"dtypes": ("bfloat16",)}, "wanted names out of fp64"),
        ({"name": "my kernel"}, "wanted letters, digits and underscores"),
        ({"features": {"rows_pow2": "n"}}, "has features rows_pow2 anyway; rename yours"),
        (
            {"space": {"BLOCK": (64,), "KIND": ("block", "b")}},
            "formulas read as BLOCK, and that is something",
        ),
        ({"outputs": ("z",)}, "has outputs z; wanted some of x, y"),
    ],
)
def test_what_does_not_fit_the_kernel_is_refused(said, message) -> None:
    with pytest.raises(KernelError, match=re.escape(message)):
        adapt(**said)


def test_a_formula_that_trees_cannot_hold_is_refused() -> None:
    with pytest.raises(FormulaError, match="allowed: non-negative integers"):
        adapt(rules={"fits": "BLOCK - 1 <= n"})


def test_names_that_files_or_c_have_for_something_else_are_refused() -> None:
    from aks.integrations.adaptive import adaptive

    for name in ("latency_us", "sm_count", "dtype", "gcd", "register", "_n", "key", "AXES"):
        scope: dict[str, Any] = {}
        exec(f"def kernel(x, {name}, BLOCK: 'tl.constexpr'): ...", scope)
        with pytest.raises(KernelError, match=f"has '{name}' in its key or configs"):
            adaptive(space=[Config({"BLOCK": 1})], key=(name,), bytes_moved=name)(FakeJit(scope["kernel"]))


def test_a_kernel_with_autotune_or_without_jit_is_refused() -> None:
    from aks.integrations.adaptive import adaptive

    decorate = adaptive(space=[Config({"BLOCK": 1})], key=("n",), bytes_moved="n")
    with pytest.raises(KernelError, match=re.escape("write it above @triton.jit")):
        decorate(lambda n: None)
    tuned = FakeJit(lambda n: None)
    tuned.configs = []  # type: ignore[attr-defined]
    with pytest.raises(KernelError, match=re.escape("takes the place of @triton.autotune; pass its configs as space")):
        decorate(tuned)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:kernel", "No module named 'no_such_module'"),
        ("tests.integrations.own_kernels:nothing", "has no attribute 'nothing'"),
        ("tests.integrations.own_kernels:", "is not 'module:name'"),
        ("tests.integrations.own_kernels:NOT_A_KERNEL", "is a int; wanted a kernel with @aks.adaptive"),
        ("tests.integrations.own_kernels:taken", "an op of aks is named 'gemm'; name yours otherwise"),
        ("never_named", "an op of your own is named module:kernel"),
    ],
)
def test_ops_are_found_by_the_module_that_a_user_names(name, message) -> None:
    assert find_op("tests.integrations.own_kernels:scale") is OP is find_op("scale")
    with pytest.raises(UnknownOpError, match=re.escape(message)):
        find_op(name)


def test_ops_problems_and_configs_are_pickled_by_name() -> None:
    problem, config = OP.problem_type(rows=3, columns=5, dtype="fp32"), OP.space.configs[2]
    assert pickle.loads(pickle.dumps((OP, problem, config))) == (OP, problem, config)
    assert pickle.loads(pickle.dumps(OP)) is OP and hash(OP) == hash(find_op("scale"))
    with pytest.raises(UnknownOpError, match="put it into a module of its own"):
        pickle.dumps(adapt().op)


def test_there_is_no_bundle_and_no_chain() -> None:
    with pytest.raises(ArtifactError, match="export without --bundle"):
        OP.launch_spec  # noqa: B018
    assert OP.regimes == (Regime.COLD, Regime.WARM) and OP.compiler == ""


@pytest.fixture
def measured():
    """A kernel that multiplies by two in PyTorch, by its configs: BLOCK=1 is off by one, BLOCK=2 writes nothing."""

    def run(x, y, rows, n, eps, BLOCK, **_):
        if BLOCK != 2:
            torch.mul(x, 2, out=y)
        if BLOCK == 1:
            y += 1

    kernel = adapt(space={"BLOCK": (64, 1, 2)}, outputs=("y",))
    kernel.fn.run = run

    @kernel.example
    def make(rows, n, *, dtype, device):
        x = torch.ones(rows, n, dtype=dtype, device=device)
        return (rows,), {"x": x, "y": torch.empty_like(x), "rows": rows, "n": n, "eps": 0.0}

    return kernel


@pytest.mark.parametrize("with_reference", [True, False])
def test_every_config_is_checked_against_the_reference_or_else_the_default(measured, with_reference) -> None:
    if with_reference:
        measured.reference(lambda arguments: {"y": 2 * arguments["x"].double()})
    op = measured.op
    problem = op.problem_type(rows=2, n=3, dtype="fp32")
    harness = op.launch
    inputs = harness.make_inputs(problem, copies=3, device="cpu")
    assert len({call.arguments["y"].data_ptr() for call in inputs.w}) == 3
    expected = op.reference.reference(problem, inputs.x, inputs.w[0])
    verdicts = []
    for config in op.space.configs:
        harness.poison(inputs.out)
        harness.bind(config, problem, inputs.x, inputs.w[0], inputs.out, device=H200, scratch=None)(0)
        verdicts.append(harness.check(problem, inputs.out, expected))
    assert verdicts[0] == "" and verdicts[1].startswith("y: Tensor-likes are not close") and "nan" in verdicts[2]
    assert inputs.out == {"y": inputs.w[0].arguments["y"]}


def test_an_example_must_make_what_it_was_asked_for(measured) -> None:
    harness, problem = measured.op.launch, measured.op.problem_type(rows=2, n=3, dtype="fp16")
    good = measured.make_example

    def other(**asked):
        grid, arguments = good(**asked)
        return grid, arguments | {"n": 4}

    def half(**asked):
        grid, arguments = good(**asked)
        return grid, arguments | {"x": arguments["x"].float()}

    def silent(**asked):
        grid, arguments = good(**asked)
        return grid, {name: value for name, value in arguments.items() if name != "y"}

    for make, message in (
        (None, "has no example to measure"),
        (lambda **asked: asked, "gave a dict; wanted (grid, {name: argument})"),
        (other, "'n': 4"),
        (half, "'dtype': 'fp32_fp16'"),
        (silent, "made no tensor 'y', which is one of its outputs"),
    ):
        measured.make_example = make
        with pytest.raises(KernelError, match=re.escape(message)):
            harness.make_inputs(problem, device="cpu")


def test_integers_are_poisoned_too(measured) -> None:
    out = {"count": torch.zeros(2, dtype=torch.int32), "flag": torch.zeros(1, dtype=torch.bool)}
    measured.op.launch.poison(out)
    assert out["count"].tolist() == [2**31 - 1] * 2 and out["flag"].item() is True


@pytest.mark.gpu
@pytest.mark.parametrize("regime", [Regime.COLD, Regime.WARM])
def test_a_users_kernel_is_measured_on_the_gpu(regime) -> None:
    from aks.collect.timer import Timer
    from aks.core.device import current_device

    device = current_device()
    problem = OP.problem_type(rows=64, columns=1000, dtype="bf16")
    configs = OP.space.legal(problem, device)
    outcomes = Timer(OP, device).measure(problem, configs, regime)
    assert {outcome.measurement.config for outcome in outcomes} == set(configs)
    assert all(outcome.measurement.status.timed for outcome in outcomes), [o.measurement.detail for o in outcomes]


def test_the_made_up_gpu_has_something_to_choose() -> None:
    winners = set()
    for rows, columns in ((1, 128), (1, 8192), (4096, 128), (4096, 8192)):
        problem = OP.problem_type(rows=rows, columns=columns)
        winners.add(min(OP.space.legal(problem, H200), key=lambda config: latency_us(problem, config)))
    assert len(winners) > 1 and real.op is OP
