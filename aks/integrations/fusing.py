"""Which neighbours of a model's linear layers fuse with them, found by what they compute, not by their names.

A module that is recognised stays the object that it is and gets a subclass of its class, whose ``forward`` launches
one kernel where the tree has one and is the original's otherwise: for traced code, gradients, what no kernel takes,
and layers with hooks inside. Recognised are

- RMSNorm, of ``torch.nn`` or a model's own: one kernel instead of PyTorch's or of half a dozen
- gated feed-forward layers: both products, activation and multiplication are one kernel
- blocks that add a residual before a norm (one kernel for both) or after a feed-forward layer (its last product's)
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from aks.core.errors import AksError
from aks.integrations import fused_ops, torch_ops
from aks.integrations.modules import Linear
from aks.ops.fused_linear.reference import ACTIVATIONS
from aks.ops.fused_linear.spec import EPILOGUES

FUSIONS = ("norm", "gated", "residual")
"""RMSNorms; gated feed-forward layers; additions of residuals, into what of the others there is."""
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Names of gate, up and down, as models have them."""
_ADDITION = re.compile(r"= self\.(_aks_add_norm|_aks_call_add)\(self\.(\w+), ")
_ACTIVATION_NAMES = ("act_fn", "act", "activation_fn")


class _Fused:
    """Base of the classes that modules get: what they were is the class after it."""

    fused_as = ""


class _Norm(_Fused):
    fused_as = "RMSNorm"

    def forward(self: Any, x: Tensor) -> Tensor:
        y = fused_ops.launch_norm(x, self.weight, *self._aks_norm)
        return super().forward(x) if y is None else y  # type: ignore[misc]


class _Gated(_Fused):
    fused_as = "gate, up, activation and product"

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self._aks_hidden(x)
        return super().forward(x) if hidden is None else getattr(self, self._aks_names[2])(hidden)  # type: ignore[misc]

    def _aks_hidden(self: Any, x: Tensor) -> Tensor | None:
        gate, up = (getattr(self, name) for name in self._aks_names[:2])
        is_static = _is_static(gate, up)
        if is_static is None:
            return None
        return fused_ops.launch_linear(x, gate.weight, up.weight, None, None, self._aks_activation, is_static)

    def _aks_add(self: Any, x: Tensor, residual: Tensor) -> Tensor | None:
        """forward(x) + residual, the sum being the last kernel's."""
        hidden = self._aks_hidden(x)
        if hidden is None:
            return None
        down = getattr(self, self._aks_names[2])
        is_static = _is_static(down)
        if is_static is not None:
            y = fused_ops.launch_linear(hidden, down.weight, None, down.bias, residual, None, is_static)
            if y is not None:
                return y
        return residual + down(hidden)


