"""``aks.linear`` and ``aks.matmul`` mean what PyTorch's do, whatever surrounds the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import aks

gpu = pytest.mark.gpu
BF16 = torch.bfloat16


def operands(*shape: int, n: int = 5, dtype: torch.dtype = BF16, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """x of that shape and w [n, last of it], of values that bf16 products of little length hold nearly."""
    return torch.randn(*shape, dtype=dtype, device=device), torch.randn(n, shape[-1], dtype=dtype, device=device)


class CountingFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class CountingOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Quantised(Tensor):
    """As quantised weights are: a subclass that PyTorch's own functions know how to take."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is functional.linear, f"{func} is not known"
        with torch._C.DisableTorchFunctionSubclass():
            return func(args[0], args[1].as_subclass(Tensor) * 2)


def traced_ops(program: Callable[..., Tensor], *arguments: Tensor) -> list[str]:
    """Names of the ops that compiling ``program`` leaves in its graph; compares its result with eager mode's."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: list[Any]):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    got = torch.compile(program, fullgraph=True, backend=backend)(*arguments)
    assert_close(got, program(*arguments), rtol=2e-2, atol=2e-2)
    return seen


# In eager mode.


def test_a_plain_call_is_the_dispatchers(stand_in) -> None:
    x, w = operands(2, 3, 8)
    out = torch.empty(2, 3, 5, dtype=BF16)
    assert aks.linear(x, w, out=out, static_weights=True) is out
    assert_close(out, functional.linear(x, w))
    assert_close(aks.matmul(x, w.T.contiguous()), x @ w.T)
    with torch.inference_mode():
        assert aks.linear(x, w).is_inference()
    assert stand_in.take_calls() == [
        ((2, 3, 8), (5, 8), True),
        ((2, 3, 8), (5, 8), False),
        ((2, 3, 8), (5, 8), False),
    ]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.randn(8), torch.randn(8, 5)),
        (torch.randn(2, 3, 8), torch.randn(8)),
        (torch.randn(8), torch.randn(8)),
        (torch.randn(2, 3, 8), torch.randn(2, 8, 5)),
        (torch.randn(3, 8), torch.randn(8, 5).to_sparse()),
    ],
)
def test_matmul_takes_what_torch_takes(stand_in, x: Tensor, y: Tensor) -> None:
    assert_close(aks.matmul(x, y), torch.matmul(x, y))


def test_gradients_are_torchs(stand_in) -> None:
    x, w = (tensor.requires_grad_() for tensor in operands(3, 8))
    for mine, theirs in ((aks.linear, functional.linear), (lambda x, w: aks.matmul(x, w.T), functional.linear)):
        got = torch.autograd.grad(mine(x, w).square().sum(), (x, w))
        assert_close(got, torch.autograd.grad(theirs(x, w).square().sum(), (x, w)))
    assert not stand_in.calls
    with torch.no_grad():
        assert not aks.linear(x, w).requires_grad
    assert len(stand_in.calls) == 1


@pytest.mark.parametrize("call", [aks.linear, torch.ops.aks.linear], ids=["function", "op"])
def test_forward_mode_keeps_tangents(stand_in, call) -> None:
    x, w = operands(3, 8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(call(dual, w)).tangent
    assert tangent is not None
    assert_close(tangent, functional.linear(torch.ones_like(x), w))


@pytest.mark.parametrize("w_dtype", [torch.float32, BF16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, BF16, torch.float16, torch.float64])
def test_autocast_casts_as_for_torch(stand_in, x_dtype: torch.dtype, w_dtype: torch.dtype) -> None:
    x, w = operands(3, 8)[0].to(x_dtype), operands(3, 8)[1].to(w_dtype)
    for call in (aks.linear, torch.ops.aks.linear):
        with torch.autocast("cpu", dtype=BF16):
            if x_dtype is torch.float64 and w_dtype is not torch.float64:  # which autocast leaves alone
                with pytest.raises(RuntimeError):
                    call(x, w)
                continue
            wanted, got = functional.linear(x, w), call(x, w)
        assert got.dtype == wanted.dtype == BF16
        assert_close(got, wanted)
    ours = w_dtype is BF16
    assert len(stand_in.take_calls()) == (2 if ours and x_dtype is not torch.float64 else 0)


@pytest.mark.parametrize("call", [aks.linear, torch.ops.aks.linear], ids=["function", "op"])
def test_torch_func_transforms(stand_in, call) -> None:
    x, w = operands(4, 3, 8)
    ws = torch.randn(4, 5, 8, dtype=BF16)
    for in_dims, arguments in (((0, None), (x, w)), ((0, 0), (x, ws)), ((None, 0), (x[0], ws)), ((1, None), (x, w))):
        got = torch.vmap(call, in_dims)(*arguments)
        assert_close(got, torch.vmap(functional.linear, in_dims)(*arguments), rtol=2e-2, atol=2e-2)
    for per_sample in (False, True):

        def gradient(function, per_sample=per_sample):
            made = torch.func.grad(lambda x: function(x, w).square().sum())
            return (torch.vmap(made) if per_sample else made)(x)

        assert_close(gradient(call), gradient(functional.linear), rtol=2e-2, atol=2e-2)
    wanted = torch.func.jvp(lambda x: functional.linear(x, w), (x,), (x,))
    assert_close(torch.func.jvp(lambda x: call(x, w), (x,), (x,)), wanted)


def test_a_traced_script_computes_and_does_not_remember(stand_in) -> None:
    x, w = operands(3, 8)
    script: Any = torch.jit.trace(lambda x: aks.linear(x, w), x)
    assert_close(script(2 * x), functional.linear(2 * x, w))


def test_modes_see_the_op(stand_in) -> None:
    x, w = operands(3, 8)
    with CountingOps() as ops:
        aks.linear(x, w)
    assert "aks::linear" in ops.seen
    with CountingFunctions() as functions:
        aks.linear(x, w)
    assert torch.ops.aks.linear in functions.seen
    with FlopCounterMode(display=False) as flops:
        aks.linear(x, w)
        aks.matmul(x, w.T)
    assert flops.get_total_flops() == 2 * 2 * 3 * 5 * 8
    assert len(stand_in.calls) == 4


def test_fake_tensors_have_no_memory_to_read(stand_in) -> None:
    with FakeTensorMode():
        x, w = operands(2, 3, 8)
        assert aks.linear(x, w).shape == aks.matmul(x, w.T).shape == (2, 3, 5)
    assert aks.linear(x.to("meta"), w.to("meta")).shape == (2, 3, 5)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_subclasses_sparse_and_nested_tensors_are_torchs(stand_in, dtype: torch.dtype) -> None:
    x, w = operands(3, 8, dtype=dtype)
    assert_close(aks.linear(x, w.as_subclass(Quantised)), functional.linear(x, 2 * w))
    two: Any = aks.linear(x, TwoTensor(w, 3 * w))  # which is known to PyTorch's dispatcher alone
    assert_close(two.b, functional.linear(x, 3 * w))
    for layout in (torch.strided, torch.jagged):
        ragged = torch.nested.nested_tensor([x, x[:2]], layout=layout)
        for mine, theirs in zip(aks.linear(ragged, w).unbind(), functional.linear(ragged, w).unbind(), strict=True):
            assert_close(mine, theirs)
    for arguments in ((x.to_sparse(), w), (x, w.to_sparse()), (x, w.to_sparse_csr())):
        wanted, got = outcome(functional.linear, *arguments), outcome(aks.linear, *arguments)
        assert type(got) is type(wanted)
        if isinstance(wanted, Tensor):
            assert_close(got, wanted)
    assert not stand_in.calls


def outcome(function: Callable[..., Tensor], *arguments: Tensor) -> Any:
    """The result as a dense tensor, or the error: not every build of PyTorch multiplies every sparse bf16 matrix."""
    try:
        result = function(*arguments)
    except (RuntimeError, NotImplementedError) as error:
        return error
    return result.to_dense() if result.layout is not torch.strided else result


# Compiled and exported.


def test_compiled_code_has_the_op(stand_in) -> None:
    x, w = operands(2, 3, 8)
    assert traced_ops(lambda x, w: aks.linear(x, w, static_weights=True).relu(), x, w)[0] == "aks.linear"
    assert "aks.linear" in traced_ops(lambda x, w: aks.matmul(x, w), x, w.T.contiguous())
    assert "aks.linear" in traced_ops(lambda x, w: aks.linear(x[0], w), x, w)
    out = torch.empty(2, 3, 5, dtype=BF16)
    traced_ops(lambda x, w: aks.linear(x, w, out=out), x, w)
    assert_close(out, functional.linear(x, w))
    assert {static for *_, static in stand_in.take_calls()} == {True, False}


def test_what_kernels_do_not_take_is_left_for_the_compiler_to_fuse(stand_in) -> None:
    for dtype in (torch.float32, torch.float64):
        x, w = operands(3, 8, dtype=dtype)
        assert not any("aks" in name for name in traced_ops(aks.linear, x, w))
    x, w = operands(3, 8)
    assert not any("aks" in name for name in traced_ops(aks.linear, x, w[0]))
    assert not stand_in.calls


def test_a_compiled_batch_size_is_dynamic(stand_in) -> None:
    graphs = 0

    def backend(graph, example):
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(lambda x, w: aks.linear(x, w) * 2, fullgraph=True, dynamic=True, backend=backend)
    for m in (2, 3, 17, 40):
        x, w = operands(m, 8)
        assert_close(compiled(x, w), functional.linear(x, w) * 2, rtol=2e-2, atol=2e-2)
    assert graphs == 1


def test_compiled_gradients(stand_in) -> None:
    x, w = (tensor.requires_grad_() for tensor in operands(2, 3, 8))
    compiled = torch.compile(aks.linear, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, w).square().sum(), (x, w))
    wanted = torch.autograd.grad(functional.linear(x, w).square().sum(), (x, w))
    assert_close(got, wanted, rtol=2e-2, atol=2e-1)
    assert stand_in.calls


def test_compiled_autocast(stand_in) -> None:
    def program(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=BF16):
            return aks.linear(x, w)

    x, w = operands(3, 8)
    for arguments in ((x.float(), w), (x.float(), w.float()), (x, w), (x.half(), w)):
        traced_ops(program, *arguments)
    assert len(stand_in.calls) == 6  # of w in bf16, compiled and not


@pytest.mark.slow
def test_inductor_runs_the_op(stand_in) -> None:
    x, w = operands(2, 3, 8)
    with torch.no_grad():
        got = torch.compile(lambda x, w: aks.matmul(x + 1, w.T).relu(), fullgraph=True)(x, w)
    assert_close(got, functional.linear(x + 1, w).relu(), rtol=2e-2, atol=2e-2)
    assert stand_in.calls


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_have_the_op(stand_in, strict: bool) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = aks.nn.Linear(8, 5, dtype=BF16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    x, model = operands(6, 8)[0], Model().eval()
    m = torch.export.Dim("m", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: m},), strict=strict)
    assert any("aks.linear" in str(node.target) for node in program.graph.nodes)
    x = operands(11, 8)[0]
    assert_close(program.module()(x), model(x), rtol=2e-2, atol=2e-2)
    assert any("aks.linear" in str(node.target) for node in program.run_decompositions().graph.nodes)


# The ops themselves, as PyTorch checks such.


@pytest.mark.parametrize("name", ["linear", "matmul"])
def test_the_ops_are_what_they_say(name: str) -> None:
    op = getattr(torch.ops.aks, name).default
    for shape, dtype, needs in (((4, 8), torch.float32, True), ((2, 3, 8), BF16, False), ((8,), torch.float32, True)):
        x, w = operands(*shape, dtype=dtype)
        w = w if name == "linear" else w.T.contiguous()
        torch.library.opcheck(op, (x.requires_grad_(needs), w.requires_grad_(needs)))


def test_gradients_of_the_op() -> None:
    x, w = (tensor.requires_grad_() for tensor in operands(2, 3, 8, dtype=torch.float64))
    for arguments in ((x, w), (x, w.detach()), (x.detach(), w), (x[0, 0], w)):
        assert torch.autograd.gradcheck(torch.ops.aks.linear, arguments)
        assert torch.autograd.gradgradcheck(torch.ops.aks.linear, arguments)


def test_wrong_operands_are_refused_while_tracing() -> None:
    for x, w, message in (
        (torch.empty(3, 7), torch.empty(5, 8), "rows of 7, w of 8"),
        (torch.empty(3, 8), torch.empty(8), "w must have 2"),
        (torch.empty(3, 8), torch.empty(5, 8, dtype=BF16), "same dtype"),
    ):
        with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
            torch.ops.aks.linear(mode.from_tensor(x), mode.from_tensor(w))


def test_an_output_is_contiguous_as_traced() -> None:
    x, w = operands(4, 3, 8, dtype=torch.float32)
    assert torch.ops.aks.linear(x.transpose(0, 1), w).is_contiguous()
    assert torch.ops.aks.linear(x.mT.contiguous().mT, w).is_contiguous()


# On a GPU.


def close(got: Tensor, wanted: Tensor) -> None:
    error = (got.double() - wanted.double()).norm() / wanted.double().norm()
    assert error <= 8e-3, f"relative error {error:.3g}"


def gpu_operands(m: int, n: int = 4096, k: int = 4096) -> tuple[Tensor, Tensor]:
    return torch.randn(m, k, device="cuda", dtype=BF16), torch.randn(n, k, device="cuda", dtype=BF16) * k**-0.5


@gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_compiled_on_the_gpu(shipped_tree, mode: str) -> None:
    @torch.no_grad()
    def program(x: Tensor, w: Tensor, linear: Callable[..., Tensor]) -> Tensor:
        for _ in range(3):
            x = functional.silu(linear(x, w)) + x
        return x

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return program(x, w, lambda x, w: aks.linear(x, w, static_weights=True))

    compiled = torch.compile(ours, fullgraph=True, mode=mode, dynamic=False)
    for m in (1, 16):
        x, w = gpu_operands(m)
        for _ in range(4):
            x = torch.randn_like(x)
            close(compiled(x, w).clone(), program(x, w, functional.linear))
    assert set(shipped_tree) - {"torch_mm", "cublaslt"}, "no kernel of ours ran"


@gpu
def test_compiled_gradients_on_the_gpu(shipped_tree) -> None:
    x, w = (tensor.requires_grad_() for tensor in gpu_operands(4, 1024, 512))
    compiled = torch.compile(aks.linear, fullgraph=True)
    got = torch.autograd.grad(compiled(x, w).float().square().sum(), (x, w))
    wanted = torch.autograd.grad(functional.linear(x, w).float().square().sum(), (x, w))
    for mine, theirs in zip(got, wanted, strict=True):
        close(mine, theirs)
    assert shipped_tree


@gpu
def test_exported_on_the_gpu(shipped_tree) -> None:
    layer = aks.nn.Linear(4096, 1024, bias=True, device="cuda", dtype=BF16).eval()
    x, _ = gpu_operands(3)
    with torch.no_grad():
        close(torch.export.export(layer, (x,)).module()(x), functional.linear(x, layer.weight, layer.bias))
    assert shipped_tree


@gpu
def test_autocast_inference_mode_and_streams_on_the_gpu(shipped_tree) -> None:
    x, w = gpu_operands(2)
    with torch.autocast("cuda", dtype=BF16):
        close(aks.linear(x.float(), w), functional.linear(x, w))
        close(aks.linear(x.float(), w.float()), functional.linear(x, w))
        assert aks.linear(x.float(), w.float()).dtype == BF16
    with torch.autocast("cuda", dtype=torch.float16):
        assert aks.linear(x, w).dtype == torch.float16
    with torch.inference_mode():
        close(aks.linear(x, w), functional.linear(x, w))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = torch.ops.aks.linear(x, w)
    side.synchronize()
    close(y, functional.linear(x, w))


@gpu
def test_the_op_is_captured_in_a_graph(shipped_tree) -> None:
    x, w = gpu_operands(4)
    for _ in range(2):
        torch.ops.aks.linear(x, w, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.aks.linear(torch.ops.aks.linear(x, w, True), w, True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    close(y, functional.linear(functional.linear(x, w), w))


@gpu
def test_operands_on_two_gpus(shipped_tree) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for index in (1, 0):
        x, w = (tensor.to(f"cuda:{index}") for tensor in gpu_operands(3))
        close(aks.linear(x, w), functional.linear(x, w))
        close(torch.ops.aks.linear(x, w), functional.linear(x, w))
    with pytest.raises(RuntimeError):
        aks.linear(x.to("cuda:1"), w)


@gpu
def test_odd_input_is_torchs_on_the_gpu(shipped_tree) -> None:
    x, w = gpu_operands(6, 64, 128)
    for mine in (aks.linear, torch.ops.aks.linear):
        close(mine(x.float(), w.float()), functional.linear(x.float(), w.float()))
        close(mine(x[:, ::2], w[:, ::2]), functional.linear(x[:, ::2], w[:, ::2]))
        assert mine(x[:0], w).shape == (0, 64)
    assert_close(torch.vmap(lambda x: aks.linear(x, w))(x[None]), functional.linear(x, w)[None])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(aks.linear(dual, w)).tangent is not None


@gpu
def test_a_bias_is_added(shipped_tree) -> None:
    for m in (1, 16, 3000):
        x, w = gpu_operands(m, 1024, 2048)
        bias = torch.randn(1024, device="cuda", dtype=BF16)
        with torch.no_grad():
            close(aks.fused_linear(x, w, bias=bias, static_weights=True), functional.linear(x, w, bias))
