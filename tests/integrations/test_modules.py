"""``aks.nn.Linear``: a ``torch.nn.Linear`` in all but its kernels; static weights where that is no race."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

import aks
from aks.integrations.modules import Linear

gpu = pytest.mark.gpu
BF16 = torch.bfloat16
STATIC, DYNAMIC = True, False
TORCH: list[bool] = []


def layer_of(*, bias: bool = False, device: str = "cpu", **rest: Any) -> Linear:
    return Linear(8, 5, bias=bias, dtype=BF16, device=device, **rest).eval()


def static_of(stand_in, layer: nn.Module, *, m: int = 3) -> list[bool]:
    """Of one call: whether its weight was static, as a list of one; empty where PyTorch's kernel ran."""
    with torch.no_grad():
        layer(torch.randn(m, 8, dtype=BF16, device=next(layer.parameters()).device))
    return [static for *_, static in stand_in.take_calls()]


def settled(stand_in, **rest: Any) -> Linear:
    """A layer whose weight has been seen."""
    layer = layer_of(**rest)
    assert static_of(stand_in, layer) == TORCH
    assert static_of(stand_in, layer) == [STATIC]
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_is_a_linear_layer_of_torch(stand_in, bias: bool) -> None:
    assert aks.nn.Linear is Linear
    mine, theirs = layer_of(bias=bias), nn.Linear(8, 5, bias=bias, dtype=BF16)
    assert isinstance(mine, nn.Linear)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, dtype=BF16)
    with torch.no_grad():
        for _ in range(3):
            assert_close(mine(x), theirs(x), rtol=2e-2, atol=2e-2)
        assert_close(mine(input=x), theirs(input=x), rtol=2e-2, atol=2e-2)
    assert len(stand_in.calls) == 3


def test_a_bias_goes_to_the_vendors_routine_where_the_tree_declines(stand_in) -> None:
    layer = settled(stand_in, bias=True)
    stand_in.layers["fused_linear"].declines = True
    assert static_of(stand_in, layer) == TORCH
    stand_in.layers["fused_linear"].declines = False
    layer.bias.data = layer.bias.data.float()
    with torch.no_grad(), pytest.raises(RuntimeError):  # as torch.nn.Linear does
        layer(torch.randn(3, 8, dtype=BF16))
    assert not stand_in.calls


def test_training_is_torchs(stand_in) -> None:
    layer, reference = layer_of(bias=True).train(), nn.Linear(8, 5, dtype=BF16)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(3, 8, dtype=BF16)
    for one in (layer, reference):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    assert_close(dict(layer.named_parameters()), dict(reference.named_parameters()))
    assert not stand_in.calls
    for static_weights in (None, True):
        layer.static_weights = static_weights
        assert static_of(stand_in, layer) == [DYNAMIC]


def rewrite(layer: Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def load(layer: Linear) -> None:
    layer.load_state_dict(layer_of().state_dict())


def step(layer: Linear) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.AdamW(layer.parameters()).step()


def exchange(layer: Linear) -> None:
    layer.weight = nn.Parameter(torch.randn(5, 8, dtype=BF16))


def rename(layer: Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach())


def move(layer: Linear) -> None:
    layer.weight.data = layer.weight.data.clone()


@pytest.mark.parametrize("change", [rewrite, load, step, exchange, rename, move])
def test_a_weight_that_changed_is_read_by_torchs_kernel_first(stand_in, change) -> None:
    layer = settled(stand_in)
    change(layer)
    assert static_of(stand_in, layer) == TORCH
    assert static_of(stand_in, layer) == [STATIC]


def test_the_callers_word_on_static_weights_counts(stand_in) -> None:
    for word in (True, False):
        layer = layer_of(static_weights=word)
        assert static_of(stand_in, layer) == [word]
        rewrite(layer)
        assert static_of(stand_in, layer) == [word]


def test_what_a_pre_hook_may_write_is_not_static(stand_in) -> None:
    layer = settled(stand_in)
    handle = layer.register_forward_pre_hook(lambda layer, inputs: None)
    assert static_of(stand_in, layer) == [DYNAMIC]
    handle.remove()
    assert static_of(stand_in, layer) == [STATIC]


def test_a_weight_that_is_computed_is_not_static(stand_in) -> None:
    layer: Any = settled(stand_in, bias=True)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    x = torch.randn(3, 8, dtype=BF16)
    with torch.no_grad():
        wanted = nn.functional.linear(x, layer.weight_orig * layer.weight_mask, layer.bias)
        assert_close(layer(x), wanted, rtol=2e-2, atol=2e-2)
    assert stand_in.take_calls()[-1][-1] is DYNAMIC
    prune.remove(layer, "weight")
    assert static_of(stand_in, layer) == TORCH


def test_a_weight_of_inference_mode_has_no_version(stand_in) -> None:
    with torch.inference_mode():
        layer = layer_of()
    layer.note_weight()
    assert static_of(stand_in, layer) == static_of(stand_in, layer) == [DYNAMIC]


def test_other_dtypes_are_torchs_until_they_are_back(stand_in) -> None:
    layer = settled(stand_in)
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert_close(layer.float()(x), nn.functional.linear(x, layer.weight))
        assert not stand_in.take_calls()
        layer.half()
        layer(x.half())
        layer(x.half())
        with pytest.raises(RuntimeError):
            layer(x.bfloat16())
    assert len(stand_in.take_calls()) == 1


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_layers_of_their_own(stand_in, how: str) -> None:
    layer = settled(stand_in, static_weights=None)
    if how == "deepcopy":
        copied = copy.deepcopy(layer)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert type(copied) is Linear and copied.weight is not layer.weight
    assert_close(copied.weight, layer.weight)
    assert static_of(stand_in, copied) == TORCH
    assert static_of(stand_in, layer) == [STATIC]


def test_a_weight_is_not_kept_alive(stand_in) -> None:
    layer = settled(stand_in)
    old = weakref.ref(layer.weight)
    layer.weight = nn.Parameter(torch.randn(5, 8, dtype=BF16))
    assert old() is None


def test_hooks_see_the_layer(stand_in) -> None:
    layer, seen = layer_of(), []
    layer.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0].shape, output.shape)))
    layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 0,))
    with torch.no_grad():
        assert not layer(torch.randn(3, 8, dtype=BF16)).any()
    assert seen == [((3, 8), (3, 5))]


