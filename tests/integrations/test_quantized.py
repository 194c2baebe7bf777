"""8-bit linear functions and layers, and ``aks.quantize``: right, under all that PyTorch does, and kind to mistakes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aks
from aks.integrations import quantized_ops
from aks.integrations.quantized import PRECISIONS
from aks.ops.quantize_rows.reference import quantize, quantize_blocks
from aks.ops.quantize_rows.spec import QuantizeRowsProblem

gpu = pytest.mark.gpu
BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
MODES = [("fp8", "row"), ("fp8", "tensor"), ("fp8", "block"), ("int8", "row")]
LINEAR: dict[str, Any] = {"fp8": aks.fp8_linear, "int8": aks.int8_linear}
DTYPE = {"fp8": FP8, "int8": INT8}
modes = pytest.mark.parametrize(("precision", "scaling"), MODES)


def quantized(x: Tensor, precision: str, scaling: str, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Values and scales of x [R, K]; of blocks with so many rows."""
    if scaling == "block":
        return quantize_blocks(x, DTYPE[precision], rows)
    return quantize(x, DTYPE[precision], scaling == "row")


def dequantized(values: Tensor, scale: Tensor, rows: int = 1) -> Tensor:
    """In float64, each value by itself times its scale."""
    if scale.dim() == 1:
        return values.double() * scale.double()[:, None]
    r, k = torch.arange(len(values)) // rows, torch.arange(values.shape[1]) // 128
    return values.double() * scale.double()[r[:, None], k[None, :]]


