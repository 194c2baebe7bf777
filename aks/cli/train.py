"""``aks train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aks.cli.options import Data, OpName, RegimeName, Seed, TrackingUri, command_line, data_paths, split_words
from aks.core.measurement import Regime
from aks.core.tree_json import SYMBOLS


def train(
    op: OpName = "gemm",
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder for selector.json; default: runs/<op>.")] = None,
    regime: RegimeName = Regime.COLD,
    device: Annotated[
        str, typer.Option(help="GPU to train for, like h200-64sm; default: that of most of the data.")
    ] = "",
    held_out: Annotated[
        str, typer.Option(help="Model families to hold out, comma-separated; default: a quarter of them.")
    ] = "",
    on_everything: Annotated[bool, typer.Option("--on-everything", help="Hold out nothing: no score.")] = False,
    max_portfolio: Annotated[int, typer.Option(min=2, max=len(SYMBOLS), help="How many configs to keep at most.")] = 64,
    prior: Annotated[bool, typer.Option("--prior", help="Also write what 'aks calibrate' starts from: 12 MB.")] = False,
    seed: Seed = 0,
    track: Annotated[bool, typer.Option(help="Log the run to MLflow.")] = True,
    tracking_uri: TrackingUri = "",
    experiment: Annotated[str, typer.Option(help="MLflow experiment; default: aks-<op>.")] = "",
) -> None:
    """Train on measurements: XGBoost models, portfolio, distilled tree. One MLflow run.

    Writes selector.json, which 'aks export' turns into files to ship. It is for one GPU, measured or
    not: what was measured on others is carried over to it by its facts. Model families that are held
    out are seen by nothing of that. Needs the 'train' extra.

    \b
    Examples:
      aks train
      aks train --data data/gemm/h200.parquet --out runs/gemm --held-out llama-3,qwen-3
      aks train --device h200-24sm --out runs/h200-24sm
      aks train --data runs/a100.parquet --data runs/h100.parquet --no-track
      aks train --on-everything --prior
      aks train --op my_kernels:softmax --data runs/softmax.parquet
      mlflow ui --backend-store-uri sqlite:///mlflow.db
    """
    from rich.console import Console

    from aks.core.device import find_device
    from aks.ops import find_op
    from aks.train.fit import Options
    from aks.train.selector import train as run

    known_op = find_op(op)
    if track:
        # Should mlflow be missing, now is the time to say so, not when the work is done.
        import aks.train.tracking  # noqa: F401
    console = Console(stderr=True)
    with console.status("reading measurements") as status:

        def say(line: str) -> None:
            status.update(line)
            if not console.is_terminal:
                console.print(line)

        result = run(
            known_op,
            data_paths(known_op.name, data),
            out or Path("runs", known_op.name),
            regime=regime,
            device=find_device(device) if device else None,
            held_out=[] if on_everything else split_words(held_out, "held-out") if held_out else None,
            options=Options(seed=seed, max_portfolio=max_portfolio),
            with_prior=prior,
            track=track,
            experiment=experiment or None,
            tracking_uri=tracking_uri or None,
            command=command_line(),
            say=say,
        )
    metrics = result.metrics
    print(f"{len(result.training)} training problems, {len(result.selector['portfolio'])} configs kept")
    if result.held_out is not None:
        print(
            f"held out {', '.join(result.selector['dataset']['held_out_families'])}: {len(result.held_out)} problems, "
            f"mean regret {metrics['mean_regret']:.2%}, speed-up over the vendor {metrics['geomean_speedup']:.3f}x"
        )
    if uncovered := result.fitted.uncovered:
        print(
            f"{result.fitted.device.name} is unlike every GPU that was measured ({', '.join(uncovered)}): "
            "the tree leans on the vendor's library; measure some there with 'aks collect'"
        )
    print(f"tree of {metrics['num_leaves']:.0f} leaves and {metrics['depth']:.0f} levels: {result.selector_path}")
    if result.run_id:
        print(f"MLflow run {result.run_id}")
