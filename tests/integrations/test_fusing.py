"""What fuses with linear layers: found by what it computes, computed alike, undone without a trace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

import aks

BF16 = torch.bfloat16
gpu = pytest.mark.gpu


class RMSNorm(nn.Module):
    def __init__(self, size: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.eps, self.offset = 1e-5, offset

    def forward(self, x: Tensor) -> Tensor:
        rows = x.float()
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.eps)
        return (rows * (self.offset + self.weight.float())).to(x.dtype)


class CentredRMSNorm(RMSNorm):
    """Its name is misleading."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class GatedLayer(nn.Module):
    def __init__(self, size: int, act: Any = functional.silu) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, 3 * size, bias=False)
        self.down_proj, self.act = nn.Linear(3 * size, size, bias=False), act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class ClampedLayer(GatedLayer):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)).clamp(max=0.1) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, size: int, kind: type = GatedLayer, offset: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = RMSNorm(size, offset), RMSNorm(size, offset)
        self.mix, self.layer = nn.Linear(size, size), kind(size)

    def forward(self, hidden: Tensor, *, scale: float = 1.0) -> Tensor:
        residual = hidden
        hidden = self.first(hidden)
        hidden = self.mix(hidden) * scale
        hidden = residual + hidden
        residual = hidden
        hidden = self.second(hidden)
        hidden = self.layer(hidden)
        hidden = hidden + residual
        return hidden


class OtherBlock(Block):
    """The second addition is of something else, and a statement lies between the two of the first."""

    def forward(self, hidden: Tensor, *, scale: float = 1.0) -> Tensor:
        residual = hidden
        hidden = self.mix(self.first(hidden)) * scale
        hidden = residual + hidden
        hidden = hidden * 2
        residual = hidden
        hidden = self.layer(self.second(hidden))
        hidden = hidden + hidden
        return hidden + residual


def made(kind: type = Block, size: int = 16, device: str = "cpu", **rest: Any) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return nn.Sequential(*(kind(size, **rest) for _ in range(2))).to(BF16).eval()


@torch.no_grad()
def outputs(model: nn.Module, m: int = 3, size: int = 16, device: str = "cpu") -> Tensor:
    x = torch.randn(2, m, size, generator=torch.Generator().manual_seed(1)).to(device, BF16)
    return model(x)


def patched(model: nn.Module, **rest: Any) -> Any:
    return aks.patch(model, static_weights=True, verbose=False, **rest)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_block_computes_the_same_in_four_kernels(stand_in, offset: float) -> None:
    model = made(offset=offset)
    wanted = outputs(model)
    summary = patched(model)
    assert [summary.fused[f"0{name}"] for name in ("", ".first", ".second", ".layer")] == [
        "residual additions", "RMSNorm", "RMSNorm", "gate, up, activation and product",
    ]  # fmt: skip
    for layer in stand_in.layers.values():
        layer.calls.clear()
    assert_close(outputs(model), wanted, rtol=5e-2, atol=5e-2)
    epilogues = [problem.epilogue for problem in stand_in.layers["fused_linear"].calls]
    assert epilogues == ["bias", "silu_mul", "residual"] * 2
    assert [problem.residual for problem in stand_in.layers["rms_norm"].calls] == [False, True] * 2


def test_what_the_trees_decline_is_as_it_was(stand_in) -> None:
    model = made()
    wanted = outputs(model)
    patched(model)
    for layer in stand_in.layers.values():
        layer.declines = True
    assert_close(outputs(model), wanted, rtol=2e-2, atol=2e-2)


def test_unpatching_leaves_no_trace(stand_in) -> None:
    model = made()
    before = [(type(module), set(vars(module))) for module in model.modules()]
    wanted = outputs(model)
    patched(model)
    aks.unpatch(model, verbose=False)
    assert [(type(module), set(vars(module))) for module in model.modules()] == before
    assert torch.equal(outputs(model), wanted)


def test_only_the_fusions_that_are_asked_for(stand_in) -> None:
    for kinds, count in (((), 0), (("norm",), 4), (("gated",), 2), (("norm", "residual"), 6)):
        model = made()
        assert len(patched(model, fuse=kinds).fused) == count
    with pytest.raises(ValueError, match="no fusion bread; known: norm, gated, residual"):
        patched(made(), fuse=("bread",))


@pytest.mark.parametrize(
    ("make", "lacking"),
    [
        (lambda: made(kind_of_layer(ClampedLayer)), "layer"),
        (lambda: made(kind_of_layer(lambda size: GatedLayer(size, functional.relu))), "layer"),
        (lambda: with_norm(CentredRMSNorm(16)), "second"),
        (lambda: with_norm(nn.LayerNorm(16)), "second"),
        (lambda: with_norm(RMSNorm(16, 0.5)), "second"),
    ],
    ids=["clamped", "relu", "centred", "layer norm", "other offset"],
)
def test_what_computes_something_else_is_left_alone(stand_in, make, lacking) -> None:
    model = make()
    wanted = outputs(model)
    summary = patched(model)
    assert f"1.{lacking}" not in summary.fused and len(summary.fused) in (6, 7)
    assert_close(outputs(model), wanted, rtol=5e-2, atol=5e-2)


def kind_of_layer(kind: Any) -> Any:
    return lambda size: Block(size, kind)


def with_norm(norm: nn.Module) -> nn.Module:
    model: Any = made()
    model[1].second = norm.to(BF16).eval()
    return model


