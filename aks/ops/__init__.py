"""The ops that aks knows. ``OPS`` is the only registry: a new op is one folder and one line here.

Beside them, an op may be made of a user's own kernel (``aks.adaptive``): it is known under its name once it was
named as ``module:kernel``, and only then is its module imported.
"""

from __future__ import annotations

from aks.core.errors import UnknownOpError
from aks.core.naming import import_named
from aks.ops.fp8_gemm.spec import FP8_GEMM
from aks.ops.fused_linear.spec import FUSED_LINEAR
from aks.ops.gemm.spec import GEMM
from aks.ops.int4_gemm.spec import INT4_GEMM
from aks.ops.int8_gemm.spec import INT8_GEMM
from aks.ops.mm.spec import MM
from aks.ops.op import Op
from aks.ops.quantize_rows.spec import QUANTIZE_ROWS
from aks.ops.rms_norm.spec import RMS_NORM

OPS: dict[str, Op] = {
    op.name: op for op in (GEMM, FUSED_LINEAR, RMS_NORM, QUANTIZE_ROWS, FP8_GEMM, INT8_GEMM, INT4_GEMM, MM)
}

_NAMED: dict[str, Op] = {}
"""Users' ops that were named in this process."""


def find_op(name: str) -> Op:
    """The op registered as ``name``, or that of a user's kernel: ``module:kernel``, afterwards by its own name too.

    Raises
    ------
    UnknownOpError
        If there is none.
    KernelError, FormulaError
        If what is said of the user's kernel does not fit it.
    """
    if ":" in name:
        return _import(name)
    try:
        return OPS.get(name) or _NAMED[name]
    except KeyError:
        raise UnknownOpError(
            f"no op {name!r}; known: {', '.join(sorted(OPS))}; an op of your own is named module:kernel"
        ) from None


def _import(name: str) -> Op:
    try:
        found = import_named(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownOpError(f"no op {name!r} ({error}); wanted a kernel with @aks.adaptive: module:kernel") from error
    op = getattr(found, "op", None)
    if not isinstance(op, Op):
        raise UnknownOpError(f"{name!r} is a {type(found).__name__}; wanted a kernel with @aks.adaptive")
    if op.name in OPS:
        raise UnknownOpError(f"an op of aks is named {op.name!r}; name yours otherwise: @aks.adaptive(name=...)")
    _NAMED[op.name] = op
    return op
