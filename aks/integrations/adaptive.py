"""``@aks.adaptive``: a user's own Triton kernel, whose config a tree chooses. Imports torch and triton."""

from __future__ import annotations

import operator
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aks.core.device import current_device, device_slug
from aks.core.errors import AksError, InvalidProblemError, KernelError, UnknownDeviceError
from aks.integrations.launches import Launches
from aks.ops.adaptive.facts import read_kernel
from aks.ops.adaptive.launch import dtype_name
from aks.ops.adaptive.op import AdaptiveOp
from aks.ops.adaptive.spec import Description, make_op
from aks.runtime.predictor import MAX_MISSED, Predictor

_LARGEST = 2**31 - 1


def adaptive(
    *,
    space: Any,
    key: Sequence[str],
    bytes_moved: str,
    outputs: Sequence[str] = (),
    default: Any = None,
    rules: Mapping[str, str] | None = None,
    features: Mapping[str, str] | None = None,
    flops: str = "0",
    dtypes: Sequence[str] = ("bf16", "fp16", "fp32"),
    name: str = "",
    models: str | Path | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    revision: int = 1,
) -> Callable[[Any], AdaptiveKernel]:
    """Let a tree choose the config of a ``@triton.jit`` kernel, where ``@triton.autotune`` would tune while serving.

    What a problem is: the values of ``key`` and the dtypes of the tensors. Collect, train and export as for
    the ops of aks, with ``--op module:kernel``. Formulas are those of ``aks.core.formula``, over the key, ``dtype``,
    constants and options of configs, facts of the GPU (``sm_count``, ...) and ``element_bytes`` (of the first tensor).

    Parameters
    ----------
    space
        A list of ``triton.Config``, or values by name, of which every combination is a config:
        ``{"BLOCK": (512, 1024), "num_warps": (4, 8)}``. Constants are integers, True or False, or words.
    key
        Names of the kernel's integer arguments that the choice depends on, each at least 1. The first is what
        varies from call to call (rows, tokens), if one does: held-out scores keep apart what differs in the others.
    bytes_moved
        Formula of the bytes that must cross DRAM once, over the key. Latencies are modelled as multiples of
        the time that takes, and memory of 2.5 times L2 is rotated when measuring cold.
    outputs
        Names of the tensors that the kernel writes and does not read. Needed to measure.
    default
        The config of the space that runs where no tree says otherwise, and that speed-ups are over. It must be
        right for every problem. By default the first one.
    rules
        Formulas by their reason: where one is false, a config is neither measured nor chosen. The default is exempt.
    features
        More formulas, by name, for models and trees.
    flops
        Formula of the arithmetic operations, for kernels that arithmetic bounds.
    dtypes
        Names of dtypes that the tensors may all have; where they differ those of all, joined: ``bf16_fp32``.
        A tree is used for dtypes that it was measured with, no others.
    name
        Of the op, hence of folders and files; by default the kernel's.
    models
        The folder with trees, ``<models>/<name>/<device>``; by default that of the environment variable AKS_MODELS.
    rtol, atol
        Tolerances of the check when measuring; by default those of ``torch.testing.assert_close``.
    revision
        Raise it when the kernel changes what a config means or costs: measurements and trees of old are then refused.

    Raises
    ------
    KernelError
        If what is said does not fit the kernel, or contradicts itself.
    FormulaError
        If a formula is not one.
    """
    said = Description(space, key, bytes_moved, flops, default, rules or {}, features or {}, dtypes, revision)

    def decorate(fn: Any) -> AdaptiveKernel:
        return AdaptiveKernel(fn, said, name, tuple(outputs), models, rtol, atol)

    return decorate


