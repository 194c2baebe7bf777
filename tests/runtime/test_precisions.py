"""Precisions side by side: what trees and forecasts of several ops say of one layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from aks.core.errors import ArtifactError, InvalidProblemError, UnknownOpError
from aks.core.features import Feature
from aks.core.forecast import Forecast
from aks.export.bundle import export
from aks.ops import find_op
from aks.runtime.precisions import PRECISIONS, compare
from tests.selectors import random_selector, write_selector

LAYER = {"n": 4096, "k": 4096}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trees that take so many microseconds: of m up to 8, and of more."""
    for name, below, above in (("gemm", 10.0, 20.0), ("int8_gemm", 6.0, 15.0), ("int4_gemm", 4.0, 30.0)):
        write_model(tmp_path, name, Forecast("1000", (Feature("m", "m"),), ((0, 8, 1, 2), below, above)))
    monkeypatch.setenv("AKS_MODELS", str(tmp_path))
    return tmp_path


def write_model(root: Path, name: str, forecast: Forecast | None) -> None:
    op, folder = find_op(name), root / f"{name}-selector"
    folder.mkdir(exist_ok=True)
    selector = random_selector(3, op=op, levels=3)
    selector["support"] = {"axes": {axis: [1, 8192] for axis in op.problem_type.AXES}, "choices": {}}
    if forecast:
        selector["forecast"] = forecast.to_json()
    export(write_selector(folder, selector), root / name / "h200")


def test_the_fastest_changes_with_m(models: Path) -> None:
    rows = compare(["bf16", "int8", "int4"], LAYER, [1, 8, 9, 9000], "h200", find_op)
    assert [row.fastest for row in rows] == ["int4", "int4", "int8", ""]
    assert [row.estimates["int8"].product_us for row in rows] == [6.0, 6.0, 15.0, None]
    assert rows[0].estimates["bf16"].quantize_us == 0.0
    predicted = rows[0].estimates["bf16"].runs.split()[0]
    assert predicted in find_op("gemm").config_type.CHOICES["kind"]


def test_quantising_x_counts_where_a_tree_says_what_it_takes(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is shipped may have a tree for it: only what is here counts.
    def find(name: str):
        if name == "quantize_rows" and not (models / name).exists():
            raise UnknownOpError(name)
        return find_op(name)

    [row] = compare(["int8", "int4"], LAYER, [9], "h200", find)
    assert row.estimates["int8"].quantize_us is None and row.estimates["int8"].total_us == 15.0
    write_model(models, "quantize_rows", Forecast("1000", (), (16.0,)))
    [row] = compare(["int8", "int4"], LAYER, [9], "h200", find)
    assert row.estimates["int8"].total_us == 31.0 and row.fastest == "int4"


def test_each_op_takes_the_attributes_that_it_has(models: Path) -> None:
    [row] = compare(["bf16", "int4"], {**LAYER, "group": 64}, [1], "h200", find_op)
    assert row.fastest == "int4"
    with pytest.raises(InvalidProblemError, match="tile"):
        compare(list(PRECISIONS)[:1], {**LAYER, "tile": 64}, [1], "h200", find_op)
    with pytest.raises(InvalidProblemError, match="lacking: k"):
        compare(["bf16"], {"n": 4096}, [1], "h200", find_op)


def test_a_tree_without_forecast_is_named(models: Path) -> None:
    write_model(models, "gemm", None)
    with pytest.raises(ArtifactError, match="no forecast"):
        compare(["bf16"], LAYER, [1], "h200", find_op)
