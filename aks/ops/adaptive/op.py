"""What an op is that was made of a user's own kernel. Standard library and core only."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields
from typing import Any

from aks.core.config import Config
from aks.core.errors import ArtifactError, UnknownOpError
from aks.core.measurement import Regime
from aks.ops.op import Op


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveOp(Op):
    """An op whose kernel is a user's: its baseline is a config of the same kernel.

    kernel is what ``aks.adaptive`` made. locator says where other processes find it: ``module:name``.
    switches are constants that the kernel takes as True or False; configs have them as 1 or 0.
    """

    kernel: Any = field(repr=False)
    locator: str
    switches: frozenset[str] = frozenset()

    @property
    def launch(self) -> Any:
        """As an op's module ``launch``."""
        # By name, like other ops' modules: planning and training import neither torch nor triton.
        return importlib.import_module("aks.ops.adaptive.launch").Harness(self)

    @property
    def reference(self) -> Any:
        """As an op's module ``reference``."""
        return self.launch

    @property
    def launch_spec(self) -> Any:
        """There is none.

        Raises
        ------
        ArtifactError
            Always: only the kernels of registered ops can be bundled.
        """
        raise ArtifactError(
            f"kernels of {self.name!r} cannot be bundled: that needs an op of aks.ops; export without --bundle"
        )

    @property
    def compiler(self) -> str:
        """None: the process that measures compiles for itself."""
        return ""

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Who neighbours a user's kernel is not known."""
        return Regime.COLD, Regime.WARM

    def options(self, config: Config) -> dict[str, Any]:
        """What a launch of the kernel gets for ``config``: its constants, ``num_warps`` and the like."""
        row = {name: bool(value) if name in self.switches else value for name, value in config.to_row().items()}
        if "maxnreg" in row:
            row["maxnreg"] = row["maxnreg"] or None
        return row

    def __reduce__(self) -> tuple[Any, ...]:
        """By name: another process makes the op by importing the module that it is in.

        Raises
        ------
        UnknownOpError
            If the module does not have it under the kernel's name.
        """
        from aks.ops import find_op

        module, _, name = self.locator.partition(":")
        try:
            found = None if module == "__main__" else find_op(self.locator)
        except UnknownOpError:
            found = None
        if found is not self:
            raise UnknownOpError(
                f"other processes cannot import the kernel of {self.name!r} as {name!r} of module {module!r}; put it "
                "into a module of its own, under its own name, and import it from there"
            )
        return find_op, (self.locator,)


class ByLocator:
    """Mixed into the problem and config types of such ops: they are pickled as values of the op of that name."""

    __slots__ = ()
    _LOCATOR = ""
    _KIND = ""

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, entry.name) for entry in fields(self))  # type: ignore[arg-type]
        return _restore, (self._LOCATOR, self._KIND, values)


def _restore(locator: str, kind: str, values: tuple[Any, ...]) -> Any:
    from aks.ops import find_op

    return getattr(find_op(locator), kind)(*values)
