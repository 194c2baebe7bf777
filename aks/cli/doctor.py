"""``aks doctor``: whether a tree still fits this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aks.cli.options import Model, OpName

if TYPE_CHECKING:
    from aks.core.config import Config
    from aks.core.measurement import Regime
    from aks.core.problem import Problem
    from aks.evaluate.doctor import Checkup, Measure
    from aks.ops.op import Op
    from aks.runtime.predictor import Predictor


_NOT_BUILT = (
    "the native module is not built, so the bundle's kernels are not used: Triton compiles each at its first use, "
    "which takes seconds and may stall a request, and Python launches, which costs the host 20 to 120 us more a call "
    "(an H200's, aks bench dispatch); install aks again where there is a C++20 compiler"
)


def doctor(
    op: OpName = "gemm",
    model: Model = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
) -> None:
    """Measure some 30 sentinel problems again, and say whether the tree still fits this GPU and its software.

    Compares the tree's choices and the vendor's calls, side by side and in the regime that the tree was trained for,
    with what was recorded then, and says which versions differ and whether kernels of a bundle are launched, and
    what it costs if not. Exit status 1: it does not fit;
    2: there is nothing to compare. Needs the 'gpu' extra. The sentinels lie beside the tree; 'aks data sentinels'
    writes them.

    \b
    Examples:
      aks doctor
      aks doctor --op fused_linear
      aks doctor --model bundles/gemm/h200 --json doctor.json
    """
    from aks.collect.environment import current_environment
    from aks.core.device import current_device
    from aks.evaluate.doctor import examine, read_sentinels
    from aks.ops import find_op
    from aks.runtime.predictor import Predictor

    known_op, device = find_op(op), current_device()
    predictor = Predictor.load(known_op, device=device, path=model)
    recorded = read_sentinels(known_op, predictor.bundle.folder)
    found = examine(known_op, recorded, current_environment(), _timed(known_op, device))
    faults, remarks = _serving(predictor)
    print(f"{known_op.name} on {predictor.tree.device}, {predictor.bundle.folder}, regime {recorded.regime}")
    for name, sha256 in recorded.datasets.items():
        print(f"recorded in {name}, sha256 {sha256}")
    _print(found, faults, [*found.remarks, *remarks])
    if json_out:
        document = {
            "fits": not (found.faults or faults),
            "regime": recorded.regime,
            "datasets": recorded.datasets,
            **asdict(found),
            "faults": [*found.faults, *faults],
            "remarks": [*found.remarks, *remarks],
        }
        json_out.write_text(json.dumps(document, indent=1, default=str) + "\n")
    raise typer.Exit(1 if found.faults or faults else 0)


def _timed(op: Op, device: Any) -> Measure:
    from aks.collect.timer import Timer
    from aks.core.measurement import Status

    timer = Timer(op, device)

    def measure(problem: Problem, configs: Sequence[Config], regime: Regime) -> dict[Config, float | str]:
        outcomes = [outcome.measurement for outcome in timer.measure(problem, configs, regime)]
        return {
            one.config: one.latency_us
            if one.status in (Status.OK, Status.RACED_OUT) and one.latency_us is not None
            else f"{one.status.value}: {one.detail}"
            for one in outcomes
        }

    return measure


def _serving(predictor: Predictor) -> tuple[list[str], list[str]]:
    """Faults and remarks about what launches."""
    from aks.core import kernel_files
    from aks.core.errors import AksError
    from aks.runtime import native

    if kernel_files.TABLE_FILE not in predictor.bundle.manifest["files"]:
        return [], ["the folder has no kernels (aks export --bundle): Triton compiles them as they are needed"]
    if not native.is_built():
        return [_NOT_BUILT], []
    try:
        native.load_kernels(predictor.bundle)
    except AksError as error:
        return [f"the bundle's kernels do not load: {error}"], []
    return [], []


def _print(found: Checkup, serving_faults: list[str], remarks: list[str]) -> None:
    print(f"{'recorded us':>12}{'now':>9}{'vendor':>9}{'now':>9}  problem, config")
    for one in found.findings:
        s = one.sentinel
        now = (
            f"{one.config_us:>9.2f}{s.vendor_us:>9.2f}{one.vendor_us:>9.2f}" if not one.error else f"  {one.error[:25]}"
        )
        print(f"{s.config_us:>12.2f}{now}  {s.problem.key()}, {s.config.key()}")
    if not all(one.error for one in found.findings):
        print(
            f"medians of now over recorded: choices {found.latency_ratio:.3f}, vendor {found.vendor_ratio:.3f}, "
            f"gain over the vendor {found.gain_ratio:.3f}; {found.slower} choices slower than the vendor"
        )
    for remark in remarks:
        print(f"note: {remark}")
    for fault in (*found.faults, *serving_faults):
        print(f"fault: {fault}")
    if found.faults:
        print("does not fit: measure again (aks collect, or aks calibrate for minutes), aks train, aks export")
    elif serving_faults:
        print("the tree fits, its kernels are not launched as exported")
    else:
        print("fits")
