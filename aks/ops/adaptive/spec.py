"""From what a user says of a kernel to an op: problem and config types, space, features. Standard library only."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import combinations
from typing import Any

from aks.core import formula
from aks.core.config import Config, ConfigSpace, Rule
from aks.core.device import DeviceSpec
from aks.core.errors import KernelError
from aks.core.features import Feature
from aks.core.problem import Problem
from aks.core.record import Environment, Record
from aks.ops.adaptive.facts import KernelFacts
from aks.ops.adaptive.op import AdaptiveOp, ByLocator
from aks.ops.adaptive.space import OPTIONS, read_configs, same_config

ELEMENT_BYTES = {
    **dict.fromkeys(("fp64", "i64"), 8),
    **dict.fromkeys(("fp32", "i32"), 4),
    **dict.fromkeys(("bf16", "fp16", "i16"), 2),
    **dict.fromkeys(("fp8e4nv", "fp8e5", "i8", "u8", "i1"), 1),
}
"""Bytes of an element, by Triton's names of types: those of tensors that a kernel may be given."""

JOINED = "_"
"""Between the types of a call's tensors, where they are not all the same: ``bf16_fp32_bf16``."""

_RESERVED = {
    *(
        "op",
        "families",
        "configs",
        "count",
        "regime",
        "status",
        "latency_us",
        "samples_us",
        "detail",
        "device",
        "dtype",
    ),
    *(entry.name for kind in (DeviceSpec, Environment, Record) for entry in fields(kind)),
    *(name for kind in (Problem, Config) for name in dir(kind)),
}
"""Columns that every file of measurements has, facts of devices, which formulas read, and what types have."""
_C_KEYWORDS = re.compile(
    "auto|case|char|const|default|do|double|enum|extern|float|goto|inline|int|long|register|restrict|short|signed|sizeof|"
    "static|struct|switch|typedef|union|unsigned|void|volatile"
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a user says of a kernel; as the arguments of ``aks.adaptive``, which explains them."""

    space: Any
    key: Sequence[str]
    bytes_moved: str
    flops: str = "0"
    default: Any = None
    rules: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    dtypes: Sequence[str] = ("bf16", "fp16", "fp32")
    revision: int = 1


def make_op(kernel: Any, facts: KernelFacts, said: Description) -> AdaptiveOp:
    """The op of a user's kernel; ``kernel`` is for ``aks.ops.adaptive.launch``.

    Raises
    ------
    KernelError
        If what is said does not fit the kernel, or contradicts itself.
    FormulaError
        If a formula is not one.
    """
    rows, choices, switches = read_configs(facts, said.space)
    knobs = tuple(rows[0])
    axes = _axes(facts, said.key, knobs)
    dtypes = _dtypes(facts, said.dtypes)
    types = _Types(facts, axes, dtypes, choices)
    config_type = types.config_type(knobs)
    configs = tuple(dict.fromkeys(config_type.from_row(row) for row in rows))
    default = same_config(facts, said.default, rows, configs)
    _check_names(facts, axes, knobs, choices)
    reads = _Reader(axes, knobs, choices, dtypes)
    bytes_moved, flops = reads("bytes_moved", said.bytes_moved, axes), reads("flops", said.flops, axes)
    own = {name: reads(name, text) for name, text in said.features.items()}
    of_config = {name for name, text in own.items() if not formula.names(text).isdisjoint({*knobs, *reads.named})}
    features, config_features = _problem_features(axes, bytes_moved), _config_features(axes, knobs, choices, configs)
    if known := {feature.name for feature in (*features, *config_features)} & own.keys():
        raise KernelError(f"{facts.name} has features {', '.join(sorted(known))} anyway; rename yours")
    return AdaptiveOp(
        name=facts.name,
        problem_type=types.problem_type(),
        config_type=config_type,
        space=ConfigSpace(facts.name, configs, _rules(said.rules, reads, default), said.revision),
        features=(*features, *(Feature(name, text) for name, text in own.items() if name not in of_config)),
        tree_features=(
            *(axis for axis in axes),
            "dtype",
            *(feature.name for feature in features if "_times_" in feature.name),
            *(name for name in own if name not in of_config),
        ),
        config_features=(
            *config_features,
            *(Feature(name, own[name]) for name in own if name in of_config),
        ),
        vendor=default,
        flops=flops,
        bytes_moved=bytes_moved,
        weight_bytes=bytes_moved,
        analytic_ns=f"max(1, ({bytes_moved}) // dram_gb_s)",
        kernel=kernel,
        locator=facts.locator,
        switches=switches,
    )


def _axes(facts: KernelFacts, key: Sequence[str], knobs: Sequence[str]) -> tuple[str, ...]:
    if isinstance(key, str) or not key or len(set(key)) < len(key):
        raise KernelError(f"{facts.name} has key={key!r}; name integer arguments of it, each once: ('rows', 'columns')")
    for name in key:
        if name not in facts.parameters:
            raise KernelError(
                f"{facts.name} has {name!r} in its key, which is none of its arguments: {', '.join(facts.parameters)}"
            )
        if name in knobs or name in facts.derived:
            raise KernelError(
                f"{facts.name} has {name!r} in its key, but its configs or heuristics set it; leave it out"
            )
    return tuple(key)


def _check_names(
    facts: KernelFacts, axes: Sequence[str], knobs: Sequence[str], choices: Mapping[str, tuple[str, ...]]
) -> None:
    if not (facts.name.isidentifier() and facts.name.isascii()):
        raise KernelError(f"the op would be named {facts.name!r}; wanted letters, digits and underscores")
    for name in (*axes, *knobs):
        foreign = name in _RESERVED or name in formula.FUNCTIONS or _C_KEYWORDS.fullmatch(name)
        if foreign or name.startswith("_") or not name.isascii() or keyword.iskeyword(name):
            raise KernelError(
                f"{facts.name} has {name!r} in its key or configs, which measurements, formulas or C have for "
                "something else; rename that argument"
            )
    words = [word.upper() for values in choices.values() for word in values]
    if twice := sorted(word for word in set(words) if words.count(word) > 1 or word in (*axes, *knobs)):
        raise KernelError(
            f"{facts.name} has configs with the word {twice[0].lower()!r}, which formulas read as {twice[0]}, and "
            "that is something else too; rename it"
        )


def _dtypes(facts: KernelFacts, dtypes: Sequence[str]) -> tuple[str, ...]:
    words = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    if not words or not all(set(word.split(JOINED)) <= set(ELEMENT_BYTES) for word in words):
        raise KernelError(
            f"{facts.name} has dtypes={dtypes!r}; wanted names out of {', '.join(ELEMENT_BYTES)}, or where tensors "
            f"differ those of all of them in order, joined by {JOINED!r}: 'bf16{JOINED}fp32{JOINED}bf16'"
        )
    return tuple(dict.fromkeys(words))


class _Types:
    """Makes the problem and config types of a kernel."""

    def __init__(
        self, facts: KernelFacts, axes: tuple[str, ...], dtypes: tuple[str, ...], choices: dict[str, tuple[str, ...]]
    ) -> None:
        self.facts, self.axes, self.dtypes, self.choices = facts, axes, dtypes, choices

    def problem_type(self) -> type[Problem]:
        """Axes are the key; the one attribute is dtype, that of the call's tensors."""
        entries = [*((axis, int) for axis in self.axes), ("dtype", str, field(default=self.dtypes[0]))]
        return self._make("Problem", entries, Problem, {"AXES": self.axes, "CHOICES": {"dtype": self.dtypes}})

    def config_type(self, knobs: Sequence[str]) -> type[Config]:
        """A field for each constant that configs set, then the compiler's options."""
        entries = [(knob, str if knob in self.choices else int) for knob in knobs]
        return self._make("Config", entries, Config, {"CHOICES": self.choices})

    def _make(self, kind: str, entries: Iterable[Any], base: type, namespace: dict[str, Any]) -> Any:
        facts = self.facts
        places = {"OP": facts.name, "_LOCATOR": facts.locator, "_KIND": f"{kind.lower()}_type"}
        return make_dataclass(
            f"{facts.name.title().replace('_', '')}{kind}",
            entries,
            bases=(ByLocator, base),
            namespace={**namespace, **places},
            frozen=True,
            slots=True,
        )


class _Reader:
    """Reads users' formulas: names must be known, and ``element_bytes`` is written out."""

    def __init__(
        self,
        axes: tuple[str, ...],
        knobs: tuple[str, ...],
        choices: dict[str, tuple[str, ...]],
        dtypes: tuple[str, ...],
    ) -> None:
        device = tuple(entry.name for entry in fields(DeviceSpec) if entry.name != "name")
        self.named = tuple(value.upper() for values in choices.values() for value in values)
        self.known = (*axes, "dtype", *knobs, *self.named, *device)
        sizes = [ELEMENT_BYTES[dtype.split(JOINED)[0]] for dtype in dtypes]
        terms = [f"{size} * (dtype == {index})" for index, size in enumerate(sizes)]
        self.element_bytes = str(sizes[0]) if len(set(sizes)) == 1 else f"({' + '.join(terms)})"

    def __call__(self, what: str, text: str, axes: Sequence[str] = ()) -> str:
        """The formula; of the problem alone if ``axes`` are given."""
        if not isinstance(text, str):
            raise KernelError(
                f"{what!r} is {text!r}; wanted a formula as a text, which trees and C read too: 'BLOCK <= 2 * columns'"
            )
        known = (*axes, "dtype") if axes else self.known
        result = re.sub(r"\belement_bytes\b", self.element_bytes, text)
        unknown = sorted(formula.names(result) - set(known))
        if unknown:
            raise KernelError(
                f"formula {text!r} of {what!r} reads {', '.join(unknown)}; allowed: element_bytes, {', '.join(known)}"
            )
        return result


def _rules(rules: Mapping[str, str], reads: _Reader, default: Config) -> tuple[Rule, ...]:
    """Rules that the default is exempt from: something must run where they forbid all else."""
    if not isinstance(rules, Mapping):
        raise KernelError(
            f"rules are {rules!r}; wanted a mapping from the reason to a formula: "
            "{'a row fits a program': 'BLOCK >= columns'}. A Python function cannot go into a tree"
        )
    is_default = " and ".join(f"{name} == {value}" for name, value in _own_variables(default).items())
    return tuple(Rule(name, f"({reads(name, text)}) or ({is_default})") for name, text in rules.items())


def _own_variables(config: Config) -> dict[str, int]:
    variables = config.variables()
    return {name: variables[name] for name in config.to_row()}


def _problem_features(axes: Sequence[str], bytes_moved: str) -> tuple[Feature, ...]:
    groups = [*combinations(axes, 2), *([tuple(axes)] if len(axes) > 2 else [])]
    return (
        *(Feature(axis, axis) for axis in axes),
        Feature("dtype", "dtype", "place in the op's dtypes"),
        *(Feature("_times_".join(group), " * ".join(group)) for group in groups),
        *(Feature(f"{axis}_pow2", f"next_pow2({axis})") for axis in axes),
        *(Feature(f"{axis}_in_16", f"{axis} % 16") for axis in axes),
        Feature("dram_ns", f"({bytes_moved}) // dram_gb_s", "time to move all bytes once"),
        Feature("l2_percent", f"({bytes_moved}) // (l2_bytes // 100)", "bytes moved as a share of L2"),
        Feature("sm_count", "sm_count"),
    )


def _config_features(
    axes: Sequence[str], knobs: Sequence[str], choices: Mapping[str, Any], configs: Sequence[Config]
) -> tuple[Feature, ...]:
    sizes = [
        knob
        for knob in knobs
        if knob not in choices and knob not in OPTIONS and all(getattr(config, knob) > 0 for config in configs)
    ]
    return (
        *(Feature(knob, knob) for knob in knobs),
        *(Feature(f"{axis}_per_{knob}", f"ceil_div({axis}, {knob})") for axis in axes for knob in sizes),
        *(Feature(f"{knob}_per_warp", f"{knob} // max(1, num_warps)") for knob in sizes),
    )
