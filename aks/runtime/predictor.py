"""The predictor: evaluates an exported tree. Standard library and ``aks.core`` only.

``tree.json`` is read, checked and turned into one Python function; no file of an artifact folder is
ever run.
"""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aks.core.bundle import Bundle, read_bundle
from aks.core.config import Config
from aks.core.device import DeviceSpec, device_slug, find_device
from aks.core.errors import ArtifactError, InvalidProblemError, UnknownDeviceError, UnknownOpError
from aks.core.python_source import Actions, argument_list, function_lines
from aks.core.tree import VENDOR, Parameter, Tree

if TYPE_CHECKING:
    from aks.ops.op import Op

MAX_MISSED = 256
"""Distinct problems that are remembered for collecting later; more are only counted."""

UNSAFE_LEAF = "unsafe leaf"
ILLEGAL_FAVOURITE = "illegal favourite"


class Choices(NamedTuple):
    """What one tree answers: attributes of a ``Predictor`` that belong together."""

    bundle: Bundle
    configs: tuple[Config, ...]
    select: Callable[..., int]
    predict: Callable[..., Config]


class Predictor:
    """Chooses a config for a problem, in well under a microsecond. Safe to share between threads.

    Attributes
    ----------
    predict : callable
        ``predict(m=16, n=4096, k=4096, ...) -> Config``, one argument for each field of the op's
        problem type, by position or name, with the problem type's defaults. Returns the vendor's
        config outside the training data's support and in leaves that abstain. Raises
        InvalidProblemError for what is no problem at all (m = 0, an unknown dtype).
    select : callable
        The same, as an index into ``configs``, for callers whose axes are plain ints already: their
        types are not checked.
    configs : tuple of Config
        What the tree can answer; ``configs[0]`` is the vendor's routine.
    bundle : Bundle
        The tree, its device and its manifest, as read.
    current : Choices
        All four of one tree. Take it where an index goes with ``configs`` and another thread may ``reload``.
    """

    predict: Callable[..., Config]
    select: Callable[..., int]
    configs: tuple[Config, ...]
    bundle: Bundle
    current: Choices

    def __init__(self, bundle: Bundle, config_type: type[Config] | None = None):
        self._config_type = config_type
        self._lock = threading.Lock()
        self._reasons: dict[str, int] = {}
        self._missed: dict[tuple[Any, ...], int] = {}
        self._sources: list[Callable[[], tuple[list[int], list[tuple[list[int], int]]]]] = []
        self._illegal = [0]  # a list: generated code adds to it without a call
        self._publish(self._compile(bundle))

    @classmethod
    def load(
        cls,
        op: str | Op,
        device: str | DeviceSpec | None = None,
        path: Path | str | None = None,
        version: str | None = None,
        sm_count: int | None = None,
    ) -> Predictor:
        """The predictor for an op on a device.

        Parameters
        ----------
        op
            A name, or an ``Op``: with the latter the tree must be for its config space as it is now, and
            configs are of its own type instead of one made from the tree.
        device
            A name (``h200``, ``NVIDIA H200``) or a ``DeviceSpec``, all of whose facts must then agree. It
            may be left out if path is given.
        path
            The folder with ``manifest.json``; without it, ``<op>/<device>`` is looked for in the folder
            that the environment variable ``AKS_MODELS`` names, then in the models that came with aks.
        version
            Another predictor's ``version``: the first process of a job loads what is there and tells its
            version to the others, which then decide as it does, or do not start. A version that an export
            has replaced is still found; a folder that is being replaced gives the old version or the new
            one, whole.
        sm_count
            SMs of the partition of ``device`` that launches go to (a green context's stream), each of
            which has a tree of its own, ``<op>/h200-64sm``. All of its SMs are the device itself.

        Raises
        ------
        UnknownOpError, UnknownDeviceError
            If nothing was exported for the op, or for it on the device, or the device has not that many
            SMs; says what there is.
        ArtifactError
            If the files are truncated, altered, or for another op, device or config space, or of
            another version than was asked for.
        """
        name = op if isinstance(op, str) else op.name
        if sm_count is not None:
            device = _partition(device, sm_count)
        bundle = read_bundle(Path(path) if path is not None else _find_folder(name, device), version)
        bundle.check_op(name, None if isinstance(op, str) else op.space.fingerprint)
        if device is not None:
            bundle.check_device(device)
        return cls(bundle, None if isinstance(op, str) else op.config_type)

    def newer(self, path: Path | str | None = None, version: str | None = None) -> Choices | None:
        """What an export has put in this predictor's folder, or in ``path``, since; None if it is what is loaded.

        version: as of ``load``.

        Raises
        ------
        ArtifactError
            If the files are damaged, or for another op, device, config space or other parameters. What is loaded
            goes on.
        """
        bundle = read_bundle(Path(path) if path is not None else self.bundle.folder, version)
        if bundle.version == self.version:
            return None
        # Of a predictor that was loaded by the op's name any space will do: its configs are the tree's own.
        bundle.check_op(self.tree.op, self.tree.space_fingerprint if self._config_type else None)
        bundle.check_device(self.bundle.device)
        if [(p.name, p.choices) for p in bundle.tree.parameters] != [(p.name, p.choices) for p in self.tree.parameters]:
            raise ArtifactError(f"{bundle.folder} has a tree of other parameters; load it anew (Predictor.load)")
        return self._compile(bundle)

    def reload(self, path: Path | str | None = None, version: str | None = None) -> bool:
        """Answer by the ``newer`` tree from here on, whole; False if there is none. Counts go on.

        ``predict`` and ``select`` of other threads answer by the old tree or by the new one, never by a mixture. If
        the files are bad it raises as ``newer`` does, and the old tree stays.
        """
        choices = self.newer(path, version)
        if choices is not None:
            self.take(choices)
        return choices is not None

    def take(self, choices: Choices) -> None:
        """Answer by what ``newer`` gave."""
        with self._lock:
            self._publish(choices)

    def _publish(self, choices: Choices) -> None:
        self.current = choices
        self.bundle, self.configs, self.select, self.predict = choices

    @property
    def version(self) -> str:
        """Names the bytes that were loaded: predictors of one version decide alike."""
        return self.bundle.version

    @property
    def tree(self) -> Tree:
        """The tree that is evaluated."""
        return self.bundle.tree

    def counts(self) -> dict[str, int]:
        """How often the answer was not a leaf's favourite, by reason.

        ``outside m`` (or another argument): the first that lies outside the support; ``unsafe leaf``:
        a leaf that abstains; ``illegal favourite``: a successor ran. The last is counted without a
        lock, so threads may lose some.
        """
        self._take()
        with self._lock:
            counts = dict(self._reasons)
        return {**counts, ILLEGAL_FAVOURITE: self._illegal[0]} if self._illegal[0] else counts

    def missed(self) -> list[tuple[dict[str, Any], int]]:
        """Problems that were answered by abstaining, with their counts: what to collect next.

        The first ``MAX_MISSED`` distinct ones, each as field names and values.
        """
        self._take()
        with self._lock:
            missed = list(self._missed.items())
        names = [parameter.name for parameter in self.tree.parameters]
        return [(dict(zip(names, values, strict=True)), count) for values, count in missed]

    def add_source(self, take: Callable[[], tuple[list[int], list[tuple[list[int], int]]]]) -> None:
        """Count what the native dispatcher answers by this tree, too: ``take`` is its ``take_misses``."""
        self._sources.append(take)

    def _take(self) -> None:
        parameters = self.tree.parameters
        names = [*(f"outside {parameter.name}" for parameter in parameters), UNSAFE_LEAF]
        for take in self._sources:
            reasons, problems = take()
            with self._lock:
                for name, count in zip(names, reasons, strict=False):
                    if count:
                        self._reasons[name] = self._reasons.get(name, 0) + count
                self._illegal[0] += sum(reasons[len(names) :])
                for values, count in problems:
                    known = tuple(p.value(value) for p, value in zip(parameters, values, strict=True))
                    self._remember(known, count)

    def _remember(self, values: tuple[Any, ...], count: int) -> None:
        if values in self._missed or len(self._missed) < MAX_MISSED:
            self._missed[values] = self._missed.get(values, 0) + count

    def _compile(self, bundle: Bundle) -> Choices:
        tree = bundle.tree
        config_type = self._config_type or _config_type(tree)
        configs = tuple(config_type.from_row(row) for row in tree.configs)
        arguments = argument_list(tree)
        namespace: dict[str, Any] = {
            "__builtins__": {"gcd": math.gcd, "int": int, "min": min, "max": max},
            "_outside": lambda *values: self._outside(tree, namespace["select"], values),
            "_abstain": self._abstain,
            "_configs": configs,
            "_illegal": self._illegal,
            **{f"_c{index}": config for index, config in enumerate(configs)},
        }
        illegal = "_illegal[0] += 1"
        select = Actions("return {}".format, f"return _outside({arguments})", f"return _abstain({arguments})", illegal)
        predict = Actions(
            "return _c{}".format,
            f"return _configs[_outside({arguments})]",
            f"return _configs[_abstain({arguments})]",
            illegal,
            check_types=True,
        )
        lines = [*function_lines("select", tree, select), *function_lines("predict", tree, predict)]
        # Every formula in these lines passed aks.core.formula.parse and every name is a checked identifier.
        exec(compile("\n".join(lines), f"<tree {tree.op} {tree.device}>", "exec"), namespace)
        return Choices(bundle, configs, namespace["select"], namespace["predict"])

    def _outside(self, tree: Tree, select: Callable[..., int], values: tuple[Any, ...]) -> int:
        reason, checked = "", []
        for parameter, value in zip(tree.parameters, values, strict=True):
            value = _check_value(tree.op, parameter, value)
            checked.append(value)
            known = tree.support[parameter.name]
            if not reason and not (value in known if parameter.choices else known[0] <= value <= known[1]):
                reason = f"outside {parameter.name}"
        if not reason:
            return select(*checked)  # integers of another type, such as numpy's
        return self._count(reason, tuple(checked))

    def _abstain(self, *values: Any) -> int:
        return self._count(UNSAFE_LEAF, values)

    def _count(self, reason: str, values: tuple[Any, ...]) -> int:
        with self._lock:
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
            self._remember(values, 1)
        return VENDOR


