"""Every kernel of a bundle on small, ragged, misaligned problems, each result checked: what a sanitizer watches.

``python -m aks.evaluate.kernel_walk FOLDER`` walks; ``scripts/sanitize_kernels.py`` runs it under compute-sanitizer.
Operands end where their last element does, so that with ``PYTORCH_NO_CUDA_MEMORY_CACHING=1`` a sanitizer sees any
access past it. Nothing but the kernels runs on the GPU: operands are made, and results checked, on the host. All that
an op adds is what it has anyway: axes and knobs, ``launch_spec``, ``call.call_for`` and ``reference``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aks.core import artifact, formula, kernel_files
from aks.core.bundle import Bundle, read_bundle
from aks.core.config import Config
from aks.core.device import DeviceSpec
from aks.core.errors import ArtifactError, InvalidProblemError
from aks.core.formula import next_pow2
from aks.core.problem import Problem
from aks.evaluate import race_report
from aks.ops import OPS
from aks.ops.gemm.reference import poison_of
from aks.ops.launch_spec import LaunchSpec, Matrix
from aks.ops.op import Op
from aks.runtime import native

_RAGGED = (0, 1, 2, 4, 8)
_ROWS = (1, 2, 3, 4, 5, 17, 33, 65, 129)


@dataclass(frozen=True, slots=True)
class Case:
    """A problem that leads to one kernel: config ``place`` of the tree, and the values of its variant.

    The kernel is ``function`` of entry ``cubin`` of the table.
    """

    place: int
    config: Any
    variant: tuple[int, ...]
    problem: Any
    cubin: int
    function: str


def op_of(bundle: Bundle) -> Op:
    """The op whose kernels a bundle has.

    Raises
    ------
    ArtifactError
        If aks has no such op, or another config space for it by now, or no calls of it to launch natively.
    """
    name = bundle.tree.op
    if name not in OPS or find_spec(f"aks.ops.{name}.call") is None:
        raise ArtifactError(f"{bundle.folder} is of op {name!r}; wanted one whose folder in aks.ops has call.py")
    op = OPS[name]
    bundle.check_op(op.name, op.space.fingerprint)
    return op


def read_table(bundle: Bundle) -> dict[str, Any]:
    """``kernels.json`` of a bundle.

    Raises
    ------
    ArtifactError
        If the folder has no kernels.
    """
    return json.loads(artifact.read_member(bundle.folder, bundle.manifest, kernel_files.TABLE_FILE))


def find_cases(bundle: Bundle, table: Mapping[str, Any], device: DeviceSpec) -> list[Case]:
    """Cases for every kernel of the table, in its order: the smallest problem of each, and the most ragged.

    Where a kernel is told more of a problem than its axes (which epilogue), the most ragged of each such choice.

    Raises
    ------
    ArtifactError
        If no small problem leads to a kernel, or as of ``op_of``.
    """
    op, cases = op_of(bundle), []
    spec, told = op.launch_spec, _told(op)
    for place, row in enumerate(table["configs"]):
        if row is None:
            continue
        config = op.config_type.from_row(bundle.tree.configs[place])
        functions = {tuple(values): table["functions"][index] for *values, index in row["kernels"]}
        found: dict[tuple[int, ...], list[Problem]] = {variant: [] for variant in functions}
        for problem in _candidates(op, config, bundle, device):
            if (known := found.get(spec.variant_values(config, problem.variables()))) is not None:
                known.append(problem)
        if missing := [variant for variant, problems in found.items() if not problems]:
            raise ArtifactError(f"{config.key()}: no small problem leads to its kernels {missing}; widen _candidates")
        for variant, problems in found.items():
            function = functions[variant]
            cases += [
                Case(place, config, variant, problem, function["cubin"], function["name"])
                for problem in _picked(problems, config, told)
            ]
    return cases


def _picked(problems: Sequence[Problem], config: Config, told: Sequence[str]) -> Iterator[Problem]:
    ascending = sorted(problems, key=lambda problem: prod(_axes(problem).values()))
    most_ragged: dict[tuple[Any, ...], Problem] = {}
    for problem in ascending:
        choice = tuple(getattr(problem, name) for name in told)
        if choice not in most_ragged or _raggedness(problem, config) > _raggedness(most_ragged[choice], config):
            most_ragged[choice] = problem
    yield from dict.fromkeys((ascending[0], *most_ragged.values()))


def _told(op: Op) -> list[str]:
    """Attributes of a problem that arguments of kernels are made of."""
    read = frozenset[str]().union(*map(formula.names, _texts(op.launch_spec)))
    return [name for name in op.problem_type.CHOICES if name in read]


def _texts(spec: LaunchSpec) -> Iterator[str]:
    for argument in spec.arguments.values():
        if isinstance(argument, Matrix):
            yield from (argument.pointer, argument.rows, argument.columns, argument.row_stride)
        else:
            yield argument


def _axes(problem: Problem) -> dict[str, int]:
    return {axis: getattr(problem, axis) for axis in problem.AXES}


def _block(config: Config, axis: str, value: int) -> int:
    """How much of an axis a step of a program covers: all of it, as a power of two, if no knob says."""
    knobs = config.variables()
    return knobs.get(f"block_{axis}", 0) * (max(1, knobs.get(f"split_{axis}", 0))) or next_pow2(value)


def _raggedness(problem: Problem, config: Config) -> int:
    """In how many ways tiles do not fit, or loops are more than one step long."""
    blocks = [(value, _block(config, axis, value)) for axis, value in _axes(problem).items()]
    return sum((value % block != 0) + value % 2 + (value > block) for value, block in blocks)


def _candidates(op: Op, config: Config, bundle: Bundle, device: DeviceSpec) -> Iterator[Problem]:
    """Problems of a few tiles, even and ragged, for which config is legal and that the tree's support has.

    Attributes of which no kernel is told have their last value alone: the widest alignment, static weights.
    """
    support: Any = bundle.tree.support
    is_legal = formula.compile_python(op.space.legality(config, device))
    spec = op.launch_spec
    read = frozenset[str]().union(*(formula.names(part.formula) for part in spec.variant), _told(op))
    names = [*op.problem_type.AXES, *op.problem_type.CHOICES]
    sizes = [_sizes(config, axis, *support[axis]) for axis in op.problem_type.AXES]
    choices = [support[name][0 if name in read else -1 :] for name in op.problem_type.CHOICES]
    for values in product(*sizes, *choices):
        try:
            problem = op.problem_type(**dict(zip(names, values, strict=True)))
        except InvalidProblemError:  # choices that exclude each other
            continue
        if is_legal(problem.variables()):
            yield problem


def _sizes(config: Config, axis: str, low: int, high: int) -> list[int]:
    """Values of an axis within the support: rows as they come, else around multiples of its block."""
    block = config.variables().get(f"block_{axis}", 0)
    if axis == "m":
        sizes = set(_ROWS)
    elif block:
        # A row of x that is held whole (stream) is as long as its block, or a little less.
        step = max(_block(config, axis, 1), 32)
        sizes = {step - more for more in _RAGGED} | {n * step + more for n in (1, 2, 3) for more in _RAGGED}
    else:
        powers = [1 << power for power in range(high.bit_length())]
        sizes = {power - more for power in powers for more in _RAGGED}
    return sorted(size for size in sizes if low <= size <= high)


def cut(table: Mapping[str, Any], place: int, variants: Sequence[tuple[int, ...]]) -> bytes:
    """The table with these kernels of one config alone, which its tree answers to every problem of the support."""
    used: dict[str, dict[int, int]] = {"functions": {}, "cubins": {}}

    def kept(kind: str, index: int) -> int:
        return used[kind].setdefault(index, len(used[kind]))

    row = table["configs"][place]
    kernels = [[*k[:-1], kept("functions", k[-1])] for k in row["kernels"] if tuple(k[:-1]) in set(variants)]
    functions = [table["functions"][index] for index in used["functions"]]
    functions = [function | {"cubin": kept("cubins", function["cubin"])} for function in functions]
    others = [other and other | {"kernels": []} for other in table["configs"]]
    others[place] = row | {"kernels": kernels}
    changed = {"nodes": [], "leaves": [[0, place, -1]], "product": None, "configs": others, "functions": functions}
    return artifact.dump({**table, **changed, "cubins": [table["cubins"][index] for index in used["cubins"]]})


def walk(
    bundle: Bundle,
    table: Mapping[str, Any],
    cases: Sequence[Case],
    load: Callable[[bytes], native.Kernels],
    device: str = "cuda",
) -> Iterator[tuple[Case, str]]:
    """Launch each case on the current GPU, and say what is wrong with its result: nothing, if empty.

    load: the kernels of a table, on that GPU; device: where their operands are. Each case is announced on standard
    output before it is launched.
    """
    op = op_of(bundle)
    for place in dict.fromkeys(case.place for case in cases):
        mine = [case for case in cases if case.place == place]
        kernels = load(cut(table, place, [case.variant for case in mine]))
        for case in mine:
            print(race_report.announcement(case.cubin, case.function), flush=True)
            yield case, run_case(op, kernels, case, device)


def run_case(op: Op, kernels: native.Kernels, case: Case, device: str) -> str:
    """What is wrong with a case's result on its kernel; empty if nothing is."""
    problem, reference = case.problem, op.reference
    made = reference.make_inputs(problem, device="cpu")
    x, w, out = exact_copies((made.x, made.w[0], made.out), device)
    call = op.call.call_for(problem, x, w, out)
    if call is None or call.problem() != problem:
        return f"its operands pose {call and call.problem()}"
    stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0
    answer = kernels.launch(*call, stream)
    if answer != case.place:
        return f"config {answer} was launched instead"
    if device == "cuda":
        torch.cuda.synchronize()
    return check_result(op, problem, out, reference.reference(problem, made.x, made.w[0]))