def operands(
    precision: str, scaling: str, shape: tuple[int, ...], n: int, *, dtype: torch.dtype = BF16, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x of that shape, a quantised weight [n, K], its scales, and a bias."""
    x = torch.randn(shape, device=device).to(dtype)
    w, w_scale = quantized(torch.randn(n, shape[-1], device=device), precision, scaling, 128)
    return x, w, w_scale, torch.randn(n, device=device).to(BF16)


def expected(precision: str, scaling: str, x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None) -> Tensor:
    """In float64, of the values that x is quantised to."""
    rows = x.reshape(-1, x.shape[-1])
    y = dequantized(*quantized(rows, precision, scaling)) @ dequantized(w, w_scale, 128).T
    return (y if bias is None else y + bias.double()).view(*x.shape[:-1], len(w))


def check(y: Tensor, wanted: Tensor, accumulation: float = 0.0) -> None:
    """bf16, and right but for its rounding, and for sums of so many bits."""
    assert y.dtype == BF16 and y.shape == wanted.shape
    allowed = 2.0**-8 * wanted.abs() + (1e-5 + accumulation) * (1 + wanted.std(correction=0))
    assert ((y.double() - wanted).abs() <= allowed).all(), float(((y.double() - wanted).abs() - allowed).max())


@modes
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "n"), [((1, 64), 32), ((2, 3, 80), 48), ((7, 131), 33), ((5, 16), 1), ((16,), 4), ((3, 300), 260)]
)
def test_functions_are_right(precision: str, scaling: str, dtype: torch.dtype, shape, n) -> None:
    x, w, w_scale, bias = operands(precision, scaling, shape, n, dtype=dtype)
    for one in (None, bias):
        wanted = expected(precision, "row" if n == 1 and scaling == "tensor" else scaling, x, w, w_scale, one)
        check(LINEAR[precision](x, w, w_scale, one), wanted)


@modes
def test_an_x_that_is_quantised_already(precision: str, scaling: str) -> None:
    x, w, w_scale, bias = operands(precision, scaling, (2, 3, 272), 48)
    values, x_scale = quantized(x.view(6, 272), precision, scaling)
    if scaling != "tensor":
        x_scale = x_scale.view(2, 3, *x_scale.shape[1:])
    y = LINEAR[precision](values.view(x.shape), w, w_scale, bias, x_scale=x_scale)
    assert torch.equal(y, LINEAR[precision](x, w, w_scale, bias))
    if scaling == "block":
        values, laid_out = aks.quantize_rows(x, FP8, 128)
        assert laid_out.stride() != x_scale.stride()
        assert torch.equal(y, aks.fp8_linear(values, w, w_scale, bias, x_scale=laid_out))
        with pytest.raises(
            ValueError, match=r"x_scale is \[18\].*; wanted 18 float32 in rows of 3, as w_scale is by block"
        ):
            aks.fp8_linear(values.view(x.shape), w, w_scale, x_scale=x_scale.reshape(-1))


@modes
def test_odd_strides_and_nothing_at_all(precision: str, scaling: str) -> None:
    x, w, w_scale, bias = operands(precision, scaling, (6, 64), 32)
    linear = LINEAR[precision]
    wanted = linear(x, w, w_scale, bias)
    assert torch.equal(linear(x.T.contiguous().T, w.T.contiguous().T, w_scale, bias), wanted)
    assert torch.equal(linear(torch.stack([x, x])[:, :, :].transpose(0, 1), w, w_scale, bias)[:, 1], wanted)
    assert torch.equal(linear(x[1:2].expand(4, 64), w, w_scale, bias), linear(x[[1] * 4], w, w_scale, bias))
    assert linear(x[:0], w, w_scale, bias).shape == (0, 32)
    none = w_scale[:, :0] if scaling == "block" else w_scale
    assert torch.equal(linear(x[:, :0], w[:, :0], none, bias), bias.expand(6, 32))


@modes
def test_rows_that_are_not_finite_give_nan(precision: str, scaling: str) -> None:
    x, w, w_scale, bias = operands(precision, scaling, (4, 64), 32)
    wanted = LINEAR[precision](x, w, w_scale, bias)
    x[1, 3], x[2, 5] = float("inf"), float("nan")
    y = LINEAR[precision](x, w, w_scale, bias)
    assert y[1:3].isnan().all()
    if scaling != "tensor":
        assert torch.equal(y[[0, 3]], wanted[[0, 3]])


@modes
def test_calls_go_to_the_dispatcher_unless_its_tree_declines(stand_in, precision: str, scaling: str) -> None:
    x, w, w_scale, bias = operands(precision, scaling, (2, 3, 80), 48)
    wanted = expected(precision, scaling, x, w, w_scale, bias)
    served = stand_in.layers[f"{precision}_gemm"]
    mode = {"fast_accum": False} if precision == "fp8" else {}
    check(LINEAR[precision](x, w, w_scale, bias, static_weights=True, **mode), wanted)
    [problem] = served.calls
    assert (problem.m, problem.n, problem.k, problem.static_weights) == (6, 48, 80, True)
    assert precision == "int8" or (problem.scaling, problem.fast_accum) == (scaling, False)
    with quantized_ops.vendor_only():
        check(LINEAR[precision](x, w, w_scale, bias), wanted)
    served.declines = True
    check(LINEAR[precision](x, w, w_scale, bias), wanted)
    assert len(served.calls) == 1


def test_quantize_rows_is_launched_too(stand_in) -> None:
    class Quantises:
        def __init__(self) -> None:
            self.problems: list[Any] = []

        def launch(self, call, x, operands, out) -> bool:
            self.problems.append(call.problem())
            values, scale = quantize(x, out.dtype)
            out.copy_(values)
            operands.scale.copy_(scale.reshape(-1))
            return True

    served = stand_in.layers["quantize_rows"] = Quantises()
    x = torch.randn(2, 3, 80).to(BF16)
    for one in (x, x.transpose(0, 1)):
        values, scale = aks.quantize_rows(one, INT8)
        wanted, wanted_scale = quantize(one, INT8)
        assert torch.equal(values, wanted) and torch.equal(scale, wanted_scale)
    assert [(p.m, p.k, p.dtype, p.out_dtype) for p in served.problems] == [(6, 80, "bf16", "int8")] * 2
    y = aks.int8_linear(x, *quantize(torch.randn(48, 80), INT8))
    assert y.shape == (2, 3, 48) and len(served.problems) == 3


def test_rows_of_one_group_may_have_flat_scales() -> None:
    x, w, w_scale, bias = operands("fp8", "block", (2, 3, 80), 48)
    values, x_scale = aks.quantize_rows(x, FP8, 128)
    wanted = aks.fp8_linear(x, w, w_scale, bias)
    for one in (x_scale, x_scale.reshape(6), x_scale.reshape(6, 1)):
        assert torch.equal(aks.fp8_linear(values, w, w_scale, bias, x_scale=one), wanted)


def test_rows_are_quantised_in_groups(stand_in) -> None:
    launched: list[QuantizeRowsProblem] = []

    class Quantises:
        def launch(self, call, x, operands, out) -> bool:
            launched.append(call.problem())
            values, scale = quantize_blocks(x.view(-1, x.shape[-1]), out.dtype, 1)
            out.view(values.shape).copy_(values)
            operands.scale.copy_(scale)
            return True

    x = torch.randn(2, 3, 272).to(BF16)
    for served in (None, Quantises()):
        stand_in.layers["quantize_rows"] = served
        for one in (x, x.transpose(0, 1), x[0], x[0, 0]):
            values, scale = aks.quantize_rows(one, FP8, 128)
            wanted, wanted_scale = quantize_blocks(one.reshape(-1, 272), FP8, 1)
            assert values.shape == one.shape and torch.equal(values.float(), wanted.view(one.shape).float())
            assert scale.shape == (*one.shape[:-1], 3) and torch.equal(scale, wanted_scale.view(scale.shape))
            wide = -(-one.shape[:-1].numel() // 4) * 4
            assert scale.stride()[-1] == wide and (one.dim() < 2 or scale.stride()[-2] == 1)
    assert [(p.m, p.k, p.group) for p in launched] == [(6, 272, 128), (6, 272, 128), (3, 272, 128), (1, 272, 128)]
    aks.fp8_linear(x, *quantize_blocks(torch.randn(48, 272), FP8))
    assert len(launched) == 5


def test_quantize_rows_of_nothing_and_of_other_floats() -> None:
    values, scale = aks.quantize_rows(torch.randn(0, 16), FP8)
    assert values.shape == (0, 16) and scale.shape == (0,)
    for shape, wanted in (((0, 300), (0, 3)), ((2, 0), (2, 0)), ((0,), (0,))):
        values, scale = aks.quantize_rows(torch.randn(shape), FP8, 128)
        assert values.shape == shape and scale.shape == wanted
    x = torch.randn(3, 16)
    assert torch.equal(aks.quantize_rows(x, FP8)[0].float(), quantize(x, FP8)[0].float())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"w": lambda o: o["w"].to(BF16)}, r"w is \[32, 64\] torch.bfloat16; wanted \[N, K\] of"),
        ({"x": lambda o: o["x"][:, :60]}, r"rows of both must be of one length"),
        ({"w_scale": lambda o: o["w_scale"][:5]}, r"w_scale is \[5\] torch.float32; wanted float32 \[32\] \(row\)"),
        ({"w_scale": lambda o: o["w_scale"].double()}, r"w_scale is \[32\] torch.float64"),
        ({"bias": lambda o: o["bias"].float()}, r"bias is \[32\] torch.float32; wanted \[32\] of torch.bfloat16"),
        ({"x_scale": lambda o: torch.ones(3)}, r"x is torch.bfloat16, and x_scale is given; wanted"),
        ({"x": lambda o: o["x"].to(torch.int32)}, r"x is torch.int32; wanted bfloat16"),
        ({"x": lambda o: quantize(o["x"], o["w"].dtype)[0]}, r"x is quantised, and x_scale is not given; wanted 3"),
        ({"bias": lambda o: o["bias"].to("meta")}, r"x is on cpu, bias on meta"),
    ],
)
@pytest.mark.parametrize("precision", LINEAR)
def test_what_does_not_fit_is_said(precision: str, changes, says: str) -> None:
    given = dict(zip(("x", "w", "w_scale", "bias"), operands(precision, "row", (3, 64), 32), strict=True))
    given |= {name: change(given) for name, change in changes.items()}
    with pytest.raises(ValueError, match=f"aks.{precision}_linear: .*{says}"):
        LINEAR[precision](given.pop("x"), **given)


def test_quantize_rows_says_what_it_takes() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch.float16; wanted one of torch.float8_e4m3fn, torch.int8"):
        aks.quantize_rows(torch.ones(2, 4), torch.float16)
    with pytest.raises(ValueError, match=r"x is \[2\] torch.int8; wanted"):
        aks.quantize_rows(torch.ones(2, dtype=INT8), FP8)
    with pytest.raises(ValueError, match=r"group is 64, dtype torch.float8_e4m3fn; wanted one of 0, 128"):
        aks.quantize_rows(torch.ones(2, 4), FP8, 64)
    with pytest.raises(ValueError, match=r"group is 128, dtype torch.int8; wanted 0, as it is of whole rows"):
        aks.quantize_rows(torch.ones(2, 4), INT8, 128)


def compiled_or_not(function: Any) -> list[Any]:
    torch._dynamo.reset()
    backends = ("eager", "aot_eager")
    return [function, *(torch.compile(function, backend=name, fullgraph=True) for name in backends)]


@modes
def test_gradients_are_refused(precision: str, scaling: str) -> None:
    x, w, w_scale, _ = operands(precision, scaling, (3, 64), 32)
    x.requires_grad_()
    for run in (LINEAR[precision], getattr(torch.ops.aks, f"{precision}_linear")):
        with pytest.raises(RuntimeError, match=f"aks.{precision}_linear has no gradient.*no_grad"):
            run(x, w, w_scale)
        with torch.no_grad():
            assert not run(x, w, w_scale).requires_grad
    with pytest.raises(RuntimeError, match=r"aks\.quantize_rows has no gradient"):
        aks.quantize_rows(x, FP8)


@modes
def test_functions_compile_whole(precision: str, scaling: str) -> None:
    x, w, w_scale, bias = operands(precision, scaling, (3, 64), 32)

    def function(x: Tensor) -> Tensor:
        return LINEAR[precision](x + 1, w, w_scale, bias, static_weights=True).relu()

    results = [run(x) for run in compiled_or_not(function)]
    assert all(torch.equal(one, results[0]) for one in results)


def test_quantize_rows_compiles_whole() -> None:
    x = torch.randn(3, 64).to(BF16)
    for dtype, group in ((INT8, 0), (FP8, 128)):

        def function(x: Tensor, dtype: torch.dtype = dtype, group: int = group) -> tuple[Tensor, Tensor]:
            return aks.quantize_rows(x + 1, dtype, group)

        results = [run(x) for run in compiled_or_not(function)]
        for pair in results[1:]:
            for one, other in zip(pair, results[0], strict=True):
                assert torch.equal(one.float(), other.float()) and one.stride() == other.stride()


@modes
def test_ops_are_what_pytorch_expects(precision: str, scaling: str) -> None:
    x, w, w_scale, bias = operands(precision, scaling, (3, 64), 32)
    op = getattr(torch.ops.aks, f"{precision}_linear").default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    # The test of schemas compares operands, which PyTorch cannot where they are 8-bit floats.
    torch.library.opcheck(op, (x, w, w_scale, bias), test_utils=tests[precision == "fp8" :])
    torch.library.opcheck(torch.ops.aks.quantize_rows.default, (x, INT8), test_utils=tests[:2])
    for one in (x, torch.randn(2, 3, 272), torch.randn(272)):
        torch.library.opcheck(torch.ops.aks.quantize_rows.default, (one, FP8, 128), test_utils=tests[1:])


# Layers.


def linear(bias: bool = True, dtype: torch.dtype = BF16) -> nn.Linear:
    return nn.Linear(64, 32, bias=bias, dtype=dtype).eval()


@modes
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_is_its_function(precision: str, scaling: str, bias: bool) -> None:
    layer = linear(bias)
    made: Any = PRECISIONS[precision].from_linear(layer, scaling)
    weight, scale = quantized(layer.weight, precision, scaling, 128)
    assert torch.equal(made.weight.float(), weight.float()) and torch.equal(made.weight_scale, scale)
    x = torch.randn(2, 3, 64).to(BF16)
    check(made(x), expected(precision, scaling, x, weight, scale, layer.bias))
    assert made(x.half()).dtype == torch.float16
    assert not made.training and not list(made.parameters())
    assert f"in_features=64, out_features=32, bias={bias}, scaling='{scaling}'" in repr(made)
    error = (made(x) - layer(x)).float().norm() / layer(x).float().norm()
    assert error < (0.02 if precision == "int8" else 0.06)


@modes
@torch.no_grad()
def test_a_state_dict_goes_round(precision: str, scaling: str) -> None:
    kind = PRECISIONS[precision]
    made, other = kind.from_linear(linear(), scaling), kind(64, 32, scaling=scaling).eval()
    assert list(made.state_dict()) == ["weight", "weight_scale", "bias"]
    x = torch.randn(3, 64).to(BF16)
    assert not other(x).any()
    other.load_state_dict(made.state_dict())
    torch.save(made, file := io.BytesIO())
    file.seek(0)
    for one in (other, copy.deepcopy(made), torch.load(file, weights_only=False)):
        assert torch.equal(one(x), made(x))
    with pytest.raises(RuntimeError, match=r"weight is torch.bfloat16; this layer's is .*before it is quantised"):
        made.load_state_dict(linear().state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        made.load_state_dict({})


@modes
@torch.no_grad()
def test_a_layer_of_what_is_quantised_already(precision: str, scaling: str) -> None:
    kind: Any = PRECISIONS[precision]
    wanted = kind.from_linear(linear(), scaling)
    made = kind.from_quantized(wanted.weight, wanted.weight_scale, wanted.bias)
    x = torch.randn(3, 64).to(BF16)
    assert (made.scaling, made.in_features, made.out_features, made.training) == (scaling, 64, 32, False)
    assert torch.equal(made(x), wanted(x)) and made.weight.data_ptr() == wanted.weight.data_ptr()
    with pytest.raises(ValueError, match=r"weight is \[32, 64\] torch.float32; wanted \[out_features, in_features\]"):
        kind.from_quantized(wanted.weight.float(), wanted.weight_scale)
    with pytest.raises(ValueError, match=r"w_scale is \[7\] torch.float32; wanted float32 \[32\] \(row\)"):
        kind.from_quantized(wanted.weight, torch.ones(7))
    with pytest.raises(ValueError, match=r"bias is \[3\]; wanted \[32\]"):
        kind.from_quantized(wanted.weight, wanted.weight_scale, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@torch.no_grad()
def test_checkpoints_of_deepseek_are_loaded(dtype: torch.dtype) -> None:
    n, k = 260, 400
    weight, scale = quantize_blocks(torch.randn(n, k), FP8)
    scale = scale.to(dtype)
    checkpoint = {"proj.weight": weight, "proj.weight_scale_inv": scale}
    x = torch.randn(3, k).to(BF16)
    wanted = expected("fp8", "block", x, weight, scale.float(), None)
    check(aks.nn.Fp8Linear.from_quantized(weight, scale)(x), wanted)
    for device, assign in (("cpu", False), ("meta", True)):
        model = nn.ModuleDict({"proj": aks.nn.Fp8Linear(k, n, False, device, scaling="block")}).eval()
        model.load_state_dict(checkpoint, assign=assign)
        assert list(checkpoint) == ["proj.weight", "proj.weight_scale_inv"]
        check(model["proj"](x), wanted)
        assert list(model.state_dict()) == ["proj.weight", "proj.weight_scale"]
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"proj.weight_scale_inv"'):
        nn.ModuleDict({"proj": aks.nn.Fp8Linear(k, n, False)}).load_state_dict(checkpoint)
    with pytest.raises(RuntimeError, match=r"size mismatch for proj\.weight_scale"):
        model.load_state_dict(checkpoint | {"proj.weight_scale_inv": scale[:1]})


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.float32), lambda m: m.half(), lambda m: m.to("cpu", BF16)])
@modes
def test_casting_leaves_what_is_stored(precision: str, scaling: str, cast) -> None:
    made = PRECISIONS[precision].from_linear(linear(), scaling)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    model = cast(nn.Sequential(made, nn.Linear(4, 4)))
    for name, value in model[0].state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value.float(), before[name].float())
    moved = made.to("meta", torch.float32)
    assert {value.device.type for value in moved.buffers()} == {"meta"} and moved.weight.dtype == DTYPE[precision]


@torch.no_grad()
def test_weights_are_static_from_the_second_call_on(stand_in) -> None:
    made = PRECISIONS["int8"].from_linear(linear())
    calls = stand_in.layers["int8_gemm"].calls
    x = torch.randn(3, 64).to(BF16)

    def static() -> bool:
        made(x)
        return calls.pop().static_weights

    assert [static(), static()] == [False, True]
    made.weight.mul_(1)
    assert [static(), static()] == [False, True]
    made.train()
    assert not static()
    made.eval().static_weights = False
    assert not static()


@modes
@torch.no_grad()
def test_layers_compile_and_export(precision: str, scaling: str) -> None:
    made = nn.Sequential(PRECISIONS[precision].from_linear(linear(), scaling), nn.ReLU()).eval()
    x = torch.randn(3, 64).to(BF16)
    wanted = made(x)
    assert all(torch.equal(run(x), wanted) for run in compiled_or_not(made))
    rows = torch.export.Dim("rows", max=64)
    exported = torch.export.export(made, (x,), dynamic_shapes=({0: rows},))
    assert [str(node.target) for node in exported.graph.nodes].count(f"aks.{precision}_linear.default") == 1
    assert torch.equal(exported.module()(x), wanted)
    assert torch.equal(exported.module()(x[:2]), made(x[:2]))


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match=r"scaling is 'column'; aks.nn.Int8Linear takes row"):
        aks.nn.Int8Linear.from_linear(linear(), "column")
    with pytest.raises(ValueError, match=r"aks.nn.Fp8Linear takes row, tensor, block"):
        aks.nn.Fp8Linear(8, 8, scaling="block4")
    layer = linear()
    with torch.no_grad():
        layer.weight[1, 2] = float("nan")
    with pytest.raises(ValueError, match="the weight has an infinity or NaN"):
        aks.nn.Fp8Linear.from_linear(layer)
    with pytest.raises(ValueError, match="on the meta device: load it first"):
        aks.nn.Fp8Linear.from_linear(linear().to("meta"))


# aks.quantize.


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)
        self.router = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu()) * self.router(x).amax(-1, keepdim=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.blocks[1].down = self.blocks[0].down
        self.lm_head = nn.Linear(32, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


def model() -> Any:
    return Model().to(BF16).eval()


SKIPPED_ROUTERS = "  skipped   blocks.*.router (2): out_features is 4, no multiple of 16: most kernels want that\n"


@modes
@torch.no_grad()
def test_a_model_is_quantised(capsys, precision: str, scaling: str) -> None:
    made, x = model(), torch.randn(5, 32).to(BF16)
    wanted = made(x)
    layers = dict(made.named_modules())
    summary = aks.quantize(made, precision, scaling=scaling)
    said = capsys.readouterr().out
    assert said.startswith(f"aks.quantize: 3 of 6 linear layers to {precision}, 0.0123 MB to 0.00")
    assert said.endswith(
        "  replaced  blocks.*.up (2)\n  replaced  blocks.*.down\n" + SKIPPED_ROUTERS
        + "  skipped   lm_head: skip has 'lm_head'\n"
    )  # fmt: skip
    assert summary.replaced == ("blocks.0.up", "blocks.0.down", "blocks.1.up")
    assert made.blocks[0].down is made.blocks[1].down and type(made.blocks[0].down) is PRECISIONS[precision]
    assert made.lm_head is layers["lm_head"]
    assert (made(x) - wanted).float().norm() < 0.1 * wanted.float().norm()
    assert not aks.quantize(made, precision, verbose=False).replaced


@pytest.mark.parametrize(
    ("skip", "replaced"),
    [
        ((), {"blocks.0.up", "blocks.0.down", "blocks.1.up", "lm_head"}),
        (("up", "lm_head"), {"blocks.0.down"}),
        ((r"blocks\.1", "head"), {"blocks.0.up", "blocks.0.down", "lm_head"}),
        ((r"blocks\.\d+\.up",), {"blocks.0.down", "lm_head"}),
    ],
)
def test_names_and_patterns_are_skipped(skip, replaced) -> None:
    assert set(aks.quantize(model(), "fp8", skip=skip, verbose=False).replaced) == replaced


def test_what_is_no_plain_layer_is_skipped_with_a_reason(stand_in) -> None:
    made = model()
    made.blocks[0].up.register_forward_hook(lambda *rest: None)
    made.blocks[1].up.train()
    made.blocks[0].down.forward = lambda x: x
    skipped = aks.quantize(made, "int8", skip=(), verbose=False).skipped
    assert skipped["blocks.0.up"] == "has hooks"
    assert skipped["blocks.1.up"] == "in training mode: call eval() first"
    assert skipped["blocks.0.down"] == "its forward was replaced"
    made = model()
    aks.patch(made, verbose=False)
    summary = aks.quantize(made, "int8", verbose=False)
    assert not summary.replaced and "call aks.unpatch first" in summary.skipped["blocks.0.up"]


@torch.no_grad()
def test_a_quantised_model_is_prepared_and_patched(stand_in) -> None:
    made, x = model(), torch.randn(5, 32).to(BF16)
    aks.quantize(made, "int8", verbose=False)
    wanted = made(x)
    served = stand_in.layers["int8_gemm"]
    assert served.calls and all(problem.static_weights for problem in served.calls)  # from the first call on
    assert set(aks.patch(made, verbose=False).replaced) == {"blocks.0.router", "blocks.1.router", "lm_head"}
    torch.testing.assert_close(made(x), wanted, rtol=2e-2, atol=2e-2)
    served.calls.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "synchronize", lambda index: None)
        assert aks.prepare(made, [1, 3]) == 4
    assert [problem.m for problem in served.calls if problem.k == 64] == [1, 3]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="precision is 'fp4'; known: fp8, int8, int4"):
        aks.quantize(model(), "fp4")
    with pytest.raises(TypeError, match=r"use aks.nn.Fp8Linear.from_linear\(model\)"):
        aks.quantize(linear(), "fp8")
    with pytest.raises(TypeError, match=r"wanted a torch.nn.Module"):
        aks.quantize({"weight": torch.ones(3)}, "fp8")  # type: ignore[arg-type]
    broken = model()
    with torch.no_grad():
        broken.blocks[1].up.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"blocks.1.up: .*infinity or NaN"):
        aks.quantize(broken, "fp8", verbose=False)


# On a GPU: no tree is shipped yet, or one is; both must be right.


@gpu
@modes
@pytest.mark.parametrize(
    ("shape", "n"), [((1, 4096), 4096), ((2, 3, 1024), 512), ((130, 72), 200), ((5, 131), 33), ((6, 400), 260)]
)
def test_functions_are_right_on_gpu(precision: str, scaling: str, shape, n: int) -> None:
    x, w, w_scale, bias = operands(precision, scaling, shape, n, device="cuda")
    wanted = expected(precision, scaling, x, w, w_scale, bias)
    accurate = {"fast_accum": False} if precision == "fp8" else {}
    check(LINEAR[precision](x, w, w_scale, bias, **accurate), wanted, 2e-2 if precision == "fp8" else 0)
    check(LINEAR[precision](x, w, w_scale, bias), wanted, 5e-2 if precision == "fp8" else 0)
    with quantized_ops.vendor_only():
        check(LINEAR[precision](x, w, w_scale, bias), wanted, 5e-2 if precision == "fp8" else 0)


@gpu
def test_rows_are_quantised_in_groups_on_gpu() -> None:
    x = torch.randn(2, 3, 400, device="cuda").to(BF16)
    values, scale = aks.quantize_rows(x, FP8, 128)
    wanted, wanted_scale = quantize_blocks(x.view(6, 400), FP8, 1)
    assert torch.equal(values.view(6, 400).float(), wanted.float())
    assert torch.equal(scale.reshape(6, 4), wanted_scale) and scale.stride() == (3, 1, 8)


@gpu
@modes
@torch.no_grad()
def test_layers_in_a_cuda_graph_and_compiled(precision: str, scaling: str) -> None:
    layer = nn.Linear(1024, 512, dtype=BF16, device="cuda").eval()
    made = nn.Sequential(PRECISIONS[precision].from_linear(layer, scaling), nn.ReLU()).eval()
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
    for rows in (x, other):
        wanted = made(rows)
        x.copy_(rows)
        y.fill_(float("nan"))
        graph.replay()
        torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)
