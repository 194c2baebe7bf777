from __future__ import annotations

import pytest

from aks.train import classifier, latency
from aks.train.tracking import ALIAS, describe, log_training
from tests.train.conftest import OPTIONS


@pytest.fixture(scope="module")
def client_and_run(result, tmp_path_factory):
    import mlflow

    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        run_id = log_training(result, OPTIONS, experiment="test", tracking_uri=uri)
    client = mlflow.MlflowClient(uri)
    return client, client.get_run(run_id)


def test_the_run_has_parameters_metrics_and_curves(client_and_run, result):
    client, run = client_and_run
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("gemm h200 cold, regret ")
    assert run.data.params["held_out"] == "beta" and run.data.params["shape.max_leaves"] == "20"
    assert run.data.params["num_rounds"] == str(OPTIONS.num_rounds)
    assert run.data.params["classifier.max_depth"] == str(classifier.PARAMETERS["max_depth"])
    assert run.data.params["latency_model.eta"] == str(latency.PARAMETERS["eta"])
    for chooser, row in result.scores.items():
        assert run.data.metrics[f"{chooser}/mean_regret"] == pytest.approx(row["mean_regret"])
    assert run.data.metrics["tree/json_bytes"] == result.metrics["json_bytes"]
    curve = client.get_metric_history(run.info.run_id, "portfolio/training_regret")
    assert [point.value for point in curve] == pytest.approx(list(result.fitted.portfolio.curve))


def test_the_description_has_the_ladder(client_and_run, result):
    _, run = client_and_run
    text = run.data.tags["mlflow.note.content"]
    assert text == describe(result)
    assert f"| **the distilled tree** | {100 * result.metrics['mean_regret']:.2f} % |" in text


def test_the_data_are_named_with_their_hash(client_and_run, result):
    _, run = client_and_run
    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs if entry.tags}
    digests = {entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 2 and inputs
    assert digests == {result.selector["dataset"]["sha256"][:16]}
    assert result.selector["dataset"]["path"] in run.inputs.dataset_inputs[0].dataset.source


def test_the_artifacts_are_there(client_and_run, result):
    client, run = client_and_run
    files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"selector.json", "tree.txt", "ladder.json", "pictures"} <= files
    pictures = {entry.path for entry in client.list_artifacts(run.info.run_id, "pictures") if entry.file_size}
    names = ("choice_map", "feature_importance", "portfolio_curve", "regret_by_band")
    assert pictures == {f"pictures/{name}.png" for name in names}


def test_the_model_is_registered_under_the_alias(client_and_run):
    client, run = client_and_run
    version = client.get_model_version_by_alias("aks-gemm-h200", ALIAS)
    assert version.run_id == run.info.run_id and version.tags["held_out"] == "beta"
    assert "distilled tree" in version.description