def test_weights_that_are_given_to_the_call(stand_in) -> None:
    layer, x = layer_of(bias=True), torch.randn(4, 3, 8, dtype=BF16)
    given = {name: torch.randn(4, *value.shape, dtype=BF16) for name, value in layer.named_parameters()}
    got = torch.vmap(lambda weights, x: torch.func.functional_call(layer, weights, x))(given, x)
    wanted = torch.baddbmm(given["bias"][:, None], x, given["weight"].mT)
    assert_close(got, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_autocast(stand_in, bias: bool) -> None:
    layer, x = layer_of(bias=bias), torch.randn(3, 8)
    for one in (layer, layer.float()):
        with torch.no_grad(), torch.autocast("cpu", dtype=BF16):
            wanted = nn.functional.linear(x, one.weight, one.bias)
            assert one(x).dtype == wanted.dtype
            assert_close(one(x), wanted)


@pytest.mark.parametrize("bias", [False, True])
def test_compiled(stand_in, bias: bool) -> None:
    layer, x = layer_of(bias=bias), torch.randn(3, 8, dtype=BF16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def statics(*, grad: bool) -> list[bool]:
        with torch.set_grad_enabled(grad):
            assert_close(compiled(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=2e-2, atol=2e-2)
        return [static for *_, static in stand_in.take_calls()]

    assert statics(grad=False) == [STATIC]
    assert statics(grad=True) == [DYNAMIC]
    layer.requires_grad_(False)
    assert statics(grad=True) == [STATIC]
    layer.train()
    assert statics(grad=False) == [DYNAMIC]
    layer.eval().static_weights = False
    assert statics(grad=False) == [DYNAMIC]
    with torch.autocast("cpu", dtype=BF16), torch.no_grad():
        layer.float()
        assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x.float()).dtype == BF16


@gpu
@pytest.mark.parametrize("bias", [False, True])
def test_on_the_gpu(shipped_tree, bias: bool) -> None:
    layer = Linear(4096, 1024, bias=bias, device="cuda", dtype=BF16).eval()
    with torch.inference_mode():
        for m in (1, 5, 300):
            x = torch.randn(m, 4096, device="cuda", dtype=BF16)
            for _ in range(3):
                wanted = nn.functional.linear(x, layer.weight, layer.bias).float()
                assert (layer(x).float() - wanted).norm() <= 8e-3 * wanted.norm()
    assert shipped_tree or bias  # a biased layer asks the tree of fused_linear


@gpu
def test_a_weight_written_just_before_is_read_as_written(shipped_tree) -> None:
    """The race that static weights would be: a kernel that writes w, directly before one that reads it early."""
    layer = Linear(8192, 8192, bias=False, device="cuda", dtype=BF16).eval()
    x = torch.zeros(1, 8192, device="cuda", dtype=BF16)
    x[0, 0] = 1
    with torch.no_grad():
        for step in range(1, 200):
            layer.weight.fill_(step % 7)
            first, second = layer(x), layer(x)
            assert bool((first == step % 7).all()) and bool((second == step % 7).all()), step


@gpu
def test_moved_between_devices(shipped_tree) -> None:
    layer = Linear(64, 32, bias=False, device="cuda", dtype=BF16).eval()
    x: Tensor = torch.randn(3, 64, device="cuda", dtype=BF16)
    with torch.no_grad():
        wanted = nn.functional.linear(x, layer.weight)
        for _ in range(2):
            assert_close(layer.cpu()(x.cpu()).cuda(), wanted, rtol=2e-2, atol=2e-2)
            assert_close(layer.cuda()(x), wanted, rtol=2e-2, atol=2e-2)
            assert_close(layer(x), wanted, rtol=2e-2, atol=2e-2)
