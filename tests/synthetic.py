"""A made-up GPU: records from a plausible cost formula, in the schema of the real ones.

For tests of everything after measuring. The formula has what makes real data hard: waves over the
SMs, split-K overhead, a vendor call that is good at large m, and noise; it is no model of a GPU.
"""

from __future__ import annotations

import math
import random
from typing import Any

from aks.core.device import find_device
from aks.core.measurement import Measurement, Regime, Status
from aks.core.record import Environment, Record
from aks.ops import OPS
from aks.ops.op import Op

FAMILIES = {
    "alpha": [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336)],
    "beta": [(2048, 2048), (2560, 2048), (11008, 2048), (2048, 5504)],
    "gamma": [(5120, 2880), (2880, 4096), (1024, 8192), (201088, 2880)],
    "delta": [(3584, 3584), (4608, 3584), (18944, 3584), (3584, 18944)],
    "sample": [(333, 777), (1536, 9000), (12345, 640), (8192, 8192)],
}
M_VALUES = (1, 2, 3, 4, 8, 13, 16, 32, 48, 64, 100, 128, 256, 512, 1024, 4096)
ENVIRONMENT = Environment(driver="0", cuda="0", cublas="0", torch="0", triton="0", python="0")


def latency_us(problem, config: Any, device) -> float:
    """Made-up latency in microseconds."""
    m, n, k = problem.m, problem.n, problem.k
    floor = max((m * n + n * k + m * k) * 2 / (device.dram_gb_s * 1e3), 2 * m * n * k / (device.tflops_16bit * 1e6))
    if config.kind == "torch_mm":
        return 3.0 + floor * (1.35 if m < 17 else 1.1)
    if config.kind == "cublaslt":
        return 2.9 + floor * (1.1 + 0.07 * ((config.algo * 7 + n // 512 + m // 64) % 8))
    block_m = max(config.block_m, m if config.kind == "gemv" else 1)
    work = math.ceil(m / block_m) * math.ceil(n / config.block_n) * max(1, config.split_k)
    efficiency = work / (math.ceil(work / device.sm_count) * device.sm_count)
    waste = math.ceil(m / block_m) * block_m / m
    compute = 2 * m * n * k / (device.tflops_16bit * 1e6) * waste * 8192 / min(8192, block_m * config.block_n)
    return 2.0 + 0.4 * config.split_k - 0.4 * (config.pdl > 0) + max(floor / min(1, 0.3 + efficiency), compute)


def synthetic_records(seed: int = 0, *, device: str = "h200", configs: int = 40, op: Op = OPS["gemm"]) -> list[Record]:
    """Records of every family x m over ``configs`` configs of the space (and the vendor), with 1 % noise."""
    rng = random.Random(seed)
    spec = find_device(device)
    others = [config for config in op.space.configs if config != op.vendor]
    chosen = [op.vendor, *random.Random(0).sample(others, min(configs, len(others)))]
    records = []
    for family, shapes in FAMILIES.items():
        for n, k in shapes:
            for m in M_VALUES:
                problem = op.problem_type.from_row({"m": m, "n": n, "k": k, "static_weights": True})
                legal = set(op.space.legal(problem, spec))
                for config in chosen:
                    if config in legal:
                        records.append(_record(problem, config, family, spec, op, rng))
    return records


def _record(problem, config, family, spec, op, rng) -> Record:
    base = latency_us(problem, config, spec)
    samples = tuple(base * (1 + rng.gauss(0, 0.01)) for _ in range(5))
    return Record(
        measurement=Measurement(problem, config, Regime.COLD, Status.OK, samples),
        device=spec,
        environment=ENVIRONMENT,
        space_fingerprint=op.space.fingerprint,
        families=(family,),
        run_id="synthetic",
        measured_at="2026-01-01T00:00:00+00:00",
        sm_clock_mhz=1980,
        num_launches=16,
    )
