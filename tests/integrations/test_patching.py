"""``aks.patch`` and ``aks.unpatch``: what is replaced, what is not and why, and that nothing else changes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import aks
from aks.integrations import torch_ops
from aks.runtime import dispatcher as dispatchers

BF16 = torch.bfloat16


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16, bias=bias)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    """Three blocks, and a head that is tied to the embedding."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block(bias) for _ in range(3))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 10]])


def made(**rest: Any) -> Any:
    return Model(**rest).to(BF16).eval()


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    return model(TOKENS)


def test_a_model_is_patched_and_back(stand_in, capsys) -> None:
    model = made()
    layers = list(model.modules())
    wanted, state = outputs(model), {name: value.clone() for name, value in model.state_dict().items()}

    summary = aks.patch(model)
    assert capsys.readouterr().out == (
        "aks.patch: 7 of 7 linear layers replaced\n"
        "  replaced  blocks.*.up (3)\n  replaced  blocks.*.down (3)\n  replaced  head\n"
    )
    assert summary.replaced[:2] == ("blocks.0.up", "blocks.0.down") and not summary.skipped
    assert all(before is after for before, after in zip(layers, model.modules(), strict=True))
    assert isinstance(model.head, nn.Linear) and type(model.head) is aks.nn.Linear
    assert model.head.weight is model.embedding.weight
    assert_close(outputs(model), wanted, rtol=2e-2, atol=2e-2)
    assert [static for *_, static in stand_in.take_calls()] == [True] * 7  # from the first call on
    assert_close(dict(model.state_dict()), state)
    model.load_state_dict(state)

    assert aks.unpatch(model) == 7
    assert capsys.readouterr().out == "aks.unpatch: 7 linear layers are torch.nn.Linear again\n"
    assert_close(outputs(model), wanted, rtol=0, atol=0)
    assert not stand_in.calls
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    assert vars(model.head).keys() == vars(nn.Linear(1, 1)).keys()
    assert aks.unpatch(model, verbose=False) == 0
    assert capsys.readouterr().out == ""


def test_a_tied_weight_stays_tied(stand_in) -> None:
    model = made()
    aks.patch(model, verbose=False)
    with torch.no_grad():
        model.embedding.weight.zero_()
        assert not outputs(model).any()
    copied = copy.deepcopy(model)
    assert copied.head.weight is copied.embedding.weight is not model.head.weight
    model.to(torch.float32).to(BF16)
    assert model.head.weight is model.embedding.weight


def test_a_shared_layer_is_replaced_once(stand_in) -> None:
    layer = nn.Linear(8, 8, bias=False, dtype=BF16)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    assert aks.patch(model, verbose=False).replaced == ("0",)
    with torch.no_grad():
        model(torch.randn(3, 8, dtype=BF16))
    assert len(stand_in.calls) == 2


def test_a_layer_alone(stand_in) -> None:
    layer = nn.Linear(8, 8, bias=False, dtype=BF16).eval()
    assert aks.patch(layer, verbose=False).replaced == ("Linear",)
    assert type(layer) is aks.nn.Linear


def test_biased_layers_add_their_bias_in_the_kernel(stand_in) -> None:
    model = made(bias=True)
    wanted = outputs(model)
    assert len(aks.patch(model, verbose=False).replaced) == 7
    assert_close(outputs(model), wanted, rtol=4e-2, atol=4e-2)
    assert len(stand_in.calls) == 7
    assert [problem.epilogue for problem in stand_in.layers["fused_linear"].calls] == ["bias"] * 3
    stand_in.layers["fused_linear"].declines = True
    stand_in.take_calls()
    outputs(model)
    assert len(stand_in.calls) == 4


@pytest.mark.parametrize("static_weights", [True, False])
def test_static_weights_are_passed_on(stand_in, static_weights: bool) -> None:
    model = made()
    aks.patch(model, static_weights=static_weights, verbose=False)
    with torch.no_grad():
        for block in model.blocks:
            block.up.weight.mul_(2)
    outputs(model)
    assert {static for *_, static in stand_in.calls} == {static_weights}


def layer_of(**rest: Any) -> Any:
    return nn.Linear(8, 8, **{"bias": False, "dtype": BF16, **rest}).eval()


def with_forward() -> nn.Linear:
    layer = layer_of()
    layer.forward = lambda x: x  # as accelerate does
    return layer


def with_weight(weight: torch.Tensor) -> nn.Linear:
    layer = layer_of()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Float8(torch.Tensor):
    """As torchao's quantised weights: a subclass in a plain layer."""


class Linear8bit(nn.Linear):
    """As bitsandbytes has it."""


