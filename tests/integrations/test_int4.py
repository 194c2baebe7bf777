"""4-bit linear functions and layers: right, under all that PyTorch does, from foreign checkpoints, kind to mistakes."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aks
from aks.core.config import Config
from aks.core.device import find_device
from aks.integrations import int4_ops, preparing, quantized_ops
from aks.integrations.graphs import layers_of
from aks.ops.int4_gemm import packing
from aks.ops.int4_gemm.packing import Int4Weight
from aks.ops.int4_gemm.reference import to_tinygemm
from aks.ops.int4_gemm.spec import INT4_GEMM
from aks.runtime import layers
from tests.integrations.test_quantized import check, compiled_or_not
from tests.ops.test_int4_gemm import one_of_each_kind

gpu = pytest.mark.gpu
BF16 = torch.bfloat16
FORMS = [(128, False), (64, True), (32, False)]
forms = pytest.mark.parametrize(("group", "zeros"), FORMS)


def operands(
    shape: tuple[int, ...], n: int, group: int, zeros: bool, *, dtype: torch.dtype = BF16, device: str = "cpu"
) -> tuple[Tensor, Int4Weight, Tensor]:
    """x of that shape, a packed weight [n, K], and a bias."""
    x = torch.randn(shape, device=device).to(dtype)
    weight = packing.quantize(torch.randn(n, shape[-1], device=device), group, zeros)
    return x, weight, torch.randn(n, device=device).to(BF16)


def exact(weight: Int4Weight) -> Tensor:
    """The weight [N, K] in float64, not rounded."""
    return packing.exact_rows(weight, *packing.unpack(weight), slice(None)).double()


def expected(x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
    """In float64."""
    y = x.to(BF16).double() @ exact(weight).T
    return y if bias is None else y + bias.double()


@forms
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize(("shape", "n"), [((1, 256), 32), ((2, 3, 80), 48), ((7, 131), 33), ((5, 16), 1), ((16,), 4)])
def test_the_function_is_right(group: int, zeros: bool, dtype: torch.dtype, shape, n) -> None:
    x, weight, bias = operands(shape, n, group, zeros, dtype=dtype)
    for one in (None, bias):
        check(aks.int4_linear(x, weight, one), expected(x, weight, one))


@forms
def test_odd_strides_and_addresses_and_nothing_at_all(stand_in, group: int, zeros: bool) -> None:
    x, weight, bias = operands((6, 128), 32, group, zeros)
    wanted = aks.int4_linear(x, weight, bias)
    assert torch.equal(aks.int4_linear(x.T.contiguous().T, weight, bias), wanted)
    assert torch.equal(aks.int4_linear(torch.stack([x, x]).transpose(0, 1), weight, bias)[:, 1], wanted)
    assert torch.equal(aks.int4_linear(x[1:2].expand(4, 128), weight, bias), wanted[[1] * 4])
    assert torch.equal(aks.int4_linear(x, weight, bias.repeat_interleave(2)[::2]), wanted)
    off = torch.cat([weight.words[:1], weight.words])[1:]
    assert off.data_ptr() % 16 and torch.equal(aks.int4_linear(x, weight._replace(words=off), bias), wanted)
    assert aks.int4_linear(x[:0], weight, bias).shape == (0, 32)


def test_rows_that_are_not_finite_stay_among_themselves() -> None:
    x, weight, bias = operands((4, 128), 32, 128, False)
    wanted = aks.int4_linear(x, weight, bias)
    x[1, 3], x[2, 5] = float("inf"), float("nan")
    y = aks.int4_linear(x, weight, bias)
    assert not y[1:3].isfinite().any() and torch.equal(y[[0, 3]], wanted[[0, 3]])


@forms
def test_calls_go_to_the_dispatcher_unless_its_tree_declines(stand_in, group: int, zeros: bool) -> None:
    x, weight, bias = operands((2, 3, 128), 48, group, zeros)
    wanted = expected(x, weight, bias)
    served = stand_in.layers["int4_gemm"]
    copies: dict[str, Any] = {"dense": packing.dequantize(weight), "by_k": packing.by_k(weight)}
    check(aks.int4_linear(x, weight, bias, **copies, density=25, static_weights=True), wanted)
    check(aks.int4_linear(x, weight, bias), wanted)
    assert [(p.m, p.n, p.k, p.group, p.zeros, p.has_bf16, p.density, p.static_weights) for p in served.calls] == [
        (6, 48, 128, group, zeros, True, 25, True),
        (6, 48, 128, group, zeros, False, 100, False),
    ]
    with quantized_ops.vendor_only():
        check(aks.int4_linear(x, weight, bias), wanted)
    served.declines = True
    check(aks.int4_linear(x, weight, bias), wanted)
    assert len(served.calls) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": lambda o: o["x"][:, :60]}, r"x is \[3, 60\] torch.bfloat16, the weight \[32, 128\]; rows of both"),
        ({"x": lambda o: o["x"].to(torch.int32)}, r"x is torch.int32; wanted bfloat16"),
        ({"weight": lambda o: o["weight"]._replace(n=65)}, r"weight.words is \[\d+\] torch.int32; wanted \[\d+\] of"),
        ({"weight": lambda o: o["weight"]._replace(zeros=True)}, r"weight.meta is \[\d+\] torch.int32; wanted \[\d+\]"),
        ({"weight": lambda o: o["weight"]._replace(group=16)}, r"group is 16; wanted one of 32, 64, 128"),
        ({"bias": lambda o: o["bias"].float()}, r"bias is \[32\] torch.float32; wanted \[32\] of torch.bfloat16"),
        ({"bias": lambda o: o["bias"].to("meta")}, r"x is on cpu, bias on meta"),
        ({"dense": lambda o: o["x"]}, r"dense is \[3, 128\] torch.bfloat16; wanted \[32, 128\]"),
        ({"by_k": lambda o: packing.by_k(o["weight"])[1:]}, r"by_k is \[127, 8\] torch.int32; wanted \[128, 8\]"),
        ({"tiny": lambda o: (o["weight"].words, o["bias"])}, r"tiny\[1\] is \[32\] .*; wanted \[1, 32, 2\]"),
        ({"density": lambda o: 50}, r"density is 50, by_k is not given; wanted one of 5, .*, and by_k with less"),
        ({"density": lambda o: 30, "by_k": lambda o: packing.by_k(o["weight"])}, r"density is 30, by_k is given"),
    ],
)
def test_what_does_not_fit_is_said(changes, says: str) -> None:
    given: dict[str, Any] = dict(zip(("x", "weight", "bias"), operands((3, 128), 32, 128, False), strict=True))
    given |= {name: change(given) for name, change in changes.items()}
    with pytest.raises(ValueError, match=f"aks.int4_linear: .*{says}"):
        aks.int4_linear(**given)


@forms
def test_gradients_are_refused(group: int, zeros: bool) -> None:
    x, weight, _ = operands((3, 128), 32, group, zeros)
    x.requires_grad_()
    for run in (lambda: aks.int4_linear(x, weight), lambda: torch.ops.aks.int4_linear(x, *weight)):
        with pytest.raises(RuntimeError, match=r"aks.int4_linear has no gradient.*no_grad"):
            run()
        with torch.no_grad():
            assert not run().requires_grad


@forms
def test_the_function_compiles_whole(group: int, zeros: bool) -> None:
    x, weight, bias = operands((3, 128), 32, group, zeros)

    def function(x: Tensor) -> Tensor:
        return aks.int4_linear(x + 1, weight, bias, static_weights=True).relu()

    results = [run(x) for run in compiled_or_not(function)]
    assert all(torch.equal(one, results[0]) for one in results)


@forms
def test_the_op_is_what_pytorch_expects(group: int, zeros: bool) -> None:
    x, weight, bias = operands((3, 128), 32, group, zeros)
    copies = (None, None, packing.dequantize(weight), packing.by_k(weight))
    torch.library.opcheck(torch.ops.aks.int4_linear.default, (x, *weight, bias, *copies, 50))


# Layers.


def linear(bias: bool = True, dtype: torch.dtype = BF16) -> nn.Linear:
    return nn.Linear(128, 32, bias=bias, dtype=dtype).eval()


def made_of(layer: nn.Linear, **options: Any) -> Any:
    return aks.nn.Int4Linear.from_linear(layer, **options)


@forms
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_is_its_function(group: int, zeros: bool, bias: bool) -> None:
    layer = linear(bias)
    made = made_of(layer, group=group, zeros=zeros)
    weight = packing.quantize(layer.weight, group, zeros)
    assert torch.equal(made.weight, weight.words) and torch.equal(made.weight_meta, weight.meta)
    x = torch.randn(2, 3, 128).to(BF16)
    check(made(x), expected(x, weight, layer.bias))
    assert made(x.half()).dtype == torch.float16
    assert not made.training and not list(made.parameters())
    assert f"in_features=128, out_features=32, bias={bias}, group={group}, zeros={zeros})" in repr(made)
    error = (made(x) - layer(x)).float().norm() / layer(x).float().norm()
    assert error < 0.12


@torch.no_grad()
def test_copies_are_made_where_they_are_asked_for(stand_in) -> None:
    made = made_of(linear(), keep_bf16=True, density=10)
    assert repr(made).endswith("zeros=False, keep_bf16=True, density=10)")
    weight = packing.quantize(linear().weight.new_ones(32, 128))
    for _ in range(2):
        assert torch.equal(made.dense, packing.dequantize(made.packed))
        assert torch.equal(made.by_k, packing.by_k(made.packed))
        state = made_of(linear()).state_dict()
        made.load_state_dict({**state, "weight": weight.words, "weight_meta": weight.meta})
    made(torch.ones(1, 128, dtype=BF16))
    [problem] = stand_in.layers["int4_gemm"].calls
    assert (problem.has_bf16, problem.density) == (True, 10)
    assert made.weight_bytes == made_of(linear()).weight_bytes + made.dense.nbytes + made.by_k.nbytes
    moved = made.to("meta")
    assert moved.dense is None and moved.by_k is None
    back = moved.to_empty(device="cpu")
    back.load_state_dict({**state, "weight": weight.words, "weight_meta": weight.meta})
    assert torch.equal(back.dense, packing.dequantize(weight))


@forms
@torch.no_grad()
def test_a_state_dict_goes_round(group: int, zeros: bool) -> None:
    made = made_of(linear(), group=group, zeros=zeros)
    other = aks.nn.Int4Linear(128, 32, group=group, zeros=zeros).eval()
    assert list(made.state_dict()) == ["weight", "weight_meta", "weight_layout", "bias"]
    x = torch.randn(3, 128).to(BF16)
    assert not other(x).any()
    other.load_state_dict(made.state_dict())
    on_meta = aks.nn.Int4Linear(128, 32, device="meta", group=group, zeros=zeros).eval()
    on_meta.load_state_dict(made.state_dict(), assign=True)
    torch.save(made, file := io.BytesIO())
    file.seek(0)
    for one in (other, on_meta, copy.deepcopy(made), torch.load(file, weights_only=False)):
        assert torch.equal(one(x), made(x))
    with pytest.raises(RuntimeError, match=r"weight is torch.bfloat16; this layer's is .*before it is quantised"):
        made.load_state_dict(linear().state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        made.load_state_dict({})


def test_a_state_dict_of_other_groups_or_sizes_is_refused() -> None:
    made = made_of(linear(), group=64)
    for other in (
        aks.nn.Int4Linear(128, 32, group=128, zeros=True),  # of the same number of words
        aks.nn.Int4Linear(120, 40, group=64),
    ):
        assert [value.shape for value in list(other.state_dict().values())[:3]] == [
            value.shape for value in list(made.state_dict().values())[:3]
        ]
        with pytest.raises(RuntimeError, match=r"weight_layout is \(32, 128, 64, 0\); this layer's is .*make it as"):
            other.load_state_dict(made.state_dict())


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.float32), lambda m: m.half(), lambda m: m.to("cpu", BF16)])
@forms
def test_casting_leaves_what_is_stored(group: int, zeros: bool, cast) -> None:
    made = made_of(linear(), group=group, zeros=zeros, keep_bf16=True)
    before = {name: value.clone() for name, value in made.named_buffers()}
    model = cast(nn.Sequential(made, nn.Linear(4, 4)))
    after = dict(model[0].named_buffers())
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    moved = made.to("meta", torch.float32)
    assert {value.device.type for value in moved.buffers()} == {"meta"} and moved.weight.dtype == torch.int32


@torch.no_grad()
def test_weights_are_static_from_the_second_call_on(stand_in) -> None:
    made = made_of(linear())
    calls = stand_in.layers["int4_gemm"].calls
    x = torch.randn(3, 128).to(BF16)

    def static() -> bool:
        made(x)
        return calls.pop().static_weights

    assert [static(), static()] == [False, True]
    made.load_state_dict(made.state_dict())
    assert [static(), static()] == [False, True]
    made.train()
    assert not static()
    made.eval().static_weights = False
    assert not static()


@forms
@torch.no_grad()
def test_layers_compile_and_export(group: int, zeros: bool) -> None:
    layer = made_of(linear(), group=group, zeros=zeros, keep_bf16=True, density=50)
    made = nn.Sequential(layer, nn.ReLU()).eval()
    x = torch.randn(3, 128).to(BF16)
    wanted = made(x)
    assert all(torch.equal(run(x), wanted) for run in compiled_or_not(made))
    rows = torch.export.Dim("rows", max=64)
    exported = torch.export.export(made, (x,), dynamic_shapes=({0: rows},))
    assert [str(node.target) for node in exported.graph.nodes].count("aks.int4_linear.default") == 1
    assert torch.equal(exported.module()(x), wanted)
    assert torch.equal(exported.module()(x[:2]), made(x[:2]))


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match=r"group=48; the kernels take groups of 32, 64, 128"):
        made_of(linear(), group=48)
    with pytest.raises(ValueError, match=r"group is 16; aks.nn.Int4Linear takes 32, 64, 128"):
        aks.nn.Int4Linear(64, 64, group=16)
    with pytest.raises(ValueError, match=r"density is 30; aks.nn.Int4Linear takes 5, 10, 25, 50, 100"):
        made_of(linear(), density=30)
    with pytest.raises(ValueError, match="on the meta device: load it first"):
        made_of(linear().to("meta"))


# Checkpoints of others.


def words_of(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """[rows, 8 columns] of 0 to 15 as int32 [rows, columns]: nibble i holds column order[i] of its 8."""
    words = torch.zeros(len(values), values.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= values[:, column::8].long() << (4 * place)
    return words.where(words < 2**31, words - 2**32).int()


def foreign(n: int, k: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [k, n], zeros and scales [groups, n], as checkpoints have them."""
    groups = k // group
    scales = (torch.rand(groups, n) + 0.5).bfloat16().half()  # numbers of both
    return torch.randint(0, 16, (k, n)), torch.randint(1, 17, (groups, n)) & 15, scales