class _Block(_Fused):
    fused_as = "residual additions"

    @staticmethod
    def _aks_add_norm(norm: Any, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """norm(residual + x), and the sum."""
        if _is_fused(norm, _Norm):
            results = fused_ops.launch_add_norm(x, residual, norm.weight, *norm._aks_norm)
            if results is not None:
                return results
        total = residual + x
        return norm(total), total

    @staticmethod
    def _aks_call_add(module: Any, x: Tensor, residual: Tensor) -> Tensor:
        """residual + module(x)."""
        if _is_fused(module, _Gated):
            y = module._aks_add(x, residual)
            if y is not None:
                return y
        return residual + module(x)


def fuse(model: nn.Module, kinds: Collection[str] = FUSIONS) -> dict[str, str]:
    """Have what is recognised in a model fused, in place: names of modules, and what of them is one kernel.

    Linear layers that shall fuse must be ``aks.nn.Linear`` already. Nothing in training mode is touched.

    Raises
    ------
    ValueError
        If a kind is not of ``FUSIONS``.
    """
    if unknown := set(kinds) - set(FUSIONS):
        raise ValueError(f"no fusion {', '.join(sorted(unknown))}; known: {', '.join(FUSIONS)}")
    found: dict[str, str] = {}
    gated: dict[type, str] = {}
    for name, module in list(model.named_modules()):
        if module.training or "forward" in module.__dict__ or isinstance(module, _Fused):
            continue
        fused = (
            ("norm" in kinds and _fuse_norm(module))
            or ("gated" in kinds and _fuse_gated(module, gated))
            or ("residual" in kinds and _fuse_block(module))
        )
        if fused:
            found[name or type(module).__name__] = type(module).fused_as  # type: ignore[attr-defined]
    return found


def unfuse(model: nn.Module) -> int:
    """Undo ``fuse``. Returns how many modules are what they were."""
    modules: list[Any] = [module for module in model.modules() if isinstance(module, _Fused)]
    for module in modules:
        module.__class__ = module._aks_base
        for name in ("_aks_norm", "_aks_names", "_aks_activation"):
            module.__dict__.pop(name, None)
    return len(modules)


def _fuse_norm(module: Any) -> bool:
    weight = module._parameters.get("weight")
    if "RMSNorm" not in type(module).__name__ or weight is None or len(module._parameters) != 1 or module._modules:
        return False
    if weight.dim() != 1 or weight.dtype not in torch_ops.DTYPES or weight.device.type == "meta":
        return False
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    eps = torch.finfo(weight.dtype).eps if eps is None else float(eps)
    for one_plus in (False, True):
        if _same_norm(module, weight, eps, one_plus):
            _become(module, _Norm, _aks_norm=(eps, one_plus))
            return True
    return False


@torch.no_grad()
def _same_norm(module: nn.Module, weight: Tensor, eps: float, one_plus: bool) -> bool:
    """Whether the module computes this norm, tried with another weight and rows where eps matters."""
    generator = torch.Generator(weight.device).manual_seed(0)
    random = functools.partial(torch.randn, generator=generator, device=weight.device)
    x = (random(4, weight.numel()) * torch.tensor([[1.0], [1e-3], [30.0], [0.1]], device=weight.device)).to(
        weight.dtype
    )
    other = (random(weight.numel()) * 0.5).to(weight.dtype)
    return _agree(
        lambda: functional_call(module, {"weight": other}, (x,)), lambda: fused_ops.norm(x, other, eps, one_plus)
    )


def _fuse_gated(module: Any, known: dict[type, str]) -> bool:
    """known: the activation of classes that were tried already, empty if they are something else."""
    names = next((names for names in _GATED if all(name in module._modules for name in names)), None)
    if names is None:
        return False
    gate, up, down = (module._modules[name] for name in names)
    if any(type(layer) is not Linear or layer.bias is not None for layer in (gate, up)) or type(down) is not Linear:
        return False
    if gate.weight.shape != up.weight.shape or type(module).forward is nn.Module.forward:
        return False
    if type(module) not in known:
        known[type(module)] = _activation_of(module, gate, up, down)
    if not known[type(module)]:
        return False
    _become(module, _Gated, _aks_names=names, _aks_activation=known[type(module)])
    return True


@torch.no_grad()
def _activation_of(module: nn.Module, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> str:
    """The activation with which the module is a gated layer; empty if it is something else."""
    weight = gate.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(2, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    for name in (name for name in ACTIVATIONS if f"{name}_mul" in EPILOGUES):
        activate = ACTIVATIONS[name]

        def compose(activate: Callable[[Tensor], Tensor] = activate) -> Tensor:
            hidden = activate(functional.linear(x, gate.weight)) * functional.linear(x, up.weight)
            return functional.linear(hidden, down.weight, down.bias)

        if _agree(lambda: module(x), compose):
            return name
    return ""


def _fuse_block(module: Any) -> bool:
    forward = type(module).forward
    rewritten = _rewritten(forward) if isinstance(forward, FunctionType) else None
    if rewritten is None:
        return False
    _become(module, _Block)
    return True


def _become(module: Any, kind: type, **attributes: Any) -> None:
    module.__class__ = _subclass(kind, type(module))
    module.__dict__.update(attributes)


@functools.cache
def _subclass(kind: type, base: type) -> type:
    namespace: dict[str, Any] = {"_aks_base": base, "__reduce_ex__": _reduce, "__module__": base.__module__}
    if kind is _Block:
        namespace["forward"] = _rewritten(base.forward)  # type: ignore[attr-defined]
    return type(base.__name__, (kind, base), namespace)


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    """A copy, or what was pickled, is of such a class again."""
    kind = type(module).__mro__[1]
    return _remake, (kind, module._aks_base), module.__getstate__()


def _remake(kind: type, base: type) -> Any:
    made: Any = _subclass(kind, base)
    return made.__new__(made)


def _agree(one: Callable[[], Any], other: Callable[[], Tensor]) -> bool:
    """Whether both give the same but for rounding, of which a chain of kernels in 16 bits has several."""
    try:
        left, right = one(), other()
    except (AksError, RuntimeError, TypeError, ValueError):  # it takes something else than x
        return False
    if not isinstance(left, Tensor) or left.shape != right.shape or not right.isfinite().all():
        return False
    error = (left.float() - right.float()).norm()
    return bool(error <= 2.0**-6 * right.float().norm())


def is_fused_layer(module: nn.Module) -> bool:
    """Whether it is a norm or a gated layer that was fused: it takes rows, and gives as many."""
    return isinstance(module, _Norm | _Gated)


def fused_with_residuals(model: nn.Module) -> set[nn.Module]:
    """Norms and gated layers of a model that take the addition of a residual, before or after them, into a kernel."""
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, _Block)]
    kinds = {_Block._aks_add_norm.__name__: _Norm, _Block._aks_call_add.__name__: _Gated}
    added = [
        (block._modules.get(name), kinds[method])
        for block in blocks
        for method, name in _additions(block._aks_base.forward)
    ]
    return {module for module, kind in added if module is not None and _is_fused(module, kind)}


def norm_of(module: Any) -> tuple[Tensor, float, bool] | None:
    """Weight [K], eps and whether 1 is added to the weight, of a norm that was fused; None of anything else."""
    if not isinstance(module, _Norm):
        return None
    known: Any = module
    return (known.weight, *known._aks_norm)


def gated_of(module: Any) -> tuple[tuple[str, str, str], str] | None:
    """Names of gate, up and down, and the activation, of a gated layer that was fused; None of anything else."""
    if not isinstance(module, _Gated):
        return None
    known: Any = module
    return known._aks_names, known._aks_activation


def may_fuse(*linears: nn.Module) -> bool:
    """Whether linear layers inside a fused one need not be called themselves."""
    return all(type(layer) is Linear and "weight" in layer._parameters and not _has_hooks(layer) for layer in linears)


def _is_fused(module: Any, kind: type) -> bool:
    """Whether what the module computes may be had without calling it."""
    return isinstance(module, kind) and not _has_hooks(module)


def _has_hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_static(*linears: Any) -> bool | None:
    """Whether the layers' weights are static; None if they must run by themselves (``aks.nn.Linear``)."""
    if torch.compiler.is_compiling():  # which fuses what follows a product itself
        return None
    static = True
    for layer in linears:
        weight = layer._parameters.get("weight") if type(layer) is Linear and not _has_hooks(layer) else None
        one = None if weight is None else layer.is_static(weight)
        if one is None:
            return None
        static = static and one
    return static


# Blocks: a method of a model is written anew where it adds a residual. Only whole statements of known form are.


@functools.cache
def _rewritten(forward: FunctionType) -> FunctionType | None:
    """``forward`` with additions of a residual replaced by calls of ``_Block``'s methods; None if it has none."""
    definition = _definition(forward)
    if definition is None:
        return None
    definition.decorator_list, definition.returns = [], None
    arguments = definition.args
    for argument in (*arguments.args, *arguments.kwonlyargs, arguments.kwarg, arguments.vararg):
        if argument:
            argument.annotation = None
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    ast.increment_lineno(definition, forward.__code__.co_firstlineno - 1)
    module = compile(ast.fix_missing_locations(ast.Module([definition], [])), forward.__code__.co_filename, "exec")
    code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
    made = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__)
    made.__kwdefaults__, made.__qualname__, made.__doc__ = forward.__kwdefaults__, forward.__qualname__, forward.__doc__
    made.__annotations__, made.__module__ = forward.__annotations__, forward.__module__
    return made


