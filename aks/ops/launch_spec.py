"""How a call of an op becomes a launch of one of its kernels, as formulas. Standard library and core only.

Python, the bundle's exporter and the native dispatcher read the same texts, so they choose the same kernel,
grid and arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from aks.core import formula
from aks.core.config import Config


@dataclass(frozen=True, slots=True)
class Part:
    """One thing of a problem that the compiler must know: a formula over problem and config.

    values are all that it may have, for legal configs: the kernels of a config are among their combinations.
    """

    name: str
    formula: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of contiguous rows, which a tensor descriptor or cuBLASLt is told of: formulas over the call.

    pointer is the address of the first element, row_stride in elements; rows and columns are over the problem alone.
    """

    pointer: str
    rows: str
    columns: str
    row_stride: str


@dataclass(frozen=True, slots=True)
class Buffer:
    """Device memory of a stream that its launches share: all zero before the first, and as a kernel leaves it."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Product:
    """Configs that are one call of cuBLASLt: ``d = b @ op(a)``, by an entry of its own ranking of algorithms.

    ``applies`` (whether a config is such) and ``algorithm`` (the entry, from 0) are over a config; the others over
    the call. As cuBLASLt sees it, column-major, this is ``d.T = op(a.T) @ b.T``, and transpose_a says whether op
    transposes; element_type is the ``cudaDataType_t`` of all three, sums are float32. The ranking is of
    num_algorithms entries, for pointers that alignment (bytes) divides, and for workspace_bytes of the scratch
    buffer workspace: whoever asks otherwise may get another. vendor, over the problem, says where the vendor's own
    routine runs the first entry.
    """

    applies: str
    algorithm: str
    a: Matrix
    b: Matrix
    d: Matrix
    transpose_a: str
    element_type: str
    workspace: str
    workspace_bytes: int
    alignment: int
    num_algorithms: int
    vendor: str | None = None

    def algorithm_of(self, config: Config) -> int | None:
        """The entry that ``config`` is; None if it is no such config."""
        return formula.compile_python(self.algorithm)(config.variables()) if _holds(self.applies, config) else None


@dataclass(frozen=True)
class LaunchSpec:
    """What an op adds to its spec so that its kernels can be bundled.

    A call is a table of integers: the problem as formulas see it, ``operands`` (addresses, row strides in
    elements) and the addresses of ``scratch``. ``derived`` gives the problem's parameters that follow from
    the operands. ``has_kernel`` and ``needs_scratch`` are over a config; ``variant`` is over problem and
    config, ``programs`` (the grid) over these and the device, ``arguments`` (by the kernels' names for
    them) over the call. ``product`` are configs without a kernel that are launched nevertheless.
    """

    operands: tuple[str, ...]
    derived: Mapping[str, str]
    has_kernel: str
    variant: tuple[Part, ...]
    programs: str
    arguments: Mapping[str, str | Matrix]
    scratch: tuple[Buffer, ...] = ()
    needs_scratch: str = "False"
    product: Product | None = None

    def config_has_kernel(self, config: Config) -> bool:
        """Whether the config is one of our kernels, and not a vendor's routine (of which some are a ``product``)."""
        return _holds(self.has_kernel, config)

    def config_needs_scratch(self, config: Config) -> bool:
        """Whether the config's kernel uses ``scratch``."""
        return _holds(self.needs_scratch, config)

    def variant_values(self, config: Config, problem: Mapping[str, int]) -> tuple[int, ...]:
        """Values of ``variant`` for a problem as formulas see it."""
        return tuple(value(problem) for value in _folded(tuple(part.formula for part in self.variant), config))

    def count_programs(self, config: Config, problem: Mapping[str, int], sm_count: int) -> int:
        """Programs to launch."""
        [count] = _folded((self.programs,), config)
        return count({**problem, "sm_count": sm_count})


@lru_cache(maxsize=16384)
def _holds(text: str, config: Config) -> bool:
    return bool(formula.compile_python(text)(config.variables()))


@lru_cache(maxsize=16384)
def _folded(texts: tuple[str, ...], config: Config) -> tuple[Callable[[Mapping[str, int]], int], ...]:
    known = config.variables()
    return tuple(formula.compile_python(formula.fold(text, known)) for text in texts)
