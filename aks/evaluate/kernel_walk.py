"""Every kernel of a bundle on small, ragged, misaligned problems, each result checked: what a sanitizer watches.

``python -m aks.evaluate.kernel_walk FOLDER`` walks; ``scripts/sanitize_kernels.py`` runs it under compute-sanitizer.
Operands end where their last element does, so that with ``PYTORCH_NO_CUDA_MEMORY_CACHING=1`` a sanitizer sees any
access past it. Nothing but the kernels runs on the GPU: operands are made, and results checked, on the host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aks.core import artifact, formula, kernel_files
from aks.core.bundle import Bundle, read_bundle
from aks.core.device import DeviceSpec
from aks.core.errors import ArtifactError
from aks.ops.gemm import reference
from aks.ops.gemm.call import call_of
from aks.ops.gemm.spec import GEMM, GemmConfig, GemmProblem
from aks.runtime import native

_RAGGED = (0, 1, 2, 4, 8)
_ROWS = (1, 2, 3, 4, 5, 17, 33, 65, 129)


@dataclass(frozen=True, slots=True)
class Case:
    """A problem that leads to one kernel: config ``place`` of the tree, and the values of its variant."""

    place: int
    config: GemmConfig
    variant: tuple[int, ...]
    problem: GemmProblem


def read_table(bundle: Bundle) -> dict[str, Any]:
    """``kernels.json`` of a bundle of ``gemm``.

    Raises
    ------
    ArtifactError
        If the folder has no kernels, or is of another op or config space.
    """
    bundle.check_op(GEMM.name, GEMM.space.fingerprint)
    return json.loads(artifact.read_member(bundle.folder, bundle.manifest, kernel_files.TABLE_FILE))


def find_cases(bundle: Bundle, table: Mapping[str, Any], device: DeviceSpec) -> list[Case]:
    """Cases for every kernel of the table, in its order: of each kernel the smallest problem and the most ragged.

    Raises
    ------
    ArtifactError
        If no small problem leads to a kernel.
    """
    cases: list[Case] = []
    for place, row in enumerate(table["configs"]):
        if row is None:
            continue
        config = GemmConfig.from_row(bundle.tree.configs[place])
        found: dict[tuple[int, ...], list[GemmProblem]] = {tuple(kernel[:-1]): [] for kernel in row["kernels"]}
        for problem in _candidates(config, bundle, device):
            if (known := found.get(GEMM.launch_spec.variant_values(config, problem.variables()))) is not None:
                known.append(problem)
        if missing := [variant for variant, problems in found.items() if not problems]:
            raise ArtifactError(f"{config.key()}: no small problem leads to its kernels {missing}; widen _candidates")
        for variant, problems in found.items():
            problems.sort(key=lambda problem: problem.m * problem.n * problem.k)
            picked = dict.fromkeys((problems[0], max(problems, key=lambda problem: _raggedness(problem, config))))
            cases += [Case(place, config, variant, problem) for problem in picked]
    return cases


def _raggedness(problem: GemmProblem, config: GemmConfig) -> int:
    """In how many ways tiles do not fit, or loops are more than one step long."""
    m, n, k = problem.m, problem.n, problem.k
    rests = (m % max(config.block_m, 2), n % max(config.block_n, 2), n % 2, k % max(config.block_k, 2))
    return sum(map(bool, rests)) + (m > 1) + (k > config.block_k * max(1, config.split_k))


def _candidates(config: GemmConfig, bundle: Bundle, device: DeviceSpec) -> Iterator[GemmProblem]:
    """Problems of a few tiles, even and ragged, for which config is legal and that the tree's support has."""
    support: Any = bundle.tree.support
    is_legal = formula.compile_python(GEMM.space.legality(config, device))
    depth = config.block_k * max(1, config.split_k)
    # A row of x that is held whole (stream) is as long as its block, or a little less.
    lengths = {depth - more for more in _RAGGED} | {times * depth + more for times in (1, 2, 3) for more in _RAGGED}
    widths = [2 * max(config.block_n, 32) + more for more in _RAGGED]
    choices = [support[name] for name in ("dtype", "w_layout", "alignment")]
    axes: list[list[Any]] = [
        [value for value in values if support[axis][0] <= value <= support[axis][1]]
        for axis, values in (("m", _ROWS), ("n", widths), ("k", sorted(lengths)))
    ]
    for values in product(*axes, *choices):
        problem = GemmProblem(*values, static_weights=True)
        if is_legal(problem.variables()):
            yield problem


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
    bundle: Bundle, table: Mapping[str, Any], cases: Sequence[Case], load: Callable[[bytes], native.Kernels]
) -> Iterator[tuple[Case, str]]:
    """Launch each case on the current GPU, and say what is wrong with its result: nothing, if empty.

    load: the kernels of a table, on that GPU.
    """
    for place in dict.fromkeys(case.place for case in cases):
        mine = [case for case in cases if case.place == place]
        kernels = load(cut(table, place, [case.variant for case in mine]))
        for case in mine:
            yield case, run_case(kernels, case)


def run_case(kernels: native.Kernels, case: Case, device: str = "cuda") -> str:
    """What is wrong with a case's result on its kernel; empty if nothing is."""
    problem = case.problem
    made = reference.make_inputs(problem, device="cpu")
    x, w, out = (_exact(tensor, device) for tensor in (made.x, made.w[0], made.out))
    call = call_of(x, w if problem.w_layout == "nk" else w.T, out, True)
    if call is None or call.problem() != problem:
        return f"its operands pose {call and call.problem()}"
    stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0
    answer = kernels.launch(*call, stream)
    if answer != case.place:
        return f"config {answer} was launched instead"
    if device == "cuda":
        torch.cuda.synchronize()
    return check_result(problem, out, reference.reference(problem, made.x, made.w[0]))


def check_result(problem: GemmProblem, out: Tensor, expected: Tensor) -> str:
    """What is wrong with out, or with what lies between and before its rows, which must still be NaN."""
    whole = out.as_strided((_end(out),), (1,), 0).cpu()
    rows = whole.as_strided(out.shape, out.stride(), out.storage_offset())
    wrong = reference.check(problem, rows, expected)
    rows.fill_(float("nan"))
    return wrong or ("" if bool(whole.isnan().all()) else "it wrote between or before the rows of out")


def _exact(tensor: Tensor, device: str) -> Tensor:
    """The same values at the same strides and alignment, in memory that ends with the last element."""
    flat = tensor.as_strided((_end(tensor),), (1,), 0).clone()
    flat[: tensor.storage_offset()] = float("nan")
    return flat.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _end(tensor: Tensor) -> int:
    rows, columns = tensor.shape
    return int(tensor.storage_offset()) + (rows - 1) * tensor.stride(0) + columns


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
