"""``aks export`` and ``aks explain``: from a selector to a tree, and what a tree answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aks.cli.options import Model, OpArgument, TreeDevice


def export(
    selector: Annotated[Path, typer.Argument(help="selector.json that 'aks train' wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: models/<op>/<device>.")] = None,
    device: Annotated[str, typer.Option(help="Device whose facts are folded in; default: that of the data.")] = "",
    op: Annotated[str, typer.Option(help="module:kernel, if the op is a kernel of your own (@aks.adaptive).")] = "",
    bundle: Annotated[bool, typer.Option(help="Compile every kernel that the tree can name, too.")] = False,
) -> None:
    """Write a trained tree as tree.py, tree.h, tree.json and manifest.json.

    With --bundle also kernels.json and kernels.bin, compiled for the device: serving then needs neither
    Triton nor a compiler. This needs no GPU; 750 kernels take about three minutes on two CPUs.

    Sentinels (aks data sentinels) that lie beside the selector and are of the same tree come along.
    What it replaces is kept in the folder's versions/, where Predictor.load(version=...) finds it.

    \b
    Examples:
      aks export runs/gemm/selector.json
      aks export runs/gemm/selector.json --device h100-80gb-hbm3 --out /tmp/h100
      aks export models/gemm/h200/selector.json --out bundles/gemm/h200 --bundle
      aks export runs/softmax/selector.json --op my_kernels:softmax
    """
    from aks.core import artifact
    from aks.core.device import DeviceSpec, find_device
    from aks.evaluate.doctor import carry_sentinels
    from aks.export.bundle import export as write
    from aks.export.selector import read_selector
    from aks.ops import find_op

    if op:
        find_op(op)  # which is then known by the name that the selector has
    target = find_device(device) if device else None
    if out is None:
        content, _ = read_selector(selector)
        named = target or DeviceSpec.from_row(content.get("device", {}))
        out = Path("models", str(content.get("op")), named.name)
    manifest = write(selector, out, device=target, kernels=bundle)
    carry_sentinels(selector.parent, out)
    tree = manifest["tree"]
    version = artifact.version_of(manifest)
    print(
        f"{tree['splits']} splits, {tree['levels']} levels, for {manifest['device']['device']}: "
        f"written to {out}, version {version}"
    )
    if bundle:
        size = manifest["files"]["kernels.bin"]["bytes"] / 1e6
        made = manifest["kernels"]
        print(
            f"{made['count']} kernels, {size:.1f} MB, for capability {made['capability'] / 10}; "
            f"they need a driver of CUDA {made['cuda'] // 1000}.{made['cuda'] % 1000 // 10} or newer"
        )


def explain(
    op: OpArgument,
    problem: Annotated[list[str], typer.Argument(help="name=value for each axis, and for attributes.")],
    device: TreeDevice = "h200",
    model: Model = None,
) -> None:
    """Say which config a tree picks for a problem, and why.

    Prints the path through the tree, the expected slowdown, the runners-up, and whether the training
    data covered the problem.

    \b
    Examples:
      aks explain gemm m=16 n=4096 k=4096
      aks explain gemm m=1 n=2880 k=4096 dtype=fp16 static_weights=true --model runs/demo/model
    """
    from aks.cli.problem import parse_problem
    from aks.ops import find_op
    from aks.runtime.explain import explain as reasons
    from aks.runtime.predictor import Predictor

    known_op = find_op(op)
    asked = parse_problem(known_op, problem)
    print(reasons(Predictor.load(known_op, None if model else device, model), known_op, asked))