def _definition(forward: FunctionType) -> ast.FunctionDef | None:
    """What ``_rewritten`` compiles, parsed anew."""
    if forward.__closure__ or hasattr(forward, "__wrapped__"):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(forward))
        [definition] = ast.parse(source).body
    except (OSError, SyntaxError, TypeError, ValueError):  # written where there is no source, or a lambda
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    body = list(_with_calls_added(list(_with_norms_added(definition.body))))
    if len(body) == len(definition.body):
        return None
    definition.body = body
    return definition


@functools.cache
def _additions(forward: FunctionType) -> tuple[tuple[str, str], ...]:
    """Calls that ``_rewritten`` has instead of additions: the method of ``_Block``, and the block's attribute."""
    definition = _definition(forward)
    calls = [ast.unparse(statement) for statement in definition.body] if definition else []
    return tuple((match[1], match[2]) for match in map(_ADDITION.search, calls) if match)


def _with_norms_added(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """``x = residual + x; residual = x; x = self.norm(x)`` becomes one statement."""
    place = 0
    while place < len(body):
        match [ast.unparse(statement) for statement in body[place : place + 3]]:
            case [total, kept, normed] if (found := _sum_of(total)) and kept == f"{found[1]} = {found[0]}":
                x, residual = found
                if norm := _called_on(normed, x):
                    yield _statement(
                        f"{x}, {residual} = self._aks_add_norm(self.{norm}, {x}, {residual})", body[place]
                    )  # fmt: skip
                    place += 3
                    continue
        yield body[place]
        place += 1


def _with_calls_added(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """``x = self.layer(x); x = residual + x`` becomes one statement."""
    place = 0
    while place < len(body):
        match [ast.unparse(statement) for statement in body[place : place + 2]]:
            case [called, total] if (found := _sum_of(total)) and (layer := _called_on(called, found[0])):
                x, residual = found
                yield _statement(f"{x} = self._aks_call_add(self.{layer}, {x}, {residual})", body[place])
                place += 2
                continue
        yield body[place]
        place += 1


def _sum_of(text: str) -> tuple[str, str] | None:
    """x and residual of ``x = residual + x`` or ``x = x + residual``."""
    match ast.parse(text).body:
        case [
            ast.Assign(
                targets=[ast.Name(id=x)], value=ast.BinOp(left=ast.Name(id=a), op=ast.Add(), right=ast.Name(id=b))
            )
        ] if x in (a, b) and a != b:
            return x, b if a == x else a
    return None


def _called_on(text: str, x: str) -> str | None:
    """The attribute of ``x = self.attribute(x)``."""
    match ast.parse(text).body:
        case [
            ast.Assign(
                targets=[ast.Name(id=target)],
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="self"), attr=attribute), args=[ast.Name(id=name)], keywords=[]
                ),
            )
        ] if target == name == x:
            return attribute
    return None


def _statement(text: str, place: ast.stmt) -> ast.stmt:
    [made] = ast.parse(text).body
    for node in ast.walk(made):
        ast.copy_location(node, place)
    return made
