"""The forecast of what a tree's answers take: near the truth on held-out families, the same once it is exported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aks.core.bundle import read_bundle
from aks.core.errors import ArtifactError
from aks.core.forecast import FORECAST_FILE, Forecast, read_forecast
from aks.export import bundle
from aks.runtime import Predictor
from aks.runtime.explain import explain
from aks.train.examples import make_examples
from aks.train.forecast import errors


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    bundle.export(result.selector_path, out)
    return out


def test_it_is_near_on_families_that_were_held_out(result) -> None:
    examples = make_examples(result.held_out, result.fitted.portfolio.columns)
    choice = result.fitted.tree(examples.inputs)
    wrong = errors(result.fitted.forecast, examples, choice)
    shuffled = np.random.default_rng(0).permutation(examples.chosen_us(choice))
    assert np.median(wrong) < 0.1 < np.median(np.abs(shuffled / examples.chosen_us(choice) - 1))
    assert result.metrics["forecast_median_error"] == np.median(wrong)


def test_exported_it_forecasts_the_same(result, folder, op) -> None:
    forecast = read_forecast(read_bundle(folder))
    assert forecast is not None and forecast.median_error == result.metrics["forecast_median_error"]
    for problem in _problems(result):
        expected = result.fitted.forecast.latency_us(problem.variables() | _facts(result))
        assert forecast.latency_us(problem.variables()) == expected
    explained = explain(Predictor.load(op, path=folder), op, _problems(result)[0])
    assert explained.latency_us == forecast.latency_us(_problems(result)[0].variables())
    assert f"takes     about {explained.latency_us:.1f} us" in str(explained)


def test_a_selector_without_one_is_exported_without_one(result, folder, op, tmp_path) -> None:
    selector = json.loads(result.selector_path.read_text())
    del selector["forecast"]
    (tmp_path / "selector.json").write_text(json.dumps(selector))
    bundle.export(result.selector_path, tmp_path / "out")
    bundle.export(tmp_path / "selector.json", tmp_path / "out")
    assert not (tmp_path / "out" / FORECAST_FILE).exists()
    assert read_forecast(read_bundle(tmp_path / "out")) is None
    assert explain(Predictor.load(op, path=tmp_path / "out"), op, _problems(result)[0]).latency_us is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"nodes": []},
        {"nodes": [[0, 1, 0, 1], 1.0]},
        {"nodes": [[99, 1, 1, 2], 1.0, 1.0]},
        {"base_ns": "__import__('os')"},
        {"features": None},
    ],
)
def test_what_is_malformed_is_refused(result, change) -> None:
    with pytest.raises(ArtifactError):
        Forecast.from_json(result.fitted.forecast.to_json() | change)


def _problems(result):
    return result.held_out.problems


def _facts(result):
    return result.fitted.device.variables()
