"""Made-up kernels: tables without a compiler, for tests of everything that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aks.core.config import Config
from aks.export import bundle
from aks.ops import OPS
from aks.ops.binary import MAP_BYTES, Binary, Box, Parameter
from aks.ops.launch_spec import Matrix
from aks.ops.op import Op
from tests.selectors import write_selector

CUDA = 12080


def fake_compiler(op: Op = OPS["gemm"]) -> Callable[[Sequence[tuple[Config, tuple[int, ...]]]], list[Binary]]:
    """Gives each kernel code of its own that says what it is; each takes all arguments that the op has."""

    def compile_all(kernels: Sequence[tuple[Config, tuple[int, ...]]]) -> list[Binary]:
        return [_fake(op, config, values) for config, values in kernels]

    return compile_all


def _fake(op: Op, config: Config, values: tuple[int, ...]) -> Binary:
    row = config.to_row()
    parameters = tuple(_parameters(op))
    sizes = ",".join(str(parameter.num_bytes) for parameter in parameters)
    return Binary(
        # What tests/native/standin.c reads: a name, and the bytes of each parameter.
        cubin=f"\x7fELF {config.key()} {values} | params={sizes}".encode().ljust(256, b"\0"),
        function=f"{row['kind']}_kernel",
        num_warps=row["num_warps"],
        shared_bytes=1024 * row.get("num_stages", 1),
        early_start=bool(row.get("pdl", 0)),
        parameters=parameters,
        boxes={
            name: Box(16, 64, 9, 2, 3) for name, kind in op.launch_spec.arguments.items() if isinstance(kind, Matrix)
        },
        cuda=CUDA,
        triton="0.0.0",
    )


def _parameters(op: Op) -> Iterator[Parameter]:
    for name, argument in op.launch_spec.arguments.items():
        if isinstance(argument, Matrix):
            yield Parameter("map", name, MAP_BYTES)
            yield from (Parameter("rows", name, 4), Parameter("columns", name, 4))
            yield from (Parameter("row_stride", name, 8), Parameter("one", name, 8))
        else:
            yield Parameter("value", name, 4 if name in ("M", "N", "K") else 8)
    yield from (Parameter("null", "global_scratch", 8), Parameter("null", "profile_scratch", 8))


def export_fake(folder: Path, selector: dict) -> Path:
    """The folder ``folder/out``, exported with made-up kernels."""
    op = OPS[selector["op"]]
    folder.mkdir(parents=True, exist_ok=True)
    bundle.export(write_selector(folder, selector), folder / "out", kernels=True, compiler=fake_compiler(op))
    return folder / "out"
