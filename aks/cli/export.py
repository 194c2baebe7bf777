"""``aks export`` and ``aks explain``: from a selector to a tree, and what a tree answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aks.cli.options import OPS_HELP, Model, TreeDevice

if TYPE_CHECKING:
    from aks.runtime.precisions import Estimate


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
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[OP] name=value...", help=f"The op, then a value for each axis, and for attributes. {OPS_HELP}"
        ),
    ],
    device: TreeDevice = "h200",
    model: Model = None,
    precisions: Annotated[
        str,
        typer.Option(
            help="Instead: which of these precisions (bf16, fp8, int8, int4) is expected to be fastest for a layer of "
            "n and k, at each m (m=1,8,64; default: powers of two up to 2048)."
        ),
    ] = "",
) -> None:
    """Say which config a tree picks for a problem, and why.

    Prints the path through the tree, the expected slowdown and latency, the runners-up, and whether the
    training data covered the problem.

    With --precisions there is no op: it compares what the trees of several are expected to take, with the
    time to quantise x, as trained on the device.

    \b
    Examples:
      aks explain gemm m=16 n=4096 k=4096
      aks explain gemm m=1 n=2880 k=4096 dtype=fp16 static_weights=true --model runs/demo/model
      aks explain --precisions bf16,int8,int4 n=4096 k=4096
      aks explain --precisions int8,int4 m=1 n=28672 k=4096 group=64 density=10
    """
    from aks.cli.problem import parse_problem
    from aks.ops import find_op
    from aks.runtime.explain import explain as reasons
    from aks.runtime.predictor import Predictor

    if precisions:
        _explain_precisions(precisions, words, device)
        return
    known_op = find_op(words[0])
    asked = parse_problem(known_op, words[1:])
    print(reasons(Predictor.load(known_op, None if model else device, model), known_op, asked))


def _explain_precisions(precisions: str, words: list[str], device: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from aks.cli.options import split_integers, split_words
    from aks.cli.problem import parse_attributes
    from aks.ops import find_op
    from aks.runtime.precisions import M_VALUES, PRECISIONS, QUANTIZE, compare

    names = split_words(precisions, "--precisions", PRECISIONS)
    given = [word[2:] for word in words if word.startswith("m=")]
    ms = split_integers(given[0], "m") if given else list(M_VALUES)
    attributes = parse_attributes(
        [find_op(PRECISIONS[name].op) for name in names], [word for word in words if not word.startswith("m=")]
    )
    rows = compare(names, attributes, ms, device, find_op)
    table = Table("m", *(f"{name} us" for name in names), "fastest", "it runs")
    for row in rows:
        cells = [_estimate(row.estimates[name]) for name in names]
        runs = row.estimates[row.fastest].runs if row.fastest else ""
        table.add_row(str(row.m), *cells, row.fastest, runs)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 150)
    console.print(table)
    print("us: what the trees' answers are expected to take, + quantising x before. -: outside what was measured.")
    if any(entry.quantize_us is None for row in rows for entry in row.estimates.values()):
        print(f"What quantising x takes is not known: there is no tree of {QUANTIZE} for {device}.")


def _estimate(estimate: Estimate) -> str:
    if estimate.product_us is None:
        return "-"
    quantize = f" + {estimate.quantize_us:.1f}" if estimate.quantize_us else ""
    return f"{estimate.product_us:.1f}{quantize}"