@pytest.mark.parametrize("act_order", [False, True])
@torch.no_grad()
def test_a_layer_of_gptq(act_order: bool) -> None:
    n, k, group = 48, 256, 64
    q, zeros, scales = foreign(n, k, group)
    g_idx = torch.arange(k) // group
    if act_order:
        g_idx = g_idx[torch.randperm(k)]
    w = (q - zeros[g_idx]).double() * scales[g_idx].double()
    qweight, bias = words_of(q.T).T, torch.randn(n).half()
    made = aks.nn.Int4Linear.from_gptq(qweight, words_of((zeros - 1) & 15), scales, g_idx.int(), bias)
    x = torch.randn(2, 3, k).to(BF16)
    check(made(x), x.double() @ w + bias.to(BF16).double())
    assert (made.group, made.zeros, made.training) == (group, True, False)
    assert ("act_order=True" in repr(made)) == act_order
    other = aks.nn.Int4Linear(k, n, group=group, zeros=True, act_order=act_order).eval()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))
    assert torch.equal(torch.compile(other, backend="aot_eager", fullgraph=True)(x), made(x))


@torch.no_grad()
def test_a_layer_of_awq() -> None:
    n, k, group = 48, 256, 128
    q, zeros, scales = foreign(n, k, group)
    places = (0, 2, 4, 6, 1, 3, 5, 7)
    made: Any = aks.nn.Int4Linear.from_awq(words_of(q, places), words_of(zeros, places), scales, keep_bf16=True)
    groups = torch.arange(k) // group
    x = torch.randn(3, k).to(BF16)
    check(made(x), x.double() @ ((q - zeros[groups]).double() * scales[groups].double()))
    assert made.bias is None and made.dense.shape == (n, k)
    with pytest.raises(ValueError, match=r"qweight is .*; wanted a matrix of int32"):
        aks.nn.Int4Linear.from_awq(q, zeros, scales)


