"""``aks evaluate`` and ``aks report``: what an exported tree is worth, as a table and as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from aks.cli.options import (
    Data,
    Model,
    OpName,
    RegimeName,
    TrackingUri,
    TreeDevice,
    command_line,
    data_paths,
    split_words,
)
from aks.core.measurement import Regime

if TYPE_CHECKING:
    from aks.evaluate.evaluation import Evaluation

Selector = Annotated[
    Path | None, typer.Option(help="selector.json that the tree was exported from: scores XGBoost too.")
]
HeldOut = Annotated[
    str,
    typer.Option(
        help="Model families to score on, comma-separated: of those that training held out (default: all of them); "
        "with --holdout, any, which nothing then learns from."
    ),
]
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
    by: Annotated[
        str, typer.Option(help="Attributes of problems, comma-separated: a row for each of their values (scaling).")
    ] = "",
    over: Annotated[
        str, typer.Option(help="Configs, comma-separated, that the tree is compared with as with the vendor's call.")
    ] = "",
    bands: Annotated[
        str, typer.Option(help="Ranges of m that speed-ups are given for: 1-64,65-512,513-; default: five from 1 up.")
    ] = "",
    report: Annotated[Path | None, typer.Option(help="Also write the HTML report there.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
    holdout: Annotated[
        str, typer.Option(help="Instead of scoring a tree: hold out each value of this column, train on the rest.")
    ] = "",
    values: Annotated[str, typer.Option(help="With --holdout: only these values, comma-separated; default: all.")] = "",
    max_groups: Annotated[
        int, typer.Option(min=2, help="With --holdout: how many trainings at most; devices are held out one by one.")
    ] = 5,
    importance: Annotated[
        bool,
        typer.Option(
            "--importance",
            help="With --holdout device: also what the choice loses without each fact of the devices, and whether so "
            "many devices can tell.",
        ),
    ] = False,
    records: Annotated[
        list[Path] | None,
        typer.Option(help="With --holdout: these measurements or others' records instead, or beside --data."),
    ] = None,
    regime: RegimeName = Regime.COLD,
    track: Annotated[bool, typer.Option(help="With --holdout: log the run to MLflow.")] = True,
    tracking_uri: TrackingUri = "",
    experiment: Annotated[str, typer.Option(help="MLflow experiment; default: aks-<op>-holdout.")] = "",
) -> None:
    """Score an exported tree on model families that it never saw, next to every baseline.

    Prints regret against the fastest measured config and speed-up over the vendor's library. Needs
    the 'train' extra.

    \b
    Examples:
      aks evaluate
      aks evaluate --model runs/demo/model --selector runs/demo/selector.json --report report.html
      aks evaluate --op my_kernels:softmax --data runs/softmax.parquet --model models/softmax/h200
      aks evaluate --op fp8_gemm --by scaling --bands 1-64,65-512,513-
      aks evaluate --op int4_gemm --by group --over dequantized --bands 1-8,16-32,64
      aks evaluate --holdout family --max-groups 4
      aks evaluate --holdout device
      aks evaluate --holdout device --values h200-24sm,h200-72sm
      aks evaluate --holdout device --held-out exaone,falcon,phi --json runs/devices.json
      aks evaluate --holdout device --records mm_a100_h100.parquet
      aks evaluate --holdout device --no-ladder --importance
    """
    if records and not holdout:
        raise typer.BadParameter("--records goes with --holdout: without it an exported tree is scored, on --data")
    if importance and holdout != "device":
        raise typer.BadParameter(
            "--importance is of facts that tell devices apart: it goes with --holdout device alone"
        )
    if holdout:
        _hold_out(
            op,
            data,
            device,
            records or [],
            holdout,
            held_out,
            values,
            regime,
            max_groups,
            ladder,
            importance,
            json_out,
            Tracking(track, tracking_uri, experiment),
        )
        return
    from aks.evaluate.report import write_report
    from aks.evaluate.tables import print_table

    parts = Parts(by, over, bands)
    result = _evaluate(op, data, device, model, selector, held_out, ladder, bench, parts)
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
    parts: Parts | None = None,
) -> Evaluation:
    from aks.core.bundle import read_bundle
    from aks.evaluate.run import evaluate as run
    from aks.ops import find_op
    from aks.runtime.predictor import Predictor

    known_op = find_op(op)
    folder = model or Predictor.load(known_op, device).bundle.folder
    return run(
        known_op,
        data_paths(known_op.name, data or _file_of(known_op.name, read_bundle(folder).device.name)),
        folder,
        held_out=split_words(held_out, "held-out") if held_out else (),
        selector=selector,
        ladder=ladder,
        bench=bench,
        command=command_line(),
        **(parts.arguments() if parts else {}),
    )


def _file_of(op: str, device: str) -> list[Path] | None:
    """The checkout's measurements of one device, if there are any."""
    path = Path("data", op, f"{device}.parquet")
    return [path] if path.is_file() else None


