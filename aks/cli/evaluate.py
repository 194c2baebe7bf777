"""``aks evaluate`` and ``aks report``: what an exported tree is worth, as a table and as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aks.cli.options import Data, Model, OpName, RegimeName, TreeDevice, command_line, data_paths, split_words
from aks.core.measurement import Regime

if TYPE_CHECKING:
    from aks.evaluate.evaluation import Evaluation

Selector = Annotated[
    Path | None, typer.Option(help="selector.json that the tree was exported from: scores XGBoost too.")
]
HeldOut = Annotated[str, typer.Option(help="Comma-separated, of those that training held out; default: all of them.")]
Ladder = Annotated[bool, typer.Option(help="Train and score the baselines beside the tree.")]
Bench = Annotated[bool, typer.Option("--bench", help="Time predictions in Python and C.")]


def evaluate(
    op: OpName = "gemm",
    data: Data = None,
    device: TreeDevice = "h200",
    model: Model = None,
    selector: Selector = None,
    held_out: HeldOut = "",
    ladder: Ladder = True,
    bench: Bench = False,
    report: Annotated[Path | None, typer.Option(help="Also write the HTML report there.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
    holdout: Annotated[
        str, typer.Option(help="Instead of scoring a tree: hold out each value of this column, train on the rest.")
    ] = "",
    max_groups: Annotated[int, typer.Option(min=2, help="With --holdout: how many trainings at most.")] = 5,
    regime: RegimeName = Regime.COLD,
) -> None:
    """Score an exported tree on model families that it never saw, next to every baseline.

    Prints regret against the fastest measured config and speed-up over the vendor's library. Needs
    the 'train' extra.

    \b
    Examples:
      aks evaluate
      aks evaluate --model runs/demo/model --selector runs/demo/selector.json --report report.html
      aks evaluate --holdout family --max-groups 4
      aks evaluate --holdout device --data data/gemm/h200.parquet --data runs/a100.parquet
    """
    if holdout:
        _hold_out(op, data, holdout, regime, max_groups, ladder, json_out)
        return
    from aks.evaluate.report import write_report
    from aks.evaluate.tables import print_table

    result = _evaluate(op, data, device, model, selector, held_out, ladder, bench)
    print_table(result)
    if json_out:
        json_out.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    if report:
        print(f"report written to {write_report(result, report)}")


def report(
    out: Annotated[Path, typer.Argument(help="HTML file to write.")] = Path("report/index.html"),
    op: OpName = "gemm",
    data: Data = None,
    device: TreeDevice = "h200",
    model: Model = None,
    selector: Selector = None,
    held_out: HeldOut = "",
    ladder: Ladder = True,
    bench: Bench = False,
) -> None:
    """Write what 'aks evaluate' finds as one HTML page with pictures.

    \b
    Examples:
      aks report
      aks report demo.html --model runs/demo/model --selector runs/demo/selector.json --bench
    """
    from aks.evaluate.report import write_report

    result = _evaluate(op, data, device, model, selector, held_out, ladder, bench)
    print(f"report written to {write_report(result, out)}")


def _evaluate(
    op: str,
    data: list[Path] | None,
    device: str,
    model: Path | None,
    selector: Path | None,
    held_out: str,
    ladder: bool,
    bench: bool,
) -> Evaluation:
    from aks.evaluate.run import evaluate as run
    from aks.ops import find_op
    from aks.runtime.predictor import Predictor

    known_op = find_op(op)
    paths = data_paths(op, data)
    return run(
        known_op,
        paths,
        model or Predictor.load(known_op, device).bundle.folder,
        held_out=split_words(held_out, "held-out") if held_out else (),
        selector=selector,
        ladder=ladder,
        bench=bench,
        command=command_line(),
    )


def _hold_out(
    op: str, data: list[Path] | None, column: str, regime: str, max_groups: int, ladder: bool, json_out: Path | None
) -> None:
    from aks.evaluate.run import evaluate_holdout
    from aks.evaluate.tables import print_generalization
    from aks.ops import find_op

    known_op = find_op(op)
    result = evaluate_holdout(
        known_op,
        data_paths(op, data),
        column,
        regime=regime,
        max_groups=max_groups,
        ladder=ladder,
        progress=lambda text: print(f"holding out {text}", file=sys.stderr),
    )
    print_generalization(result, known_op.problem_type.AXES[0])
    if json_out:
        json_out.write_text(json.dumps(result.to_json(), indent=1) + "\n")