# Models.


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(128, 192, dtype=BF16), nn.Linear(192, 128, bias=False, dtype=BF16)
        self.odd = nn.Linear(96, 128, dtype=BF16)
        self.lm_head = nn.Linear(128, 48, bias=False, dtype=BF16)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(x + self.down(self.up(x).relu()))


@torch.no_grad()
def test_a_model_is_quantised(capsys) -> None:
    made: Any = Model().eval()
    x = torch.randn(5, 128).to(BF16)
    wanted = made(x)
    summary = aks.quantize(made, "int4", group=64)
    assert summary.replaced == ("up", "down") and capsys.readouterr().out.startswith("aks.quantize: 2 of 4 linear")
    assert summary.skipped == {
        "odd": "in_features is 96, no multiple of group=64: group=32 is one",
        "lm_head": "skip has 'lm_head'",
    }
    assert summary.bytes_after == made.up.weight_bytes + made.down.weight_bytes
    assert (made(x) - wanted).float().norm() < 0.2 * wanted.float().norm()
    assert set(aks.quantize(Model().eval(), "int4", verbose=False).replaced) == {"up"}
    small = aks.quantize(nn.Sequential(nn.Linear(48, 64)).eval(), "int4", verbose=False)
    assert small.skipped == {"0": "in_features is 48, no multiple of group=128: no group is one that kernels take"}


