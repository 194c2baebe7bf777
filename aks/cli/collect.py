"""``aks collect``."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aks.cli.options import OpName, Seed, split_integers, split_words
from aks.core.errors import UnknownDeviceError
from aks.core.measurement import Regime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aks.collect.sources import Workload
    from aks.core.config import Config
    from aks.core.device import DeviceSpec
    from aks.core.problem import Problem
    from aks.ops.op import Op

M_VALUES = "1,2,3,4,6,8,12,16,24,32,48,64,96,128,192,256,512,1024,2048,4096"


def collect(
    op: OpName = "gemm",
    out: Annotated[Path, typer.Option(help="SQLite file to write, or to continue.")] = Path("runs/collect.db"),
    families: Annotated[str, typer.Option(help="Model families, comma-separated; default: all, and a sample.")] = "",
    problems: Annotated[
        Path | None,
        typer.Option(help="CSV file with a problem a line, instead of families; or a plan of 'aks calibrate'."),
    ] = None,
    same_as: Annotated[
        Path | None,
        typer.Option(help="Parquet file: measure its problems, each with the configs that it has there.", exists=True),
    ] = None,
    from_model: Annotated[str, typer.Option(help="module:factory of an nn.Module: its linear layers.")] = "",
    m_values: Annotated[str, typer.Option(help="Values of m for --from-model, comma-separated.")] = M_VALUES,
    dtypes: Annotated[
        str,
        typer.Option(help="Comma-separated; families and models are measured in each. Default: bf16; --same-as: all."),
    ] = "",
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="How many problems to draw. From families: 1500; --same-as: all.")
    ] = None,
    max_flops: Annotated[
        float, typer.Option(help="With --same-as: of at most so many operations, like 2e12.")
    ] = math.inf,
    seed: Seed = 0,
    regimes: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(Regime)}.")] = Regime.COLD.value,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Begin nothing new after so long.")] = None,
    configs_from: Annotated[
        Path | None, typer.Option(help="selector.json or exported folder: measure its portfolio alone.", exists=True)
    ] = None,
    device: Annotated[str, typer.Option(help="Row of devices.toml to take the visible GPU for.")] = "",
    sms: Annotated[int | None, typer.Option(min=1, help="Measure on this many SMs: a partition of the GPU.")] = None,
    run_group: Annotated[str, typer.Option(help="A new name measures again what is there already.")] = "",
) -> None:
    """Measure kernel configs on the GPU of this machine.

    --same-as takes a file of 'aks data merge', of 'aks import', or records of AutoHeuristic, and its op: what was
    measured elsewhere is measured here, each problem with the same configs and the vendor's call.

    Stop it at will: the same command goes on where the last one ended. Needs the 'gpu' extra.

    \b
    Examples:
      aks collect --minutes 30 --out runs/h200.db
      aks collect --families llama-3,qwen-3 --dtypes bf16,fp16 --num-problems 400
      aks collect --problems shapes.csv --regimes cold,warm,chain
      aks collect --sms 64 --out runs/h200-64sm.db
      aks collect --from-model my_models:make --configs-from models/gemm/h200
      aks collect --same-as runs/records.parquet --num-problems 400 --max-flops 2e12 --out runs/mm.db
      aks collect --op my_kernels:softmax --problems shapes.csv --regimes cold,warm --out runs/softmax.db
    """
    from aks.collect.environment import current_environment
    from aks.collect.runner import collect as run
    from aks.collect.sources import configs_from_csv
    from aks.ops import find_op

    chosen_regimes = [Regime(name) for name in split_words(regimes, "regime", Regime)]
    configs: Sequence[Config] | Mapping[Problem, Sequence[Config]] | None = None
    known_op = find_op(op)
    if same_as is not None:
        if problems is not None or from_model or configs_from is not None:
            raise typer.BadParameter(
                "--same-as says what to measure; leave --problems, --from-model, --configs-from out"
            )
        known_op, workloads, configs = _same_as(same_as, families, dtypes, max_flops, num_problems, seed)
    else:
        workloads = _workloads(known_op, families, problems, from_model, m_values, dtypes, num_problems or 1500, seed)
        if configs_from:
            configs = _portfolio(known_op, configs_from)
        elif problems is not None and not (families or from_model):
            configs = configs_from_csv(known_op, problems)
    run(
        known_op,
        workloads,
        out=out,
        device=visible_device(device, sms),
        environment=current_environment(),
        regimes=chosen_regimes,
        configs=configs,
        minutes=minutes,
        run_group=run_group,
    )


def visible_device(name: str, sms: int | None) -> DeviceSpec:
    """The visible GPU, by the facts of ``name`` if one is given; or ``sms`` of its SMs.

    Raises
    ------
    UnknownDeviceError
        If there is no such name or no GPU, the two are different GPUs, or have not that many SMs.
    """
    from aks.core.device import current_device, find_device

    named = find_device(name) if name else None
    visible = current_device()
    device = named or visible
    if named and (named.capability, named.sm_count) != (visible.capability, visible.sm_count):
        raise UnknownDeviceError(
            f"the visible GPU is {visible.name!r} with {visible.sm_count} SMs of capability {visible.capability}; "
            f"{named.name!r} has {named.sm_count} of {named.capability}: leave --device out"
        )
    return device.partition(sms) if sms else device


def _workloads(
    op: Op,
    families: str,
    problems: Path | None,
    from_model: str,
    m_values: str,
    dtypes: str,
    num_problems: int,
    seed: int,
) -> list[Workload]:
    """Problems of every source that was asked for, in an order that a cut-short run samples fairly.

    Those that were counted come first, the most frequent before all.
    """
    from aks.collect.sources import problems_from_csv, problems_from_model
    from aks.collect.workloads import workload_problems

    known = op.problem_type.CHOICES["dtype"]
    chosen_dtypes = split_words(dtypes or known[0], "dtype", known)
    workloads: list[Workload] = []
    if problems is not None:
        workloads += problems_from_csv(op, problems)
    if from_model:
        sizes = split_integers(m_values, "m")
        for dtype in chosen_dtypes:
            workloads += problems_from_model(op, from_model, sizes, dtype=dtype)
    if families or not workloads:
        named = split_words(families, "family") if families else None
        workloads += workload_problems(op, families=named, dtypes=chosen_dtypes, num_problems=num_problems, seed=seed)
    random.Random(seed).shuffle(workloads)
    return sorted(workloads, key=lambda workload: -workload.count)


def _same_as(
    path: Path, families: str, dtypes: str, max_flops: float, num_problems: int | None, seed: int
) -> tuple[Op, list[Workload], dict[Problem, list[Config]]]:
    """The op of a file, its problems as in ``_workloads``, and the configs that each has there."""
    from aks.collect.sources import Workload
    from aks.core.record import split_families
    from aks.data.problems import configs_of, problems_of
    from aks.data.records import read_records

    op, table = read_records(path)
    found = problems_of(
        table,
        op,
        families=split_words(families, "family") if families else (),
        dtypes=split_words(dtypes, "dtype", op.problem_type.CHOICES["dtype"]) if dtypes else (),
        max_flops=max_flops,
        at_most=num_problems,
        seed=seed,
    )
    rows = found.to_pylist()
    workloads = [Workload(op.problem_type.from_row(row), split_families(row["families"])) for row in rows]
    random.Random(seed).shuffle(workloads)
    return op, workloads, configs_of(table, op)


def _portfolio(op: Op, path: Path) -> list[Config]:
    """The configs that a selector or an exported tree chooses from."""
    from aks.core.bundle import read_bundle
    from aks.export.selector import check_selector, read_portfolio, read_selector

    if path.is_dir():
        bundle = read_bundle(path)
        bundle.check_op(op.name, op.space.fingerprint)
        return [op.config_type.from_row(row) for row in bundle.tree.configs]
    selector, _ = read_selector(path)
    check_selector(selector, op)
    return list(read_portfolio(selector, op))
