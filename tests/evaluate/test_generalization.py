"""Leave one group out: what is held out is never seen, every problem is scored once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from aks.core.errors import DataError
from aks.evaluate.generalization import leave_one_out, make_groups
from aks.evaluate.regret import Chooser
from aks.train.dataset import TrainingSet, from_frame
from tests.evaluate.tiny import OP, PLAIN, VENDOR, make_frame

FAMILIES = {1: ["alpha"], 2: ["alpha"], 4: ["beta"], 8: ["gamma"], 16: ["sample"]}


def measured(device: str = "h200", gain: float = 2.0, n: int = 4096) -> pd.DataFrame:
    table = {m: {VENDOR: [10.0 * m], PLAIN: [10.0 * m / gain]} for m in FAMILIES}
    return make_frame(table, families=FAMILIES, device=device, n=n)


def best_on_average(seen: list[TrainingSet]):
    """A chooser that always takes what was best in training, and keeps what it was shown."""

    def fit(train: TrainingSet, inside: TrainingSet) -> list[Chooser]:
        seen.append(train)
        plain = train.configs.index(PLAIN)
        best = plain if np.log(train.latency_us[:, plain] / train.baseline_us).mean() < 0 else 0
        return [Chooser("static", lambda data: np.full((len(data), 1), best, dtype=np.intp))]

    return fit


def test_one_device_is_too_few_and_the_message_says_what_to_do():
    data = from_frame(measured(), OP)
    with pytest.raises(DataError, match=r"1 device \(h200\).*too few for a cross-GPU figure.*--holdout family"):
        leave_one_out(data, "device", best_on_average([]))


def test_devices_are_held_out_in_turn():
    # What is best on one device is worst on the other: whoever never saw a device must fail on it.
    frame = pd.concat([measured("h200", 2.0), measured("h100-80gb-hbm3", 0.5)], ignore_index=True)
    seen: list[TrainingSet] = []
    result = leave_one_out(from_frame(frame, OP), "device", best_on_average(seen))
    assert {group.group for group in result.groups} == {"h200", "h100-80gb-hbm3"}
    assert [{device.name for device in train.devices} for train in seen] == [
        {"h200", "h100-80gb-hbm3"} - {group.group} for group in result.groups
    ]
    overall = {row.chooser: row for row in result.overall}
    assert overall["static"].score.problems == 10
    assert overall["static"].score.mean_regret == pytest.approx(1.0)
    assert overall["oracle"].score.mean_regret == 0.0
    assert overall["vendor"].score.geomean_speedup == 1.0


def test_families_leave_with_the_weights_they_share_and_random_shapes_stay():
    frame = pd.concat([measured(), measured(n=2048)], ignore_index=True)
    frame.loc[frame["n"] == 2048, "families"] = "sample"
    seen: list[TrainingSet] = []
    result = leave_one_out(from_frame(frame, OP), "family", best_on_average(seen), max_groups=2)
    # All families share n = 4096: each time only the random shapes of n = 2048 are left to train on.
    assert [entry.trained_on for entry in result.groups] == [5, 5]
    assert all(set(train.axes[:, 1]) == {2048} for train in seen)
    assert {row.score.problems for row in result.overall} == {4}


def test_any_problem_field_can_be_held_out():
    frame = pd.concat([measured(n=n) for n in (1024, 2048, 4096)], ignore_index=True)
    seen: list[TrainingSet] = []
    result = leave_one_out(from_frame(frame, OP), "n", best_on_average(seen))
    assert sorted(group.group for group in result.groups) == ["1024", "2048", "4096"]
    for group, train in zip(result.groups, seen, strict=True):
        assert int(group.group) not in train.axes[:, 1]
    assert result.to_json()["column"] == "n"


def test_many_values_are_dealt_into_groups_of_about_equal_size():
    groups = make_groups(from_frame(measured(), OP), "m", max_groups=2)
    assert sorted(len(group.rows) for group in groups) == [2, 3]
    assert sorted(np.concatenate([group.rows for group in groups]).tolist()) == [0, 1, 2, 3, 4]


def test_unknown_column_names_those_there_are():
    with pytest.raises(DataError, match=r"no column 'colour'.*family, device, .*m, n, k"):
        make_groups(from_frame(measured(), OP), "colour", 5)


def test_a_column_of_one_value_is_too_few():
    with pytest.raises(DataError, match=r"1 dtype \(bf16\).*leaves nothing to train on"):
        make_groups(from_frame(measured(), OP), "dtype", 5)


def test_only_the_values_that_are_named_are_held_out():
    frame = pd.concat([measured("h200"), measured("h100-80gb-hbm3")], ignore_index=True)
    seen: list[TrainingSet] = []
    result = leave_one_out(from_frame(frame, OP), "device", best_on_average(seen), values=["h200"])
    assert [group.group for group in result.groups] == ["h200"] and len(seen) == 1
    with pytest.raises(DataError, match="no device b300 in the data; it has h100-80gb-hbm3, h200"):
        leave_one_out(from_frame(frame, OP), "device", best_on_average([]), values=["b300"])