def test_options_of_another_precision_are_named() -> None:
    with pytest.raises(TypeError, match="'group'"):
        aks.quantize(Model().eval(), "fp8", group=64)
    with pytest.raises(TypeError, match="'scaling'"):
        aks.quantize(Model().eval(), "int4", group=64, scaling="row")


@torch.no_grad()
def test_a_quantised_model_is_prepared_and_planned(stand_in, monkeypatch) -> None:
    # Of these the packed weights are of one size; they pose other problems.
    made: Any = nn.Sequential(nn.Linear(256, 128, bias=False), nn.Linear(128, 256, bias=False)).to(BF16).eval()
    aks.quantize(made, "int4", verbose=False)
    served = stand_in.layers["int4_gemm"]
    planned = {layer.problem: layer.count for layer in layers_of(made)}
    made(torch.randn(1, 256).to(BF16))
    assert planned == dict.fromkeys(served.calls, 1) and len(planned) == 2
    served.calls.clear()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    assert made[0].weight.shape == made[1].weight.shape
    assert preparing.prepare(made, [1, 3]) == 2
    assert {(problem.m, problem.k) for problem in served.calls} == {(1, 256), (3, 256), (1, 128), (3, 128)}


# What a tree may say.


class Recording(layers.LayerDispatcher):
    """Keeps what ``launch`` answers."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.answers: list[bool] = []

    def launch(self, *given: Any) -> bool:
        self.answers.append(super().launch(*given))
        return self.answers[-1]


def dispatcher_of(config: Config, native: bool, index: int = 0) -> Recording:
    """One whose tree answers that config, by our kernels' own launch or, as the native module does, for the caller."""
    choices: Any = SimpleNamespace(configs=(INT4_GEMM.vendor, config), select=lambda **problem: 1)
    kernels: Any = SimpleNamespace(launch=lambda *call: -2, take_misses=None) if native else None
    predictor: Any = SimpleNamespace(current=choices, add_source=lambda source: None)
    return Recording(INT4_GEMM, predictor, find_device("h200"), index, kernels, choices)


