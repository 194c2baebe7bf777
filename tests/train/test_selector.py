from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import xgboost as xgb

from aks.core.errors import DataError
from aks.core.measurement import Status
from aks.train.dataset import from_frame
from aks.train.examples import make_examples
from aks.train.fit import fit
from aks.train.selector import XGBOOST_FILE, default_held_out, train
from aks.train.splits import split
from tests.selectors import walk_float32
from tests.train.conftest import HELD_OUT, OPTIONS


@pytest.fixture(scope="module")
def document(result):
    return json.loads(result.selector_path.read_text())


def test_the_file_says_everything_that_export_needs(document, result, op, data_file):
    assert (document["format"], document["version"], document["op"]) == ("aks-selector", 1, op.name)
    assert document["space_fingerprint"] == op.space.fingerprint
    assert document["dataset"]["sha256"] == hashlib.sha256(data_file.read_bytes()).hexdigest()
    assert document["dataset"]["held_out_families"] == list(HELD_OUT)
    assert document["dataset"]["problems"] == 320 and document["dataset"]["training_problems"] == 256
    assert (document["device"]["device"], document["devices"]) == ("h200", ["h200"])
    assert document["portfolio"][0] == op.vendor.to_row() and len(document["portfolio"]) <= OPTIONS.max_portfolio
    assert [row["formula"] for row in document["features"]] == [feature.formula for feature in op.features]
    assert (document["seed"], document["command"]) == (OPTIONS.seed, "aks train")
    selector_module = pytest.importorskip("aks.export.selector")
    selector_module.check_selector(document, op)


def test_the_support_is_what_training_saw(document, result):
    axes = result.training.axes
    assert document["support"]["axes"]["m"] == [1, 4096]
    assert document["support"]["axes"]["k"] == [int(axes[:, 2].min()), int(axes[:, 2].max())]
    assert document["support"]["choices"] == {"dtype": ["bf16"], "w_layout": ["nk"], "alignment": [16]}


def test_the_tree_in_the_file_chooses_as_the_one_in_memory(document, result):
    examples = make_examples(result.held_out, result.fitted.portfolio.columns)
    arrays = document["tree"]
    leaves = walk_float32(arrays, examples.inputs.features.astype(np.float32))
    chosen = [
        next(entry for entry in arrays["ranking"][leaf] if legal[entry])
        for leaf, legal in zip(leaves, examples.inputs.legal, strict=True)
    ]
    assert chosen == result.fitted.tree(examples.inputs).tolist()


def test_every_leaf_ends_with_the_vendor_and_limits_are_kept(document, result):
    arrays = document["tree"]
    for node, feature in enumerate(arrays["feature"]):
        ranking = arrays["ranking"][node]
        if feature >= 0:
            assert ranking is None and arrays["left"][node] > node
            continue
        assert ranking[-1] == 0 and len(set(ranking)) == len(ranking)
        assert len(arrays["expected_slowdown"][node]) == len(ranking)
        assert ranking == [0] if arrays["abstain"][node] else True
    assert sum(arrays["count"]) == len(result.training)
    assert result.metrics["num_leaves"] <= OPTIONS.shape.max_leaves
    assert result.metrics["depth"] <= OPTIONS.shape.max_depth
    assert result.metrics["json_bytes"] <= 16 * 1024


def test_figures_are_those_of_the_held_out_families(document, result):
    examples = make_examples(result.held_out, result.fitted.portfolio.columns)
    tree = result.fitted.tree(examples.inputs)
    assert document["metrics"]["mean_regret"] == pytest.approx(examples.regret(tree).mean())
    assert document["metrics"]["problems"] == len(result.held_out) == 64
    ladder = document["ladder"]
    assert ladder["oracle"]["mean_regret"] == 0 and ladder["vendor"]["geomean_speedup"] == 1
    assert ladder["portfolio_oracle"]["mean_regret"] <= min(
        ladder[name]["mean_regret"] for name in ladder if name not in ("oracle",)
    )
    assert ladder["tree"]["mean_regret"] < ladder["vendor"]["mean_regret"] / 2
    lost = ladder["tree"]["mean_regret"] - ladder["xgboost"]["mean_regret"]
    assert document["metrics"]["regret_lost_by_distilling"] == pytest.approx(lost)
    assert {"speedup_m_1", "speedup_m_2_16", "speedup_m_17_256", "speedup_m_over_256"} <= set(ladder["tree"])


def test_the_saved_classifier_is_the_one_that_was_scored(document, result):
    path = result.selector_path.parent / XGBOOST_FILE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == document["xgboost"]["sha256"]
    booster = xgb.Booster(model_file=path)
    features = xgb.DMatrix(result.fitted.examples.inputs.features.astype(np.float32))
    expected = result.fitted.classifier.booster.predict(features)
    assert np.array_equal(booster.predict(features), expected)


def test_the_same_seed_gives_the_same_files(result, data_file, op, tmp_path):
    again = train(op, data_file, tmp_path, held_out=HELD_OUT, options=OPTIONS, track=False, command="aks train")
    assert again.selector_path.read_bytes() == result.selector_path.read_bytes()
    assert (tmp_path / XGBOOST_FILE).read_bytes() == (result.selector_path.parent / XGBOOST_FILE).read_bytes()


def test_nothing_of_a_held_out_family_reaches_the_tree(training_set, result):
    # Whatever the held-out latencies are, what is learned is the same.
    spoilt = training_set.latency_us.copy()
    train_rows, test_rows = split(training_set, HELD_OUT)
    spoilt[test_rows] *= np.random.default_rng(0).uniform(0.1, 10, spoilt[test_rows].shape)
    learned = fit(replace(training_set, latency_us=spoilt).subset(train_rows), OPTIONS)
    assert learned.portfolio == result.fitted.portfolio
    assert learned.tree.to_json() == result.fitted.tree.to_json()


def test_a_config_that_was_once_wrong_is_not_in_the_portfolio(frame, op, result):
    import pandas as pd

    favourite = result.fitted.examples.configs[1]
    row = frame.iloc[
        [next(i for i, r in enumerate(frame.to_dict("records")) if op.config_type.from_row(r) == favourite)]
    ]
    bad = row.assign(status=Status.WRONG_RESULT.value, run_id="again", latency_us=None, samples_us=[[]])
    found = from_frame(pd.concat([frame, bad], ignore_index=True), op)
    assert favourite not in fit(found.subset(split(found, HELD_OUT)[0]), OPTIONS).examples.configs


def test_default_families_are_a_quarter_and_never_the_sample(training_set):
    names = default_held_out(training_set, seed=0)
    assert len(names) == 1 and "sample" not in names
    assert default_held_out(training_set, seed=0) == names
    few = training_set.subset([r for r, f in enumerate(training_set.families) if f & {"alpha", "beta", "sample"}])
    assert default_held_out(few) == ()


def test_an_unknown_family_or_regime_is_refused(data_file, op, tmp_path):
    with pytest.raises(DataError, match="no model family omega"):
        train(op, data_file, tmp_path, held_out=["omega"], options=OPTIONS, track=False)
    with pytest.raises(DataError, match="regime 'chain'"):
        train(op, data_file, tmp_path, regime="chain", options=OPTIONS, track=False)
