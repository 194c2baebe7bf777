"""What the tests of collecting share: a small space, a few problems, and a call of ``collect``."""

from __future__ import annotations

from pathlib import Path

from aks.collect.datafile import read_table
from aks.collect.progress import CollectSummary
from aks.collect.runner import collect
from aks.collect.sources import Workload, linear_problem
from aks.collect.store import Store
from aks.core.device import find_device
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import Environment, Record
from aks.ops import OPS

OP = OPS["gemm"]
DEVICE = find_device("h200")
ENVIRONMENT = Environment(driver="580.1", cuda="13.0", cublas="13.1", torch="2.11", triton="3.6", python="3.12")
CONFIGS = [OP.vendor, *(OP.config_type.from_row({"kind": "cublaslt", "algo": algo}) for algo in range(4))]


def workloads(count: int) -> list[Workload]:
    """Problems with m = 1, 2, … ``count``."""
    return [Workload(linear_problem(OP, m, 4096, 4096, "bf16"), ("alpha",)) for m in range(1, count + 1)]


def run(measure: str, out: Path, *, problems: int = 2, **options) -> CollectSummary:
    """``collect`` with a function of ``fakes``."""
    settings = {"configs": CONFIGS, "workers": 0, "quiet": True, "hang_seconds": 60.0} | options
    return collect(
        OP,
        workloads(problems),
        out=out,
        device=DEVICE,
        environment=ENVIRONMENT,
        measure=f"tests.collect.fakes:{measure}",
        **settings,
    )


def stored(path: Path) -> list[Record]:
    """All records of a store."""
    with Store.open(path) as store:
        rows = read_table(path, OP).to_pylist() if len(store) else []
    return [Record.from_row(row, OP) for row in rows]


def race(m: int, *, regime: Regime = Regime.COLD, run_id: str = "run", families: tuple[str, ...] = ("alpha",)):
    """Records of ``CONFIGS`` on one problem."""
    problem = linear_problem(OP, m, 4096, 4096, "bf16")
    return [
        Record(
            measurement=Measurement(problem, config, regime, Status.OK, (10.0, 10.5, 11.0)),
            device=DEVICE,
            environment=ENVIRONMENT,
            space_fingerprint=OP.space.fingerprint,
            families=families,
            run_id=run_id,
            measured_at="2026-01-01T00:00:00+00:00",
            sm_clock_mhz=1980,
            num_launches=16,
        )
        for config in CONFIGS
    ]