@pytest.mark.parametrize(("kind", "runs"), [("dequantized", True), ("unpacked", True), ("ring", False)])
def test_what_the_native_dispatcher_leaves_is_run_as_its_tree_says(monkeypatch, kind: str, runs: bool) -> None:
    ran: list[str] = []
    config = next(config for config in INT4_GEMM.space.configs if config.to_row()["kind"] == kind)
    routine = INT4_GEMM.reference.ROUTINES.get(kind)
    monkeypatch.setattr(layers, "_current_stream", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.device("cpu"))
    monkeypatch.setitem(INT4_GEMM.reference.ROUTINES, kind, lambda *given: ran.append(kind) or routine(*given))
    served = dispatcher_of(config, native=True)
    monkeypatch.setattr(int4_ops, "_dispatcher", lambda op, x: served)
    x, weight, bias = operands((2, 3, 128), 48, 64, True)
    check(aks.int4_linear(x, weight, bias, dense=packing.dequantize(weight)), expected(x, weight, bias))
    assert ran == [kind] * runs and served.answers == [runs]


def near(y: Tensor, wanted: Tensor) -> None:
    """Right for weights rounded to bf16, or zeros as tinygemm has them, and sums rounded before the bias is added."""
    assert y.dtype == BF16 and y.shape == wanted.shape
    assert ((y.double() - wanted).norm() <= 2.0**-7 * wanted.norm()) and y.isfinite().all()


