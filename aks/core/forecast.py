"""What a tree's answers are expected to take: a second, small tree, of their latency over a roofline.

It is made for comparing ops (two precisions of one layer, say), not for choosing configs, and lies beside the tree
as ``forecast.json``. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aks.core import formula
from aks.core.artifact import parse, read_member
from aks.core.bundle import Bundle
from aks.core.device import DeviceSpec
from aks.core.errors import AksError, ArtifactError
from aks.core.features import Feature

FORECAST_FILE = "forecast.json"
FORMAT, VERSION = "aks-forecast", 1
LAUNCH_NS = 2000
"""Added to the roofline, so that the smallest problems' latency over it lies within a factor or so too."""

Node = tuple[int, int, int, int]
"""feature, threshold, left, right: left if the feature's value is at most the threshold."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """``base_ns`` is a formula over a problem; nodes, the root first, are a ``Node`` or a leaf's latency over base.

    median_error: of latencies of held-out families, relative; None if none were held out.
    """

    base_ns: str
    features: tuple[Feature, ...]
    nodes: tuple[Node | float, ...]
    median_error: float | None = None

    def latency_us(self, variables: Mapping[str, int]) -> float:
        """Microseconds that the answer for a problem is expected to take. variables: ``Problem.variables()``."""
        node = self.nodes[0]
        while isinstance(node, tuple):
            feature, threshold, left, right = node
            value = formula.compile_python(self.features[feature].formula)(variables)
            node = self.nodes[left if value <= threshold else right]
        return formula.compile_python(self.base_ns)(variables) * node / 1e3

    def on(self, device: DeviceSpec) -> Forecast:
        """The same with the device's facts folded into its formulas."""
        facts = device.variables()
        features = tuple(Feature(feature.name, formula.fold(feature.formula, facts)) for feature in self.features)
        return replace(self, base_ns=formula.fold(self.base_ns, facts), features=features)

    def to_json(self) -> dict[str, Any]:
        """The document ``forecast.json``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "base_ns": self.base_ns,
            "features": [[feature.name, feature.formula] for feature in self.features],
            "nodes": [list(node) if isinstance(node, tuple) else node for node in self.nodes],
            "median_error": self.median_error,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Forecast:
        """The forecast of a document.

        Raises
        ------
        ArtifactError
            If it is of another format or malformed.
        """
        found = (document.get("format"), document.get("version"))
        if found != (FORMAT, VERSION):
            raise ArtifactError(f"forecast has format and version {found}; this version of aks reads {FORMAT, VERSION}")
        try:
            features = tuple(Feature(name, text) for name, text in document["features"])
            nodes = tuple(_node(place, node, document) for place, node in enumerate(document["nodes"]))
            formula.parse(document["base_ns"])
            error = document["median_error"]
        except (AksError, KeyError, TypeError, ValueError) as problem:
            raise ArtifactError(f"forecast cannot be read: {type(problem).__name__} {problem}") from problem
        if not nodes:
            raise ArtifactError("forecast has no nodes")
        return cls(document["base_ns"], features, nodes, error)


def _node(place: int, node: Any, document: Mapping[str, Any]) -> Node | float:
    if isinstance(node, int | float):
        return float(node)
    feature, threshold, left, right = map(int, node)
    if not 0 <= feature < len(document["features"]):
        raise ValueError(f"node {place} reads feature {feature}")
    if not place < left < right < len(document["nodes"]):  # children come after their parent: there is no cycle
        raise ValueError(f"node {place} leads to {left} and {right}")
    return feature, threshold, left, right


def read_forecast(bundle: Bundle) -> Forecast | None:
    """The forecast that lies beside a tree; None if it was trained or exported without one.

    Raises
    ------
    ArtifactError
        If its file is missing, altered or malformed.
    """
    if FORECAST_FILE not in bundle.manifest["files"]:
        return None
    data = read_member(bundle.folder, bundle.manifest, FORECAST_FILE)
    return Forecast.from_json(parse(data, bundle.folder / FORECAST_FILE))
