"""The ops that aks knows. ``OPS`` is the only registry: a new op is one folder and one line here."""

from __future__ import annotations

from aks.core.errors import UnknownOpError
from aks.ops.fused_linear.spec import FUSED_LINEAR
from aks.ops.gemm.spec import GEMM
from aks.ops.mm.spec import MM
from aks.ops.op import Op
from aks.ops.rms_norm.spec import RMS_NORM

OPS: dict[str, Op] = {op.name: op for op in (GEMM, FUSED_LINEAR, RMS_NORM, MM)}


def find_op(name: str) -> Op:
    """The op registered as ``name``.

    Raises
    ------
    UnknownOpError
        If there is none.
    """
    try:
        return OPS[name]
    except KeyError:
        raise UnknownOpError(f"no op {name!r}; known: {', '.join(sorted(OPS))}") from None