def _check_value(op: str, parameter: Parameter, value: Any) -> Any:
    """The value as a plain int or a choice; raises what the op's problem type would."""
    if parameter.choices:
        if value in parameter.choices:
            return parameter.choices[parameter.choices.index(value)]
        wanted = f"one of {parameter.choices}"
    else:
        number = value if type(value) is int else _as_integer(value)
        if 1 <= number < 2**31:
            return number
        wanted = "an integer from 1 to 2147483647"
    raise InvalidProblemError(f"{op} problem has {parameter.name}={value!r}; {parameter.name} must be {wanted}")


def _as_integer(value: Any) -> int:
    """An integer of another type, such as numpy's, as an int; 0 for anything else."""
    try:
        return 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return 0


def _config_type(tree: Tree) -> type[Config]:
    """A config type with the fields that the tree's configs have, for callers without the op."""
    fields = [(name, str if name in tree.config_choices else int) for name in tree.configs[VENDOR]]
    return make_dataclass(
        tree.op.title().replace("_", "") + "Config",
        fields,
        bases=(Config,),
        namespace={"OP": tree.op, "CHOICES": tree.config_choices},
        frozen=True,
        slots=True,
    )


def _model_roots() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    given = os.environ.get("AKS_MODELS")
    # Installed, the models lie inside the package; in a source checkout, next to it.
    return [*([Path(given)] if given else []), package / "models", package.parent / "models"]


