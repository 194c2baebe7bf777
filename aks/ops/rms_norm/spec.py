"""Axes, config space and rules, features and bytes of ``rms_norm``. Standard library and core only.

``y = x / rms(x) * weight`` over rows: x and y [M, K], weight [K], bf16 or fp16, computed in float32
(Zhang and Sennrich, 2019). With a residual [M, K], ``total = x + residual`` is rounded and written, too, and
normalised instead of x: what a layer with a residual stream does next to its norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from aks.core.config import Config, ConfigSpace, Rule
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.ops.op import Op
from aks.ops.rows import LAUNCH_RULE, MAX_K, MIN_K, RESIDENT, THREADS_RULE, row_features


@dataclass(frozen=True, slots=True)
class RmsNormProblem(Problem):
    """Rows to normalise. residual: whether one is added before.

    alignment is the largest power of two, up to 16, that divides every pointer and every row stride in bytes.
    """

    OP: ClassVar[str] = "rms_norm"
    AXES: ClassVar[tuple[str, ...]] = ("m", "k")
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dtype": ("bf16", "fp16"),
        "residual": (False, True),
        "alignment": (2, 4, 8, 16),
    }

    m: int
    k: int
    dtype: str = "bf16"
    residual: bool = False
    alignment: int = 16


@dataclass(frozen=True, slots=True)
class RmsNormConfig(Config):
    """One way to normalise. Knobs that a kind does not have are 0.

    kind
        ``torch``: PyTorch's kernels. ``row``: a program for a row, all of it in registers.
    pdl
        Programmatic dependent launch: launched early, and lets the kernel after it be.
    """

    OP: ClassVar[str] = "rms_norm"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": ("torch", "row")}

    kind: str
    num_warps: int = 0
    pdl: int = 0


VENDOR = RmsNormConfig(kind="torch")


def _configs() -> Iterator[RmsNormConfig]:
    yield VENDOR
    for num_warps in (1, 2, 4, 8, 16):
        for pdl in (0, 1):
            yield RmsNormConfig("row", num_warps, pdl)


RULES = (
    Rule("a row fits registers", f"kind == TORCH or (k <= {MAX_K} and next_pow2(k) <= 2048 * num_warps)"),
    Rule("every thread has an element", f"kind == TORCH or (k >= {MIN_K} and next_pow2(k) >= 64 * num_warps)"),
    THREADS_RULE,
    Rule("rows and pointers of 16 bytes", "kind == TORCH or (alignment == 16 and k % 8 == 0)"),
    LAUNCH_RULE,
)

_BYTES = "(m * k * (4 + 4 * residual) + 2 * k)"

FEATURES = row_features(_BYTES, (Feature("residual", "residual"),))

CONFIG_FEATURES = (
    *(Feature(name, name) for name in ("kind", "num_warps", "pdl")),
    Feature("elements", "next_pow2(k) // max(1, 32 * num_warps)", "of a row, a thread"),
    Feature("waves", f"m * 100 // (sm_count * {RESIDENT})", "percent"),
)

RMS_NORM = Op(
    name="rms_norm",
    problem_type=RmsNormProblem,
    config_type=RmsNormConfig,
    space=ConfigSpace("rms_norm", tuple(_configs()), RULES),
    features=FEATURES,
    tree_features=("m", "k", "fp16", "residual", "alignment"),
    config_features=CONFIG_FEATURES,
    vendor=VENDOR,
    flops="4 * m * k",
    bytes_moved=_BYTES,
    # What a layer before has just written is in L2, and so is the weight after a token or two: nothing to rotate.
    weight_bytes="2 * k",
    analytic_ns=f"{_BYTES} // dram_gb_s + ceil_div(m, sm_count * {RESIDENT}) * next_pow2(k) // max(1, 32 * num_warps)"
    " + (kind == TORCH) * 2000",
    spread=({"residual": True}, {"residual": False}),
)
