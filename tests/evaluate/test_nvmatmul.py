"""The adapter to nvMatmulHeuristics: against the package itself where it is installed, else against a stand-in."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from aks.core.device import find_device
from aks.evaluate.nvmatmul import NAME, nvmatmul_choosers
from aks.train.dataset import from_frame
from tests.evaluate.tiny import OP, VENDOR, make_frame

H200 = find_device("h200")


def test_missing_package_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvMatmulHeuristics", None)
    assert "not installed" in nvmatmul_choosers(OP, [H200])[1]


def kernel(config, **changes):
    """A pick of the package that means ``config``: warps along n alone."""
    values = {
        "cta_tile_m": config.block_m,
        "cta_tile_n": config.block_n,
        "cta_tile_k": config.block_k,
        "warp_tile_m": config.block_m,
        "warp_tile_n": config.block_n // config.num_warps,
        "split_k": max(1, config.split_k),
        "stages": config.num_stages,
    }
    return {"kernel": SimpleNamespace(**(values | changes))}


def stand_in(kernels, asked):
    """A package whose every answer is ``kernels``; what it was asked is appended to ``asked``."""

    class Interface:
        def __init__(self, **settings):
            asked.append(settings["gpu"])

        def makeNvMatmulHeuristicsProblem(self, *problem):  # noqa: N802
            return problem

        def get(self, problem, count, precision):
            asked.append((problem, precision))
            return kernels[:count]

    gpus = [SimpleNamespace(name="H100_SXM"), SimpleNamespace(name="H200_SXM")]
    return SimpleNamespace(
        NvMatmulHeuristicsNvidiaGpu=gpus,
        NvMatmulHeuristicsTarget=SimpleNamespace(TRITON=3),
        NvMatmulHeuristicsFlags=SimpleNamespace(PERF_MODEL_BASED_AUTO_TUNING=8),
        NvMatmulHeuristicsMatmulLayout=SimpleNamespace(NN_ROW_MAJOR=0, NT_ROW_MAJOR=1),
        NvMatmulHeuristicsInterfaceEx=Interface,
    )


def same_tile():
    """Two configs of one tile and split of k, both legal at m = 64 with static weights."""
    problem = OP.problem_type.from_row({"m": 64, "n": 4096, "k": 4096, "static_weights": True})
    groups = {}
    for config in OP.space.legal(problem, H200):
        row = config.to_row()
        if row["block_m"] and row["num_stages"]:
            groups.setdefault((row["block_m"], row["block_n"], row["block_k"], max(1, row["split_k"])), []).append(
                config
            )
    return next(group for group in groups.values() if len({c.to_row()["num_stages"] for c in group}) > 1)


def test_first_pick_in_the_space_is_taken_to_the_letter_or_at_best(monkeypatch):
    group = same_tile()
    # The slowest is the one that it names: to the letter it gets that, at best the fastest.
    named = group[-1]
    latencies = {config: [10.0 + index] for index, config in enumerate(group)}
    data = from_frame(make_frame({64: {VENDOR: [50.0], **latencies}}), OP)
    asked = []
    picks = [kernel(named, cta_tile_m=8192), kernel(named)]  # nobody has the first tile
    monkeypatch.setitem(sys.modules, "nvMatmulHeuristics", stand_in(picks, asked))
    letter, best = nvmatmul_choosers(OP, [H200])[0]
    assert best.rank(data).tolist() == [[data.configs.index(group[0])]]
    chosen = data.configs[letter.rank(data)[0, 0]].to_row()
    assert (chosen["num_stages"], chosen["num_warps"]) == (named.num_stages, named.num_warps)
    assert asked[0].name == "H200_SXM"
    assert asked[1] == ((64, 4096, 4096, 1), "TST")
    assert len(asked) == 2  # both readings share one question


def test_no_pick_in_the_space_is_no_answer(monkeypatch):
    data = from_frame(make_frame({64: {VENDOR: [50.0]}}), OP)
    picks = [kernel(same_tile()[0])]  # in the space, but not measured here
    monkeypatch.setitem(sys.modules, "nvMatmulHeuristics", stand_in(picks, []))
    for chooser in nvmatmul_choosers(OP, [H200])[0]:
        assert chooser.rank(data).tolist() == [[-1]]


def test_the_package_answers_without_a_gpu():
    pytest.importorskip("nvMatmulHeuristics")
    choosers, remark = nvmatmul_choosers(OP, [H200])
    assert remark == ""
    problem = OP.problem_type.from_row({"m": 512, "n": 4096, "k": 4096, "static_weights": True})
    legal = {config: [5.0] for config in OP.space.legal(problem, H200)}
    data = from_frame(make_frame({512: legal}), OP)
    for chooser in choosers:
        ranking = chooser.rank(data)
        assert ranking.shape == (1, 1)
        assert ranking[0, 0] == -1 or data.configs[ranking[0, 0]].to_row()["block_m"] > 0
    assert choosers[0].name == NAME


def test_a_gpu_without_a_preset_is_said_in_a_sentence():
    pytest.importorskip("nvMatmulHeuristics")
    assert "no preset for x99" in nvmatmul_choosers(OP, [replace(H200, name="x99")])[1]


def test_reading_is_deterministic(monkeypatch):
    group = same_tile()
    data = from_frame(make_frame({64: {VENDOR: [50.0], **{config: [10.0] for config in group}}}), OP)
    monkeypatch.setitem(sys.modules, "nvMatmulHeuristics", stand_in([kernel(group[0])], []))
    first, again = (np.array([c.rank(data) for c in nvmatmul_choosers(OP, [H200])[0]]) for _ in range(2))
    assert np.array_equal(first, again)
