"""``kernels.json`` and ``kernels.bin``: the tree and every kernel that it can name, for serving without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aks.core import artifact, formula, kernel_files, postfix
from aks.core.bounds import interval
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import ArtifactError, FormulaError
from aks.core.plan import Choice, Plan, unnamed_plan
from aks.core.tree import Parameter, Tree
from aks.export.reachable import Key, reachable
from aks.ops.binary import Binary
from aks.ops.launch_spec import LaunchSpec, Matrix
from aks.ops.op import Op

Compile = Callable[[Sequence[tuple[Config, tuple[int, ...]]]], Sequence[Binary]]
"""Compiles kernels, each of a config and the values of its variant, in order."""


def kernel_table(tree: Tree, op: Op, device: DeviceSpec, compile_all: Compile) -> dict[str, bytes]:
    """The two files, by name.

    Raises
    ------
    ArtifactError
        If a kernel cannot be bundled, or a formula of a launch could leave int64 inside the support.
    """
    configs = [op.config_type.from_row(row) for row in tree.configs]
    keys = reachable(tree, op.launch_spec, configs)
    binaries = compile_all([(configs[key.config], key.values) for key in keys])
    writer = _Writer(tree, op.launch_spec, device)
    document = {
        "format": kernel_files.FORMAT,
        "version": kernel_files.VERSION,
        "op": tree.op,
        "device": tree.device,
        "space_fingerprint": tree.space_fingerprint,
        "capability": device.capability,
        "sm_count": device.gpu_sm_count,
        "cuda": max((binary.cuda for binary in binaries), default=0),
        "triton": max((binary.triton for binary in binaries), default=""),
        **writer.call(),
        **writer.tree(),
        **writer.kernels(configs, dict(zip(keys, binaries, strict=True))),
        "product": writer.product(configs),
        "formulas": writer.formulas,
    }
    return {kernel_files.TABLE_FILE: artifact.dump(document), kernel_files.CODE_FILE: b"".join(writer.code)}


class _Writer:
    """Collects what the parts of the table share: formulas, signatures, cubins."""

    def __init__(self, tree: Tree, spec: LaunchSpec, device: DeviceSpec) -> None:
        self.formulas: list[list[int]] = []
        self.code: list[bytes] = []
        self._tree, self._spec = tree, spec
        self._facts = device.variables()
        scratch = [buffer.name for buffer in spec.scratch]
        self._variables = [*(parameter.name for parameter in tree.parameters), *spec.operands, *scratch]
        self._places: dict[str, int] = {}

    def call(self) -> dict[str, Any]:
        return {
            "parameters": [self._parameter(parameter) for parameter in self._tree.parameters],
            "operands": list(self._spec.operands),
            "scratch": [[buffer.name, buffer.num_bytes] for buffer in self._spec.scratch],
        }

    def _parameter(self, parameter: Parameter) -> dict[str, Any]:
        known = self._tree.support[parameter.name]
        support = [parameter.variable(value) for value in known]
        derived = self._spec.derived.get(parameter.name)
        return {
            "name": parameter.name,
            "support": support if parameter.choices else {"low": support[0], "high": support[1]},
            "derived": -1 if derived is None else self._place(derived),
        }

    def tree(self) -> dict[str, Any]:
        nodes: list[list[int]] = []
        leaves: list[list[int]] = []

        def add(steps: Plan) -> int:
            if isinstance(steps, Choice):
                options = [[index, self._condition(condition)] for index, condition in steps.options]
                leaves.append([int(steps.abstain), *(number for option in options for number in option)])
                return -len(leaves)
            nodes.append([self._place(steps.formula), steps.threshold])
            node = nodes[-1]
            place = len(nodes) - 1
            node += [add(steps.left), add(steps.right)]
            return place

        add(unnamed_plan(self._tree))
        return {"nodes": nodes, "leaves": leaves}

    def kernels(self, configs: Sequence[Config], binaries: Mapping[Key, Binary]) -> dict[str, Any]:
        cubins, signatures, functions = _Table(), _Table(), _Table()
        rows: dict[int, list[list[int]]] = {}
        for key, binary in binaries.items():
            if not cubins.has(digest := artifact.digest(binary.cubin)):
                cubins.place(digest, [sum(map(len, self.code)), len(binary.cubin), digest])
                self.code.append(binary.cubin)
            function = {
                "name": binary.function,
                "cubin": cubins.place(digest),
                "num_warps": binary.num_warps,
                "shared_bytes": binary.shared_bytes,
                "early_start": int(binary.early_start),
                "signature": signatures.place(self._signature(binary)),
                "boxes": [
                    [box.rows, box.columns, box.element_type, box.element_bytes, box.swizzle]
                    for box in binary.boxes.values()
                ],
            }
            rows.setdefault(key.config, []).append([*key.values, functions.place(function)])
        return {
            "configs": [
                self._config(config, rows[index]) if index in rows else None for index, config in enumerate(configs)
            ],
            "functions": functions.entries,
            "signatures": signatures.entries,
            "cubins": cubins.entries,
        }

    def _config(self, config: Config, kernels: list[list[int]]) -> dict[str, Any]:
        known = {**self._facts, **config.variables()}
        programs = self._folded(self._spec.programs, known)
        self._check(programs)
        return {
            "variant": [self._place(self._folded(part.formula, known)) for part in self._spec.variant],
            "programs": self._place(programs),
            "scratch": int(self._spec.config_needs_scratch(config)),
            "kernels": kernels,
        }

    def _folded(self, text: str, known: Mapping[str, int]) -> str:
        # What a call passes is not known, whatever the config calls by the same name.
        constants = {name: value for name, value in known.items() if name not in self._variables}
        return formula.tidy(formula.fold(text, constants))

    def _check(self, text: str) -> None:
        try:
            interval(text, self._tree.box)
        except FormulaError as error:
            raise ArtifactError(f"{error}; over the support {self._tree.support}") from error

    def _signature(self, binary: Binary) -> list[list[Any]]:
        signature: list[list[Any]] = []
        for parameter in binary.parameters:
            argument = self._spec.arguments.get(parameter.name)
            match parameter.role, argument:
                case "null", None:
                    text = "0"
                case "value", str():
                    text = argument
                case "map", Matrix():
                    signature.append(["map", *self._matrix(argument)])
                    continue
                case ("rows" | "columns" | "row_stride") as role, Matrix():
                    text = getattr(argument, role)
                case "one", Matrix():
                    text = "1"
                case _:
                    raise ArtifactError(
                        f"kernel {binary.function} has {parameter}, for which LAUNCH_SPEC.arguments of "
                        f"{self._tree.op} has {argument!r}"
                    )
            signature.append(["value", parameter.num_bytes, self._place(text)])
        return signature

    def product(self, configs: Sequence[Config]) -> dict[str, Any] | None:
        product = self._spec.product
        if product is None:
            return None
        algorithms = [(index, product.algorithm_of(config)) for index, config in enumerate(configs)]
        return {
            **{name: self._matrix(getattr(product, name)) for name in ("a", "b", "d")},
            "transpose_a": self._place(product.transpose_a),
            "element_type": self._place(product.element_type),
            "workspace": [buffer.name for buffer in self._spec.scratch].index(product.workspace),
            "workspace_bytes": product.workspace_bytes,
            "alignment": product.alignment,
            "num_algorithms": product.num_algorithms,
            "vendor": -1 if product.vendor is None else self._place(product.vendor),
            "configs": [[index, algorithm] for index, algorithm in algorithms if algorithm is not None],
        }

    def _matrix(self, matrix: Matrix) -> list[int]:
        return [self._place(text) for text in (matrix.pointer, matrix.rows, matrix.columns, matrix.row_stride)]

    def _condition(self, text: str) -> int:
        return -1 if text == "True" else self._place(text)

    def _place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.formulas)
            self.formulas.append(postfix.compile_postfix(text, self._variables))
        return self._places[text]


class _Table:
    """Entries that stand once each, named by place."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._places: dict[str, int] = {}

    def has(self, key: Any) -> bool:
        return repr(key) in self._places

    def place(self, key: Any, entry: Any = None) -> int:
        """The place of the entry with this key, which is the entry itself if none is given."""
        place = self._places.setdefault(repr(key), len(self.entries))
        if place == len(self.entries):
            self.entries.append(key if entry is None else entry)
        return place
