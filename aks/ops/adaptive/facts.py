"""What a Triton kernel says of itself: its name and place, and its parameters. Standard library only."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from aks.core.errors import KernelError


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """A kernel as far as its op must know it.

    constants are the parameters that are annotated ``tl.constexpr``; derived those that ``@triton.heuristics``
    sets; defaults the values of parameters that have one.
    """

    name: str
    locator: str
    doc: str
    parameters: tuple[str, ...]
    constants: frozenset[str]
    derived: frozenset[str]
    defaults: dict[str, Any]


def read_kernel(fn: Any, name: str = "") -> KernelFacts:
    """The facts of a ``@triton.jit`` function, under ``@triton.heuristics`` or not; ``name`` is the op's, if not empty.

    Raises
    ------
    KernelError
        If it is something else.
    """
    if hasattr(fn, "configs"):
        raise KernelError("@aks.adaptive takes the place of @triton.autotune; pass its configs as space, and drop it")
    if not hasattr(fn, "fn"):
        raise KernelError(f"@aks.adaptive is over {fn!r}; write it above @triton.jit")
    derived: set[str] = set()
    while hasattr(fn, "fn"):
        derived |= set(getattr(fn, "values", None) or ())
        fn = fn.fn
    parameters = inspect.signature(fn).parameters
    return KernelFacts(
        name=name or fn.__name__,
        locator=f"{fn.__module__}:{fn.__name__}",
        doc=fn.__doc__ or "",
        parameters=tuple(parameters),
        constants=frozenset(entry for entry in parameters if _is_constant(parameters[entry])),
        derived=frozenset(derived),
        defaults={p.name: p.default for p in parameters.values() if p.default is not inspect.Parameter.empty},
    )


def _is_constant(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation  # a text where the module postpones them; Triton reads it so, too
    return "constexpr" in (annotation if isinstance(annotation, str) else repr(annotation))