def check_result(op: Op, problem: Problem, out: Tensor, expected: Tensor) -> str:
    """What is wrong with out, or with what lies between and before its rows, which must still be poison."""
    whole = out.as_strided((_end(out),), (1,), 0).cpu()
    rows = whole.as_strided(out.shape, out.stride(), out.storage_offset())
    wrong = op.reference.check(problem, rows, expected)
    op.reference.poison(rows)
    whole = whole.float() if whole.dtype.is_floating_point else whole  # of 8-bit floats PyTorch asks nothing
    untouched = whole.isnan() if whole.dtype.is_floating_point else whole == poison_of(whole.dtype)
    return wrong or ("" if bool(untouched.all()) else "it wrote between or before the rows of out")


def exact_copies(operands: Any, device: str) -> Any:
    """The same values at the same strides and alignment, in memory that ends with the last element.

    operands is a tensor, or a tuple (named or not) of operands; what is neither stays. Tensors that share memory do
    so again, and what lies before the first of them is poison.
    """
    memory: dict[int, list[Tensor]] = {}
    for tensor in _tensors(operands):
        memory.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    copies: dict[int, Tensor] = {}
    for address, views in memory.items():
        flat = views[0].as_strided((max(map(_end, views)),), (1,), 0).clone()
        flat[: min(view.storage_offset() for view in views)] = poison_of(flat.dtype)
        copies[address] = flat.to(device)
    return _over(operands, copies)


