"""NVIDIA's analytical picks (nvMatmulHeuristics, Triton target) as choosers, where the package is installed.

The package needs no GPU: it holds presets of known ones. It ranks tiles for a plain Triton kernel
and knows nothing of our other knobs, so a pick of it stands for all measured configs of the space
with its tile and split of k. It is read in two ways: to the letter (its warps, the nearest number of
stages, every other knob off), and most favourably (the fastest of those configs: an upper bound).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aks.core.device import DeviceSpec, device_slug
from aks.core.problem import Problem
from aks.evaluate.regret import Chooser
from aks.ops.op import Op
from aks.train.dataset import TrainingSet

NAME = "nvMatmulHeuristics"
PICKS = 16
"""How many of its ranked kernels are tried before it counts as having no pick in the space."""

_TILE_FIELDS = ("block_m", "block_n", "block_k", "split_k")
_PRECISION = {"bf16": "TST", "fp16": "HSH"}
"""Letters of inputs, accumulator, output; T is bfloat16, H half, S single (nvMatmulHeuristics.h)."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One of its ranked kernels, in our words."""

    tile: tuple[int, int, int, int]
    num_warps: int
    num_stages: int


def nvmatmul_choosers(op: Op, devices: Sequence[DeviceSpec]) -> tuple[tuple[Chooser, ...], str]:
    """The choosers, to the letter and most favourable; if there are none, why not in one sentence."""
    axes_and_tile = {*op.problem_type.AXES} >= {"m", "n", "k"} and all(
        hasattr(op.vendor, field) for field in (*_TILE_FIELDS, "num_warps", "num_stages")
    )
    if not axes_and_tile:
        return (), f"{NAME} knows matrix products only"
    try:
        package = importlib.import_module("nvMatmulHeuristics")
    except ImportError:
        return (), f"{NAME} is not installed (pip install nvidia-matmul-heuristics)"
    except OSError as error:
        return (), f"{NAME} does not load here: {error}"
    presets = {device: _preset(package, device) for device in devices}
    if missing := sorted(device.name for device, preset in presets.items() if preset is None):
        return (), f"{NAME} has no preset for {', '.join(missing)}"
    interfaces = {device: _interface(package, preset) for device, preset in presets.items()}

    @lru_cache(maxsize=4)  # both readings are asked for the same problems
    def candidates(problems: tuple[Problem, ...], on: tuple[DeviceSpec, ...]) -> list[list[Pick]]:
        return [_picks(package, interfaces[device], problem) for problem, device in zip(problems, on, strict=True)]

    def to_the_letter(data: TrainingSet) -> NDArray[np.intp]:
        return _rank(data, candidates(data.problems, data.devices), _nearest)

    def most_favourable(data: TrainingSet) -> NDArray[np.intp]:
        return _rank(data, candidates(data.problems, data.devices), _fastest)

    choosers = (
        Chooser(NAME, to_the_letter, note="its first tile and split of k in our space, as it is"),
        Chooser(f"{NAME}, at best", most_favourable, note="the fastest config with that tile and split of k"),
    )
    return choosers, ""


def _preset(package: ModuleType, device: DeviceSpec) -> Any:
    """The package's name of the GPU: the first preset of the model, or None."""
    model = device_slug(device.name).split("-")[0].upper()
    gpus = package.NvMatmulHeuristicsNvidiaGpu
    return next((gpu for gpu in gpus if gpu.name.split("_")[0] == model), None)


def _rank(
    data: TrainingSet, picks: list[list[Pick]], read: Callable[[TrainingSet, int, NDArray[np.intp], Pick], int]
) -> NDArray[np.intp]:
    """[P, 1]: column of the pick, -1 where none of its first ``PICKS`` is in the space and measured."""
    columns_of: dict[tuple[int, ...], list[int]] = {}
    for column, config in enumerate(data.configs):
        block_m, block_n, block_k, split_k = (getattr(config, field) for field in _TILE_FIELDS)
        columns_of.setdefault((block_m, block_n, block_k, max(1, split_k)), []).append(column)
    ranking = np.full((len(data), 1), -1, dtype=np.intp)
    for row, ranked in enumerate(picks):
        for pick in ranked:
            columns = np.array(columns_of.get(pick.tile, []), dtype=np.intp)
            columns = columns[np.isfinite(data.latency_us[row, columns])]
            if len(columns):
                ranking[row] = read(data, row, columns, pick)
                break
    return ranking


def _nearest(data: TrainingSet, row: int, columns: NDArray[np.intp], pick: Pick) -> int:
    """The config of its warps and the nearest stages; of several, the one with the most knobs off."""

    def distance(column: int) -> tuple[int, ...]:
        knobs = data.configs[column].to_row()
        warps, stages = abs(knobs["num_warps"] - pick.num_warps), abs(knobs["num_stages"] - pick.num_stages)
        return warps, stages, sum(value != 0 for value in knobs.values() if isinstance(value, int)), column

    return min(columns.tolist(), key=distance)


def _fastest(data: TrainingSet, row: int, columns: NDArray[np.intp], pick: Pick) -> int:
    return int(columns[data.latency_us[row, columns].argmin()])


def _interface(package: ModuleType, preset: Any) -> Any:
    return package.NvMatmulHeuristicsInterfaceEx(
        backend=package.NvMatmulHeuristicsTarget.TRITON,
        flags=package.NvMatmulHeuristicsFlags.PERF_MODEL_BASED_AUTO_TUNING,
        gpu=preset,
    )


def _picks(package: ModuleType, interface: Any, problem: Problem) -> list[Pick]:
    precision = _PRECISION.get(getattr(problem, "dtype", ""))
    if precision is None:
        return []
    layouts = package.NvMatmulHeuristicsMatmulLayout
    # Rows of x are contiguous; w is given transposed ([N, K]) unless the problem says [K, N].
    layout = layouts.NN_ROW_MAJOR if getattr(problem, "w_layout", "nk") == "kn" else layouts.NT_ROW_MAJOR
    m, n, k = (getattr(problem, axis) for axis in ("m", "n", "k"))
    found = interface.get(interface.makeNvMatmulHeuristicsProblem(m, n, k, layout), PICKS, precision)
    return [_read(entry["kernel"]) for entry in found]


def _read(kernel: Any) -> Pick:
    warps = (kernel.cta_tile_m // kernel.warp_tile_m) * (kernel.cta_tile_n // kernel.warp_tile_n)
    tile = (kernel.cta_tile_m, kernel.cta_tile_n, kernel.cta_tile_k, max(1, kernel.split_k))
    return Pick(tile, warps, kernel.stages)
