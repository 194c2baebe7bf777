"""What an op is: its problem and config types, its space, its features, and where its kernels live."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aks.core import formula
from aks.core.config import Config, ConfigSpace
from aks.core.device import DeviceSpec
from aks.core.features import Feature
from aks.core.measurement import Regime
from aks.core.problem import Problem

if TYPE_CHECKING:
    from aks.ops.launch_spec import LaunchSpec


@dataclass(frozen=True, eq=False)
class Op:
    """One line of the registry.

    ``features`` are over problem and device: what models read. ``tree_features`` names those that a
    tree may split on: each is evaluated anew at every call. A tree for a part of a GPU may split on
    ``partition_tree_features`` too: there the vendor's routines, which plan for the whole, leave waves
    half filled in many more places. ``config_features`` are over the config too: what it makes of the
    problem (programs, waves, steps), for models of its latency. ``flops`` and ``bytes_moved`` are
    formulas over a problem: arithmetic operations, and the bytes that must cross DRAM once (inputs read,
    output written); ``weight_bytes`` those of the weights, which timing rotates. ``analytic_ns`` is over
    problem, config and device: what a config takes by its facts alone, in whole tiles and waves.
    ``vendor`` is the baseline config: what a user gets without us, legal for every problem. ``spread``:
    attributes that the problems of a workload have in turns, where not all are alike. ``rate``: how many times
    ``tflops_16bit`` the tensor cores do of its dtypes, dense.
    """

    name: str
    problem_type: type[Problem]
    config_type: type[Config]
    space: ConfigSpace
    features: tuple[Feature, ...]
    tree_features: tuple[str, ...]
    config_features: tuple[Feature, ...]
    vendor: Config
    flops: str
    bytes_moved: str
    weight_bytes: str
    analytic_ns: str
    partition_tree_features: tuple[str, ...] = ()
    spread: tuple[Mapping[str, Any], ...] = ({},)
    rate: int = 1

    @property
    def launch(self) -> ModuleType:
        """``aks.ops.<name>.launch``: ``VARIANTS``, ``compile_job``, ``bind``. Imports torch and triton."""
        return importlib.import_module(f"aks.ops.{self.name}.launch")

    @property
    def launch_spec(self) -> LaunchSpec:
        """``aks.ops.<name>.launch_spec.LAUNCH_SPEC``: kernel variants, grids and arguments. Standard library only."""
        return importlib.import_module(f"aks.ops.{self.name}.launch_spec").LAUNCH_SPEC

    @property
    def reference(self) -> ModuleType:
        """``aks.ops.<name>.reference``: ``make_inputs``, ``reference`` and ``check``. Imports torch.

        Where configs other than the vendor's have no kernel, also ``ROUTINES``: what makes their calls, by kind.
        """
        return importlib.import_module(f"aks.ops.{self.name}.reference")

    @property
    def call(self) -> ModuleType:
        """``aks.ops.<name>.call``: ``call_for``, of ops that the native dispatcher launches. Imports torch."""
        return importlib.import_module(f"aks.ops.{self.name}.call")

    @property
    def compiler(self) -> str:
        """Module with ``compile_jobs`` and ``compile_job``, for processes that compile ahead; empty: there is none."""
        return f"aks.ops.{self.name}.launch"

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Regimes that it can be measured in."""
        return tuple(Regime)

    def limit_us(self, problem: Problem, device: DeviceSpec) -> float:
        """Roofline in microseconds: max(bytes / bandwidth, operations / compute rate) of the datasheet."""
        variables = problem.variables()
        bytes_moved = formula.compile_python(self.bytes_moved)(variables)
        flops = formula.compile_python(self.flops)(variables)
        return max(bytes_moved / (device.dram_gb_s * 1e3), flops / (self.rate * device.tflops_16bit * 1e6))