class AdaptiveKernel:
    """A Triton kernel, launched as before: ``kernel[grid](...)``, without what its configs set.

    Attributes
    ----------
    op : AdaptiveOp
        The op that ``aks.collect``, ``aks.train`` and ``aks.export`` take.
    fn : JITFunction
        The kernel as it was.
    """

    def __init__(
        self,
        fn: Any,
        said: Description,
        name: str,
        outputs: tuple[str, ...],
        models: str | Path | None,
        rtol: float | None,
        atol: float | None,
    ) -> None:
        self.fn, self.outputs, self.models, self.rtol, self.atol = fn, outputs, models, rtol, atol
        self.make_example: Callable[..., Any] | None = None
        self.expected: Callable[[dict[str, Any]], Mapping[str, Tensor]] | None = None
        facts = read_kernel(fn, name)
        self.op: AdaptiveOp = make_op(self, facts, said)
        if unknown := [output for output in outputs if output not in facts.parameters]:
            raise KernelError(
                f"{facts.name} has outputs {', '.join(unknown)}; wanted some of {', '.join(facts.parameters)}"
            )
        self.__name__, self.__doc__ = facts.name, facts.doc
        self._knobs = frozenset(self.op.vendor.to_row())
        self._names = tuple(name for name in facts.parameters if name not in self._knobs | facts.derived)
        self._defaults = {name: value for name, value in facts.defaults.items() if name in self._names}
        self._key = tuple(self._names.index(axis) for axis in self.op.problem_type.AXES)
        self._by_position = facts.parameters[: len(self._names)] == self._names
        self._launches = Launches(self.op, fn, facts.parameters, self._names, facts.constants)
        self._predictors: dict[int, Predictor | None] = {}
        self._lock = threading.Lock()
        self._unasked: Counter[str] = Counter()
        self._missed: dict[tuple[Any, ...], int] = {}
        self._dtypes: dict[tuple[torch.dtype, ...], str] = {}

    def example(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate what makes a call to measure: ``make(*, <key>, dtype, device) -> (grid, {name: argument})``.

        dtype is the first tensor's ``torch.dtype``. Every call must make tensors of its own.
        """
        self.make_example = make
        return make

    def reference(self, expected: Callable[[dict[str, Any]], Mapping[str, Tensor]]) -> Callable[..., Any]:
        """Decorate what gives the right outputs, by name, of the example's arguments (a dictionary).

        Without one, all configs are checked against the default.
        """
        self.expected = expected
        return expected

    def use(self, predictor: Predictor, index: int = 0) -> None:
        """Choose by ``predictor`` on CUDA device ``index`` (-1: the CPU, where Triton's interpreter runs).

        Raises
        ------
        KernelError
            If it was not loaded for this op: ``Predictor.load(kernel.op, ...)``.
        """
        if not isinstance(predictor.configs[0], self.op.config_type):
            raise KernelError(
                f"{self.op.name} was given a predictor of op {predictor.tree.op!r} not loaded for its own; write "
                f"Predictor.load({self.op.name}.op, path=...)"
            )
        self._predictors[index] = predictor

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """What launches with ``grid``: up to three numbers, or a function of all arguments by name that gives them."""
        return partial(self._run, grid)

    def prepare(self, *args: Any, **kwargs: Any) -> int:
        """Compile and load every config that may run with arguments like these; returns how many there are.

        Triton compiles anew for integers that are 1, or multiples of 16 where others were not, and for addresses
        likewise: prepare once with each kind that will come.
        """
        arguments = self._arguments(args, kwargs)
        index, dtype = self._place(arguments)
        predictor = self._predictor(index)
        configs = [self.op.vendor]
        if predictor and dtype in self.op.problem_type.CHOICES["dtype"]:
            problem = self.op.problem_type.from_row(self._row(arguments, dtype))
            among: Any = predictor.configs  # of the op's own type, as the predictor was loaded for it
            configs = self.op.space.legal(problem, predictor.bundle.device, among)
        for config in configs:
            self._launches.prepare(index, config, arguments)
        return len(configs)

    def counts(self) -> dict[str, int]:
        """How often a tree's favourite did not run, by reason: ``Predictor.counts``, and where no tree was asked."""
        with self._lock:
            total = Counter(self._unasked)
        for predictor in self._served():
            total.update(predictor.counts())
        return dict(total)

    def missed(self) -> list[tuple[dict[str, Any], int]]:
        """Problems that no tree knew, with their counts: what to collect next. As ``Predictor.missed``."""
        names = (*self.op.problem_type.AXES, "dtype")
        with self._lock:
            missed = list(self._missed.items())
        problems = [(dict(zip(names, values, strict=True)), count) for values, count in missed]
        return problems + [entry for predictor in self._served() for entry in predictor.missed()]

    def tensor_dtypes(self, arguments: Mapping[str, Any]) -> tuple[torch.dtype, ...]:
        """Of the tensors among arguments by name, in the kernel's order."""
        return tuple(arguments[name].dtype for name in self._names if isinstance(arguments.get(name), Tensor))

    def _served(self) -> list[Predictor]:
        return [predictor for predictor in self._predictors.values() if predictor is not None]

    def _run(self, grid: Any, *args: Any, **kwargs: Any) -> None:
        arguments = args
        if kwargs or len(args) != len(self._names) or not self._by_position:
            arguments = self._arguments(args, kwargs)
        index, dtype = self._place(arguments)
        self._launches.launch(index, self._choose(index, self._values(arguments), dtype), grid, arguments)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments but what configs set, in the kernel's order."""
        parameters = self._launches.parameters
        given = dict(zip(parameters, args, strict=False))
        fault = ""
        if len(args) > len(parameters) or given.keys() & kwargs.keys():
            fault = "it was given an argument twice, or too many"
        elif wrong := [name for name in (*given, *kwargs) if name in self._knobs]:
            fault = f"it was given {', '.join(wrong)}, which its configs set; pass what comes after them by name"
        elif wrong := [name for name in kwargs if name not in parameters]:
            fault = f"it was given {', '.join(wrong)}"
        given = {**self._defaults, **given, **kwargs}
        if not fault and (wrong := [name for name in self._names if name not in given]):
            fault = f"it was not given {', '.join(wrong)}"
        if fault:
            raise KernelError(f"{self.op.name} takes {', '.join(self._names)}; {fault}")
        return tuple([given[name] for name in self._names])

    def _row(self, arguments: tuple[Any, ...], dtype: str) -> dict[str, Any]:
        return dict(zip(self.op.problem_type.AXES, self._values(arguments), strict=True)) | {"dtype": dtype}

    def _values(self, arguments: tuple[Any, ...]) -> list[Any]:
        return [arguments[place] for place in self._key]

    def _place(self, arguments: tuple[Any, ...]) -> tuple[int, str]:
        """The CUDA device of a call's tensors (-1: the CPU), and the name of their dtypes."""
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        if not tensors:
            raise KernelError(f"{self.op.name} was launched without a tensor; which GPU is meant, theirs says")
        dtypes = tuple([tensor.dtype for tensor in tensors])
        name = self._dtypes.get(dtypes)
        if name is None:
            name = self._dtypes[dtypes] = dtype_name(dtypes)
        return tensors[0].get_device(), name

    def _choose(self, index: int, values: list[Any], dtype: str) -> Any:
        try:
            predictor = self._predictors[index]
        except KeyError:
            predictor = self._predictor(index)
        if predictor is None:
            return self._unknown("no tree", values, dtype)
        try:
            return predictor.predict(*values, dtype)
        except InvalidProblemError:
            return self._unknown("no problem", values, dtype)

    def _unknown(self, reason: str, values: list[Any], dtype: str) -> Any:
        """The default, for what no tree can be asked; raises if the key is no integers."""
        numbers = []
        for name, value in zip(self.op.problem_type.AXES, values, strict=True):
            if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, Tensor):
                raise InvalidProblemError(f"{self.op.name} was launched with {name}={value!r}; wanted an integer")
            numbers.append(operator.index(value))
        known = dtype in self.op.problem_type.CHOICES["dtype"]
        with self._lock:
            self._unasked[reason if known else f"dtype {dtype}"] += 1
            problem = (*numbers, dtype)
            # An empty tensor, say, is nothing to collect.
            collectable = known and all(1 <= number <= _LARGEST for number in numbers)
            if collectable and (problem in self._missed or len(self._missed) < MAX_MISSED):
                self._missed[problem] = self._missed.get(problem, 0) + 1
        return self.op.vendor

    def _predictor(self, index: int) -> Predictor | None:
        """The predictor of a device; None, with a warning once, if there is no tree for it."""
        with self._lock:
            if index not in self._predictors:
                self._predictors[index] = self._load(index)
            return self._predictors[index]

    def _load(self, index: int) -> Predictor | None:
        name = "the CPU"
        try:
            if index < 0:
                raise UnknownDeviceError("trees are for GPUs")
            device = current_device(index)
            name = device.name
            path = Path(self.models, self.op.name, device_slug(name)) if self.models else None
            return Predictor.load(self.op, device, path)
        except AksError as error:
            config = self.op.vendor.key()
            warnings.warn(f"{self.op.name} runs its default config ({config}) on {name}: {error}", stacklevel=5)
            return None