def _tensors(operands: Any) -> Iterator[Tensor]:
    if isinstance(operands, Tensor):
        yield operands
    elif isinstance(operands, tuple):
        for operand in operands:
            yield from _tensors(operand)


def _over(operands: Any, copies: Mapping[int, Tensor]) -> Any:
    """The operands as views of the copies of their memory."""
    if isinstance(operands, Tensor):
        flat = copies[operands.untyped_storage().data_ptr()]
        return flat.as_strided(operands.shape, operands.stride(), operands.storage_offset())
    if not isinstance(operands, tuple):
        return operands
    views = [_over(operand, copies) for operand in operands]
    return type(operands)(*views) if hasattr(operands, "_fields") else tuple(views)


def _end(tensor: Tensor) -> int:
    """Elements of its memory up to its last one."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()) + steps + 1


def main(folder: Path, shard: str = "1/1", kind: str = "") -> None:
    """Walk over the kernels of a bundle: all of them, or shard i of n ("2/4"), or those of one kind of config."""
    bundle = read_bundle(folder)
    device, table = bundle.device, read_table(bundle)
    part, parts = map(int, shard.split("/"))
    cases = [case for case in find_cases(bundle, table, device) if kind in ("", case.config.kind)]
    kernels = list(islice(dict.fromkeys((case.place, case.variant) for case in cases), part - 1, None, parts))
    cases = [case for case in cases if (case.place, case.variant) in set(kernels)]
    if not cases:
        sys.exit(f"no kernels of kind {kind!r} in shard {shard} of {folder}")
    code = artifact.read_member(bundle.folder, bundle.manifest, kernel_files.CODE_FILE)
    module = import_module("aks.runtime.native._native")
    torch.cuda.init()
    failures = 0
    for case, wrong in walk(bundle, table, cases, lambda cut_table: module.Kernels(cut_table, code, 0)):
        if wrong:
            failures += 1
            print(f"{case.config.key()} {case.variant}, {case.problem.key()}: {wrong}", flush=True)
    kinds = sorted({case.config.kind for case in cases})
    print(f"{len(kernels)} kernels ({', '.join(kinds)}), {len(cases)} launches, {failures} wrong", flush=True)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    import typer

    typer.run(main)