class Parts(NamedTuple):
    """What rows of parts there are to be, as typed."""

    by: str
    over: str
    bands: str

    def arguments(self) -> dict[str, Any]:
        """For ``aks.evaluate.run.evaluate``."""
        given = {name: split_words(text, f"--{name}") for name, text in (("by", self.by), ("over", self.over)) if text}
        return {**given, **({"ranges": _ranges(self.bands)} if self.bands else {})}


def _ranges(text: str) -> tuple[tuple[int, int | None], ...]:
    ranges = []
    for word in split_words(text, "--bands"):
        low, dash, high = word.partition("-")
        if not low.isdecimal() or not (high.isdecimal() or not high) or (high and int(high) < int(low)):
            raise typer.BadParameter(f"--bands has {word!r}; write ranges like 1-64, 65-, or 128")
        ranges.append((int(low), int(high) if high else None if dash else int(low)))
    return tuple(ranges)


class Tracking(NamedTuple):
    """Whether and where a run is logged."""

    wanted: bool
    uri: str
    experiment: str


def _hold_out(
    op: str,
    data: list[Path] | None,
    device: str,
    records: list[Path],
    column: str,
    held_out: str,
    values: str,
    regime: Regime,
    max_groups: int,
    ladder: bool,
    importance: bool,
    json_out: Path | None,
    tracking: Tracking,
) -> None:
    from aks.evaluate.generalization import device_columns
    from aks.evaluate.run import evaluate_holdout, evaluate_importance, log_holdout, op_of
    from aks.evaluate.tables import print_generalization, print_importance
    from aks.ops import find_op

    known_op = find_op(op)  # first: a user's is known to files once it was named
    known_op = op_of(records) if records else known_op
    if tracking.wanted:
        import aks.train.tracking  # noqa: F401  # should mlflow be missing, now is the time to say so
    if not data and not records and column not in device_columns():
        data = _file_of(known_op.name, device)
    # What others recorded was run by other software: it is mixed with ours only if that is asked for.
    given = data_paths(known_op.name, data) if data or not records else []
    paths = [*given, *records]
    families = split_words(held_out, "held-out") if held_out else ()
    wanted = split_words(values, "value") if values else ()
    result = evaluate_holdout(
        known_op,
        paths,
        column,
        regime=regime,
        held_out=families,
        values=wanted,
        max_groups=max_groups,
        ladder=ladder,
        progress=lambda text: print(f"holding out {text}", file=sys.stderr),
    )
    print_generalization(result, known_op.problem_type.AXES[0])
    found = None
    if importance:
        found = evaluate_importance(
            known_op,
            paths,
            regime=regime,
            held_out=families,
            values=wanted,
            progress=lambda text: print(f"without each fact: holding out {text}", file=sys.stderr),
        )
        print_importance(found)
    if json_out:
        figures = result.to_json() | ({} if found is None else {"importance": found.to_json()})
        json_out.write_text(json.dumps(figures, indent=1) + "\n")
    if tracking.wanted:
        run_id = log_holdout(
            result,
            found,
            experiment=tracking.experiment or f"aks-{known_op.name}-holdout",
            tracking_uri=tracking.uri or None,
            command=command_line(),
        )
        print(f"MLflow run {run_id}")