def test_a_block_of_another_form_is_left_alone(stand_in) -> None:
    model = made(OtherBlock)
    wanted = outputs(model)
    assert "0" not in patched(model).fused
    assert_close(outputs(model), wanted, rtol=5e-2, atol=5e-2)


def test_hooks_inside_see_what_they_saw(stand_in) -> None:
    model: Any = made()
    patched(model)
    wanted = outputs(model)
    seen: list[str] = []
    block = model[0]
    for name in ("second", "layer", "layer.gate_proj", "layer.down_proj"):
        block.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.append(name))
    assert_close(outputs(model), wanted, rtol=5e-2, atol=5e-2)
    assert seen == ["second", "layer.gate_proj", "layer.down_proj", "layer"]


def test_training_and_gradients_are_torchs(stand_in) -> None:
    model, reference = made(), made()
    patched(model)
    for layer in stand_in.layers.values():
        layer.calls.clear()
    x = torch.randn(3, 16, dtype=BF16)
    for one in (model, reference):
        one(x).float().square().sum().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad)
    assert not any(layer.calls for layer in stand_in.layers.values())
    assert not patched(made().train()).fused


def test_copies_and_pickles_are_fused_too(stand_in) -> None:
    model: Any = made()
    patched(model)
    wanted = outputs(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
        assert torch.equal(outputs(other), wanted)
        aks.unpatch(other, verbose=False)
        assert type(other[0]) is Block
    assert isinstance(model[0], Block) and repr(model) == repr(made())


def test_compiled_code_is_the_compilers(stand_in) -> None:
    model = made()
    wanted = outputs(model)
    patched(model)
    for layer in stand_in.layers.values():
        layer.calls.clear()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(outputs(compiled), wanted, rtol=5e-2, atol=5e-2)
    assert not any(layer.calls for layer in stand_in.layers.values())


def test_a_rewritten_method_keeps_its_signature_and_defaults(stand_in) -> None:
    model: Any = made()
    wanted = model[0](torch.ones(3, 16, dtype=BF16), scale=0.5)
    patched(model)
    with torch.no_grad():
        assert_close(model[0](torch.ones(3, 16, dtype=BF16), scale=0.5), wanted, rtol=5e-2, atol=5e-2)
    with pytest.raises(TypeError):
        model[0](torch.ones(3, 16, dtype=BF16), 0.5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("one_plus", [False, True])
def test_norms_of_tensors(stand_in, residual: bool, one_plus: bool) -> None:
    x, other, weight = torch.randn(2, 3, 24), torch.randn(2, 3, 24), torch.rand(24)
    x, other, weight = x.to(BF16), other.to(BF16), weight.to(BF16)
    total = x + other if residual else x
    wanted = functional.rms_norm(total, (24,), weight + one_plus, 1e-6)
    for declines in (False, True):
        stand_in.layers["rms_norm"].declines = declines
        if residual:
            y, summed = aks.add_rms_norm(x, other, weight, one_plus=one_plus)
            assert torch.equal(summed, total)
        else:
            y = aks.rms_norm(x, weight, one_plus=one_plus)
        assert_close(y, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("declines", [False, True])
@pytest.mark.parametrize(
    ("parts", "activation"),
    [
        ({}, None), ({"bias"}, None), ({"bias"}, "gelu"), ({"bias", "residual"}, None), ({"residual"}, "silu"),
        ({"up"}, "silu"), ({"up"}, "gelu"), ({"up", "residual"}, "silu"), ({"up", "bias"}, "gelu_tanh"),
    ],
)  # fmt: skip
def test_layers_of_tensors(stand_in, declines: bool, parts: set[str], activation: str | None) -> None:
    """Whatever is asked for is computed, by a kernel or without."""
    stand_in.layers["fused_linear"].declines = declines
    shapes = {"up": (12, 24), "bias": (12,), "residual": (2, 3, 12)}
    x, w = torch.randn(2, 3, 24).to(BF16), torch.randn(12, 24).to(BF16)
    given: dict[str, Any] = {name: torch.randn(shapes[name]).to(BF16) for name in sorted(parts)}
    wanted = functional.linear(x, w, given.get("bias"))
    if activation:
        wanted = functional.silu(wanted) if activation == "silu" else functional.gelu(wanted, approximate="tanh")
    if "up" in given:
        wanted = wanted * functional.linear(x, given["up"])
    if "residual" in given:
        wanted = wanted + given["residual"]
    y = aks.fused_linear(x, w, activation=activation, **given)
    assert_close(y, wanted, rtol=5e-2, atol=1e-1)
    with pytest.raises(ValueError, match="activation is 'swish'; wanted one of silu"):
        aks.fused_linear(x, w, activation="swish")


@gpu
@pytest.mark.parametrize("m", [1, 3, 16, 200])
def test_blocks_on_the_gpu(shipped_tree, m: int) -> None:
    model = made(size=1024, device="cuda")
    wanted = outputs(model, m, 1024, "cuda")
    summary = patched(model)
    assert len(summary.fused) == 8
    assert_close(outputs(model, m, 1024, "cuda"), wanted, rtol=6e-2, atol=6e-2)


@gpu
def test_a_captured_block_replays(shipped_tree) -> None:
    model = made(size=1024, device="cuda")
    patched(model)
    x = torch.randn(1, 2, 1024, device="cuda", dtype=BF16)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(2):
            wanted = model(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = model(x)
    for _ in range(3):
        y.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, wanted)