def _partition(device: str | DeviceSpec | None, sm_count: int) -> DeviceSpec:
    if device is None:
        raise UnknownDeviceError(f"sm_count={sm_count} is a part of which GPU? Name it: device='h200'")
    return (find_device(device) if isinstance(device, str) else device).partition(sm_count)


def _find_folder(op: str, device: str | DeviceSpec | None) -> Path:
    roots = _model_roots()
    pattern = f"{op}/*/manifest.json" if op.isidentifier() else "no such op"
    found = {path.parent.name: path.parent for root in reversed(roots) for path in root.glob(pattern)}
    if not found:
        ops = sorted({path.parent.parent.name for root in roots for path in root.glob("*/*/manifest.json")})
        raise UnknownOpError(
            f"no exported tree for op {op!r} in {', '.join(map(str, roots))}; there are trees for: "
            f"{', '.join(ops) or 'no op'}; export one (aks export), or name its folder in AKS_MODELS or path"
        )
    slug = device_slug(device if isinstance(device, str) else device.name) if device is not None else None
    if slug in found:
        return found[slug]
    wanted = f"device {slug!r}" if slug else "a device that was not named"
    raise UnknownDeviceError(
        f"no exported {op} tree for {wanted}; there are: {', '.join(sorted(found))}; "
        "to make one for another, measured (aks collect) or not: aks train --device, aks export"
    )