@gpu
@forms
@pytest.mark.parametrize(("shape", "n"), [((1, 4096), 4096), ((2, 3, 1024), 512), ((130, 72), 200), ((5, 131), 33)])
def test_the_function_is_right_on_gpu(group: int, zeros: bool, shape, n: int) -> None:
    x, weight, bias = operands(shape, n, group, zeros, device="cuda")
    wanted = expected(x, weight, bias)
    copies: dict[str, Any] = {"dense": packing.dequantize(weight), "by_k": packing.by_k(weight)}
    near(aks.int4_linear(x, weight, bias), wanted)
    near(aks.int4_linear(x, weight, bias, **copies, density=50, static_weights=True), wanted)
    with quantized_ops.vendor_only():
        near(aks.int4_linear(x, weight, bias), wanted)
        if shape[-1] % group == 0 and shape[-1] % 32 == 0 and n % 8 == 0:
            near(aks.int4_linear(x, weight, bias, tiny=to_tinygemm(weight)), wanted)


@gpu
@forms
@pytest.mark.parametrize("m", [1, 20, 64])
@torch.no_grad()
def test_whatever_a_tree_names_is_right_on_gpu(shipped_tree, monkeypatch, group: int, zeros: bool, m: int) -> None:
    layer = nn.Linear(4096, 1024, dtype=BF16, device="cuda").eval()
    made = made_of(layer, group=group, zeros=zeros, keep_bf16=True, density=50, static_weights=True)
    assert made.tiny_words is not None
    x = torch.randn(m, 4096, device="cuda").to(BF16)
    x[:, ::2] = 0
    wanted = expected(x, made.packed, made.bias)
    [problem] = made.problems(True)
    configs = one_of_each_kind(type(problem).from_row({**problem.to_row(), "m": m}))
    assert len({config.kind for config in configs}) >= 4
    for config in configs:
        served = dispatcher_of(config, native=False, index=x.get_device())
        monkeypatch.setattr(int4_ops, "_dispatcher", lambda op, x, served=served: served)
        near(made(x), wanted)
        assert served.answers == [config != INT4_GEMM.vendor], config


@gpu
@pytest.mark.parametrize("options", [{}, {"tinygemm": False, "zeros": True}], ids=["tinygemm", "dequantised"])
@torch.no_grad()
def test_layers_in_a_cuda_graph_and_compiled(options: dict[str, Any]) -> None:
    layer = nn.Linear(1024, 512, dtype=BF16, device="cuda").eval()
    made = nn.Sequential(made_of(layer, **options), nn.ReLU()).eval()
    x = torch.randn(4, 1024, device="cuda").to(BF16)
    made(x)
    wanted, y = made(x), torch.empty(4, 512, device="cuda", dtype=BF16)
    torch.testing.assert_close(torch.compile(made, fullgraph=True)(x), wanted, rtol=2e-2, atol=2e-2)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        made(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        y.copy_(made(x))
    other = torch.randn(4, 1024, device="cuda").to(BF16)
    for rows in (x.clone(), other):
        wanted = made(rows)
        x.copy_(rows)
        y.fill_(float("nan"))
        graph.replay()
        torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)


@gpu
@torch.no_grad()
def test_a_layer_goes_to_the_gpu_and_back() -> None:
    made = made_of(linear(), density=50, keep_bf16=True)
    x = torch.randn(3, 128).to(BF16)
    wanted = made(x)
    assert made.tiny_words is None
    made = made.cuda()
    assert made.tiny_words.is_cuda and made.dense.is_cuda and made.by_k.is_cuda
    near(made(x.cuda()).cpu(), wanted.double())
    other: Any = aks.nn.Int4Linear(128, 32, device="cuda").eval()
    other.load_state_dict(made.state_dict())
    assert torch.equal(made.tiny_words, other.tiny_words)
    made = made.cpu()
    assert made.tiny_words is None and torch.equal(made(x), wanted)
