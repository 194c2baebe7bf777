"""Which facts carry the choice over: what decides shows, what does not or cannot be told is not claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import typer
from rich.console import Console

from aks.cli import app
from aks.core.device import find_device
from aks.evaluate import importance
from aks.evaluate.importance import Change, FactImportance, fact_groups, fact_importance, with_facts
from aks.evaluate.tables import TIMES, importance_markdown, print_importance
from aks.ops import OPS
from aks.train import latency
from aks.train.dataset import TrainingSet, feature_matrix, from_frame, legality
from aks.train.latency import roofline_us, variables_read
from tests.evaluate.tiny import OP, OTHER, PLAIN, VENDOR, make_frame

LARGE = {"l2_bytes": 50 << 20, "dram_gb_s": 3350}
SMALL_SMEM = {"smem_bytes_per_sm": 102400, "smem_bytes_per_block": 101376}


def measured(sm_counts: Mapping[int, Mapping[str, int]], *, sizes: tuple[int, ...] = (1, 4, 16, 512)) -> TrainingSet:
    """Partitions of an H200, some facts changed: the more SMs, the better OTHER, while PLAIN takes as long on all.

    They take the same on 40 SMs for the smallest m, on 90 for the largest; the vendor is twice as slow.
    """
    frames = []
    for sm_count, facts in sm_counts.items():
        table = {}
        for size, border in zip(sizes, np.linspace(40, 90, len(sizes)), strict=True):
            plain, other = 10 * size**0.5, 10 * size**0.5 * border / sm_count
            table[size] = {VENDOR: [2 * min(plain, other)], PLAIN: [plain], OTHER: [other]}
        frames.append(make_frame(table, device=f"h200-{sm_count}sm").assign(**facts))
    return from_frame(pd.concat(frames, ignore_index=True), OP)


class OfNearest:
    """Stands in for a model: what was measured at the nearest SM count, the first of several."""

    def __init__(self, train: TrainingSet) -> None:
        self.train = train

    def latency_us(self, features, columns, configs, usable, regime):
        known = self.train.columns["sm_count"]
        rows = [np.abs(known - sm_count).argmin() for sm_count in columns["sm_count"]]
        return np.where(usable, self.train.latency_us[rows], np.inf)


@pytest.fixture
def nearest(monkeypatch) -> None:
    monkeypatch.setattr(importance, "fit_latency_model", lambda training_sets, seed: OfNearest(*training_sets))


def rows_of(result: importance.Importance) -> dict[str, FactImportance]:
    return {row.name: row for row in result.facts}


def test_changes_are_means_over_the_other_devices_and_over_those_held_out(nearest):
    # One problem; PLAIN is the best on two devices and OTHER on four, and the wrong one takes twice as long.
    data = measured({16: LARGE, 32: {}, 96: {}, 104: {}, 112: {}, 120: {}}, sizes=(1,))
    data = replace(data, latency_us=np.where(np.arange(6)[:, None] < 2, [[20.0, 10.0, 20.0]], [[20.0, 20.0, 10.0]]))
    found = fact_importance(data)
    assert set(found.mean_regret.values()) == {0.0}
    sms = rows_of(found)["sm_count, tflops_16bit"]
    small, large = {"h200-16sm", "h200-32sm"}, {"h200-96sm", "h200-104sm", "h200-112sm", "h200-120sm"}
    # Of the five others four have the wrong config for a small one, and two for a large one.
    assert sms.permuted and sms.permuted.by_device == dict.fromkeys(small, 4 / 5) | dict.fromkeys(large, 2 / 5)
    assert sms.permuted.mean == pytest.approx((2 * 4 / 5 + 4 * 2 / 5) / 6)
    # Without SM counts every row is as near as any other: the first, of a small one, is copied.
    assert sms.dropped and sms.dropped.by_device == dict.fromkeys(small, 0.0) | dict.fromkeys(large, 1.0)
    assert (sms.num_values, sms.spans["sm_count"]) == (6, 120 / 16)
    assert sms.verdict == "an effect, permuted and dropped"
    rest = rows_of(found)["l2_bytes, dram_gb_s"]
    assert rest.permuted and rest.permuted.interval == (0.0, 0.0)
    assert rest.verdict == "cannot be told: 2 values, which only tell h200-16sm from the rest"


def test_few_devices_show_differences_and_claim_nothing(nearest):
    data = measured({16: {}, 32: {}, 48: {}, 80: {}, 96: {}, 112: {}})
    few = fact_importance(data, values=["h200-16sm", "h200-112sm"])
    assert set(few.mean_regret) == {"h200-16sm", "h200-112sm"}
    sms = rows_of(few)["sm_count, tflops_16bit"]
    assert sms.permuted and sms.permuted.clear and not sms.told
    assert sms.verdict == "cannot be told: fewer than 6 devices held out"
    # What each device has is permuted among all devices, held out or not.
    assert sms.num_values == 6


def test_the_model_itself_finds_the_fact_that_decides(monkeypatch):
    monkeypatch.setattr(latency, "_ROUNDS", 60)
    l2 = [40 << 20, 60 << 20, 50 << 20]
    data = measured(
        {count: {"l2_bytes": l2[index % 3]} for index, count in enumerate((16, 24, 32, 48, 64, 80, 96, 112))},
        sizes=(1, 2, 4, 8, 16, 32, 128, 512),
    )
    found = rows_of(fact_importance(data))
    sms = found["sm_count, tflops_16bit"]
    assert sms.told == ("permuted", "dropped")
    assert sms.permuted and sms.dropped and min(sms.permuted.mean, sms.dropped.mean) > 0.1
    cache = found["l2_bytes"]
    assert cache.num_values == 3 and not cache.told
    for change in cache.changes.values():
        assert abs(change.mean) < 0.01 and change.interval[0] <= 0 <= change.interval[1]
    assert cache.verdict == "cannot be told: 0 is in both intervals"
    constant = found["dram_gb_s, clock_mhz, smem_bytes_per_sm, gpu_sm_count"]
    assert constant.num_values == 1 and not constant.changes
    assert constant.verdict == "cannot be told: the same on all"
    ruled = found["capability, smem_bytes_per_block, max_threads_per_block"]
    assert ruled.verdict == "cannot be told: rules alone read them, and what is legal stays"
    assert not any("registers_per_sm" in row.spans for row in found.values())


def test_other_facts_change_features_and_neither_legality_nor_latencies():
    data = from_frame(make_frame({16: {VENDOR: [2.0], PLAIN: [1.0]}}), OP, also=OP.space.configs)
    other = with_facts(data, SMALL_SMEM | {"sm_count": 64})
    assert other.devices[0] == replace(find_device("h200"), sm_count=64, **SMALL_SMEM)
    np.testing.assert_array_equal(other.features, feature_matrix(OP, data.problems, other.devices))
    assert not np.array_equal(other.features, data.features)
    np.testing.assert_array_equal(other.latency_us, data.latency_us)
    np.testing.assert_array_equal(other.legal, data.legal)
    # A GPU with so little shared memory would rule configs out.
    assert legality(OP, data.configs, data.problems, other.devices).sum() < data.legal.sum()


def test_facts_that_go_together_share_a_row():
    h200 = find_device("h200")
    parts = [h200.partition(count) for count in (16, 48, 96)]
    assert fact_groups(OP, parts) == [("sm_count", "tflops_16bit")]
    assert fact_groups(OP, parts[:1]) == []
    ranked = [
        replace(part, l2_bytes=l2 << 20, dram_gb_s=6000 - 50 * l2) for part, l2 in zip(parts, (50, 60, 40), strict=True)
    ]
    assert fact_groups(OP, ranked) == [("sm_count", "tflops_16bit"), ("l2_bytes", "dram_gb_s")]
    # A block has no more shared memory than its SM; capability is read by rules alone.
    mixed = [*ranked, replace(ranked[1], name="older", capability=80, **SMALL_SMEM)]
    assert fact_groups(OP, mixed)[-1] == ("smem_bytes_per_sm", "smem_bytes_per_block")
    # Two GPUs differ in everything at once.
    (everything,) = fact_groups(OP, [h200, find_device("a100-sxm4-80gb")])
    assert {"sm_count", "l2_bytes", "dram_gb_s", "clock_mhz"} < set(everything)


def test_an_effect_is_claimed_of_the_test_that_shows_it():
    up, flat = Change({}, 0.02, (0.01, 0.03)), Change({}, 0.001, (-0.01, 0.02))
    one = FactImportance({"sm_count": 2.0}, 5, up, flat)
    assert one.told == ("permuted",)
    assert one.verdict == "an effect, permuted; dropped: cannot be told, 0 is in the interval"
    assert replace(one, permuted=flat).verdict == "cannot be told: 0 is in both intervals"
    assert replace(one, untold="the same on all").told == ()
    assert replace(one, permuted=Change({}, -0.02, (-0.03, -0.01))).told == ("permuted",)


def test_the_tables_name_each_fact_and_device(nearest):
    found = fact_importance(measured({16: {}, 32: {}, 112: {}}))
    console = Console(width=200, record=True, file=StringIO())
    print_importance(found, console)
    text = console.export_text()
    for word in (
        "sm_count, tflops_16bit",
        f"7{TIMES}",
        "from 3 devices",
        "cannot be told: the same on all",
        "h200-112sm",
    ):
        assert word in text
    assert f"| sm_count, tflops_16bit | 3 | 7{TIMES}" in importance_markdown(found)


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_the_roofline_reads_no_other_variables(op):
    problem = op.problem_type.from_row({"m": 4096, "n": 4096, "k": 4096})
    variables = find_device("h200").variables() | problem.variables()
    columns = {name: np.array([value]) for name, value in variables.items() if name in variables_read(op)}
    assert roofline_us(op, columns) > 1


def test_the_option_goes_with_devices_alone():
    for words in ([], ["--holdout", "family"]):
        with pytest.raises(typer.BadParameter, match="goes with --holdout device"):
            app(["evaluate", "--importance", *words], standalone_mode=False)
