"""Which precision is fastest for a layer: what trees of several ops are expected to take, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from aks.core.errors import ArtifactError, InvalidProblemError, UnknownDeviceError, UnknownOpError
from aks.core.forecast import Forecast, read_forecast
from aks.ops.op import Op
from aks.runtime.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Precision:
    """Products of a precision. quantize: attributes of ``quantize_rows``, which makes their x; None: x stays bf16."""

    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    quantize: Mapping[str, Any] | None = None


PRECISIONS = {
    "bf16": Precision("gemm"),
    "fp8": Precision("fp8_gemm", {"scaling": "row", "fast_accum": True}, {"out_dtype": "fp8"}),
    "int8": Precision("int8_gemm", quantize={"out_dtype": "int8"}),
    "int4": Precision("int4_gemm"),
}
"""By the name of the weights' type. Of weights that are held, which may be read early: static."""
QUANTIZE = "quantize_rows"
M_VALUES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Microseconds that a product is expected to take, its quantisation of x, and what runs; None: not known."""

    product_us: float | None
    quantize_us: float | None = 0.0
    runs: str = ""

    @property
    def total_us(self) -> float | None:
        """Both together; the product alone where the quantisation is not known."""
        return None if self.product_us is None else self.product_us + (self.quantize_us or 0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One m: estimates by precision, in the order asked for."""

    m: int
    estimates: Mapping[str, Estimate]

    @property
    def fastest(self) -> str:
        """The precision with the lowest total; empty if none is known."""
        known = {name: entry.total_us for name, entry in self.estimates.items() if entry.total_us is not None}
        return min(known, key=lambda name: known[name]) if known else ""


def compare(
    names: Sequence[str], attributes: Mapping[str, Any], ms: Sequence[int], device: str, find: Callable[[str], Op]
) -> list[Row]:
    """Estimates for a layer at each m.

    Parameters
    ----------
    names
        Of ``PRECISIONS``.
    attributes
        ``n`` and ``k``, and attributes of the ops' problems (``group``, ``density``, ...): each op takes those that it
        has.
    device
        Whose shipped trees are asked.
    find
        The op of a name.

    Raises
    ------
    InvalidProblemError
        If an attribute is none of any op, or is not allowed.
    UnknownOpError, UnknownDeviceError, ArtifactError
        If there is no tree for an op on the device, or it has no forecast.
    """
    models = {name: _Model.load(find(PRECISIONS[name].op), device) for name in names}
    known = {field.name for model in models.values() for field in fields(model.op.problem_type)}
    if unknown := set(attributes) - known:
        raise InvalidProblemError(f"no problem of {', '.join(names)} has {', '.join(sorted(unknown))}")
    if missing := {"n", "k"} - set(attributes):
        raise InvalidProblemError(f"a layer needs n and k; lacking: {', '.join(sorted(missing))}")
    rows = []
    quantizer = _quantizer(names, device, find)
    for m in ms:
        estimates = {}
        for name, model in models.items():
            precision = PRECISIONS[name]
            product_us, runs = model.ask({"static_weights": True, **precision.attributes, **attributes, "m": m})
            quantize_us = 0.0
            if precision.quantize is not None:
                asked = {**precision.quantize, "m": m, "k": attributes["k"]}
                quantize_us = quantizer.ask(asked)[0] if quantizer else None
            estimates[name] = Estimate(product_us, quantize_us, runs)
        rows.append(Row(m, estimates))
    return rows


def _quantizer(names: Sequence[str], device: str, find: Callable[[str], Op]) -> _Model | None:
    """None where nothing is quantised, or no tree says what that takes."""
    if all(PRECISIONS[name].quantize is None for name in names):
        return None
    try:
        return _Model.load(find(QUANTIZE), device)
    except (UnknownOpError, UnknownDeviceError):
        return None


@dataclass(frozen=True, slots=True)
class _Model:
    op: Op
    predictor: Predictor
    forecast: Forecast

    @classmethod
    def load(cls, op: Op, device: str) -> _Model:
        predictor = Predictor.load(op, device)
        forecast = read_forecast(predictor.bundle)
        if forecast is None:
            raise ArtifactError(
                f"{predictor.bundle.folder} has no forecast of latencies; train and export it again (aks train)"
            )
        return cls(op, predictor, forecast)

    def ask(self, values: Mapping[str, Any]) -> tuple[float | None, str]:
        """Microseconds (None: outside of what was measured) and the config for the values that the op's problem has."""
        problem = self.op.problem_type.from_row(dict(values))
        row = problem.to_row()
        outside = self.predictor.tree.outside(row)
        return None if outside else self.forecast.latency_us(problem.variables()), self.predictor.predict(**row).key()
