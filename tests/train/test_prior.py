"""The prior comes back as it was written, and nothing else does."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from aks.core.errors import ArtifactError
from aks.export.selector import check_selector
from aks.train.latency import fit_latency_model
from aks.train.prior import PROBLEMS_FILE, load_prior, make_prior
from aks.train.selector import train
from tests.train.conftest import HELD_OUT, OPTIONS


@pytest.fixture(scope="module")
def folder(data_file, op, tmp_path_factory):
    out = tmp_path_factory.mktemp("prior")
    train(op, data_file, out, held_out=HELD_OUT, options=OPTIONS, track=False, with_prior=True)
    return out


def read(folder):
    return json.loads((folder / "selector.json").read_text())


def test_a_prior_comes_back_with_problems_and_predictions_but_no_latency(folder, op, training_set):
    check_selector(read(folder), op)
    prior = load_prior(read(folder), folder, op)
    rows = [row for row, names in enumerate(training_set.families) if names.isdisjoint(HELD_OUT)]
    seen = training_set.subset(rows)
    assert set(prior.problems) <= set(seen.problems)
    assert not any(names & set(HELD_OUT) for names in prior.families)
    assert prior.configs == training_set.configs and prior.held_out == HELD_OUT
    kept = seen.subset([row for row, problem in enumerate(seen.problems) if problem in set(prior.problems)])
    model = fit_latency_model([kept], OPTIONS.seed, num_boosters=len(prior.model.boosters))
    asked = kept.features, kept.columns, kept.configs, kept.legal, kept.regime
    np.testing.assert_array_equal(prior.model.latency_us(*asked), model.latency_us(*asked))
    members = prior.model.members_us(*asked)
    assert (members[0] != members[1])[kept.legal].any()


def test_a_problem_that_two_devices_had_is_one(training_set):
    model = fit_latency_model([training_set])
    twice = training_set.subset([0, 1, 0])
    assert make_prior(twice, model).problems == training_set.problems[:2]


def test_what_was_altered_or_is_missing_is_refused(folder, op, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "latency-1.ubj").write_bytes((copy / "latency-0.ubj").read_bytes())
    with pytest.raises(ArtifactError, match=r"latency-1.ubj was altered"):
        load_prior(read(copy), copy, op)
    (copy / PROBLEMS_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"cannot be read.*aks train --prior"):
        load_prior(read(copy), copy, op)
    with pytest.raises(ArtifactError, match=r"has no prior; write it again: aks train --prior"):
        load_prior(read(copy) | {"prior": None}, copy, op)
    unlisted = read(folder)
    del unlisted["prior"]["sha256"]["latency-0.ubj"]
    with pytest.raises(ArtifactError, match=r"no sha256 of latency-0.ubj"):
        load_prior(unlisted, folder, op)