REASONS = {
    "float32": (lambda: layer_of(dtype=torch.float32), "torch.float32; the kernels take bfloat16 and float16"),
    "training": (lambda: layer_of().train(), "call eval() first"),
    "patched": (lambda: aks.nn.Linear(8, 8, dtype=BF16).eval(), "already"),
    "subclass": (lambda: Linear8bit(8, 8, dtype=BF16), "Linear8bit, a subclass"),
    "parametrised": (lambda: parametrizations.weight_norm(layer_of()), "ParametrizedLinear, a subclass"),
    "pruned": (lambda: prune.identity(layer_of(), "weight"), "computed before each call"),
    "forward": (with_forward, "its forward was replaced"),
    "quantised": (lambda: with_weight(torch.zeros(8, 8, dtype=BF16).as_subclass(Float8)), "its weight is a Float8"),
    "sparse": (lambda: with_weight(torch.eye(8, dtype=BF16).to_sparse_csr()), "torch.sparse_csr"),
    "meta": (lambda: layer_of(device="meta"), "load it first"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_is_skipped_says_why_and_is_left_alone(stand_in, capsys, case: str) -> None:
    make, reason = REASONS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.ModuleDict({"layer": make(), "other": layer_of()})
    kind, attributes = type(model["layer"]), dict(vars(model["layer"]))
    summary = aks.patch(model)
    assert summary.replaced == ("other",)
    assert list(summary.skipped) == ["layer"] and reason in summary.skipped["layer"]
    assert f"1 of 2 linear layers replaced\n  replaced  other\n  skipped   layer: {summary.skipped['layer']}" in (
        capsys.readouterr().out
    )
    assert type(model["layer"]) is kind and dict(vars(model["layer"])) == attributes
    aks.unpatch(model, verbose=False)
    assert type(model["layer"]) is kind


def test_a_bias_of_another_dtype_is_skipped(stand_in) -> None:
    layer = layer_of(bias=True)
    layer.bias.data = layer.bias.data.float()
    assert "bias is torch.float32" in aks.patch(layer, verbose=False).skipped["Linear"]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'model' is a str; wanted a torch.nn.Module"):
        aks.patch("model")  # type: ignore[arg-type]


def test_off_a_gpu_the_summary_says_so(monkeypatch, capsys) -> None:
    model = made()
    aks.patch(model)
    assert "on no GPU yet" in capsys.readouterr().out
    wanted = outputs(model)
    aks.unpatch(model, verbose=False)
    assert_close(outputs(model), wanted, rtol=0, atol=0)


def test_it_trains_again(stand_in) -> None:
    """Patched for an evaluation in between."""
    torch.manual_seed(0)
    models = [made(), made()]
    models[1].load_state_dict(models[0].state_dict())
    aks.patch(models[1], verbose=False)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            outputs(model.eval())
            model.train()(TOKENS).square().mean().backward()
            optimizer.step()
    assert_close(dict(models[0].state_dict()), dict(models[1].state_dict()))


def test_a_compiled_model_is_compiled_again(stand_in) -> None:
    model = made()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted = outputs(compiled)
    aks.patch(model, verbose=False)
    assert_close(outputs(compiled), wanted, rtol=2e-2, atol=2e-2)
    assert len(stand_in.take_calls()) == 7
    aks.unpatch(model, verbose=False)
    assert_close(outputs(compiled), wanted, rtol=0, atol=0)
    assert not stand_in.calls


@pytest.mark.gpu
def test_a_gpu_without_a_tree_is_named(monkeypatch) -> None:
    monkeypatch.setattr(dispatchers, "dispatcher_of", lambda index: None)
    summary = aks.patch(made().cuda(), verbose=False)
    assert not summary.replaced
    assert set(summary.skipped.values()) == {f"no tree for {torch.cuda.get_device_name()}"}


@pytest.mark.gpu
def test_a_patched_model_in_a_cuda_graph(shipped_tree) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer_of_width(1024) for _ in range(4))).eval()
    x = torch.randn(2, 1024, device="cuda", dtype=BF16)
    assert torch_ops.DEVICE_TYPE == "cuda"
    with torch.inference_mode():
        wanted = model(x)
        aks.patch(model, verbose=False)
        model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = model(x)
        graph.replay()
        assert (y - wanted).norm() <= 2e-2 * wanted.norm()
        x.mul_(2)
        graph.replay()
        assert (y - 2 * wanted).norm() <= 2e-2 * (2 * wanted).norm()
    assert set(shipped_tree) - {"torch_mm", "cublaslt"}, "no kernel of ours ran"


def layer_of_width(width: int) -> nn.Linear:
    return nn.Linear(width, width, bias=False, device="cuda", dtype=BF16)
