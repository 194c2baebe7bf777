"""The problems of a table, as they can be collected again."""

from __future__ import annotations

import dataclasses

import pytest

from aks.collect.sources import problems_from_csv
from aks.core.device import find_device
from aks.core.errors import DataError
from aks.core.measurement import Regime, Status
from aks.data.problems import configs_of, problems_of, write_problems
from tests.collect.scene import CONFIGS, OP, race
from tests.data.tables import failed, table_of


def with_families(m: int, *families: str):
    return [dataclasses.replace(record, families=families) for record in race(m)]


def test_each_problem_is_written_once_and_read_back_with_its_families(tmp_path):
    table = table_of([*with_families(2, "llama-3", "phi"), *with_families(1, "phi"), *race(1, run_id="tuesday")])
    assert table.num_rows == 3 * len(CONFIGS)
    write_problems(problems_of(table, OP), tmp_path / "problems.csv")
    again = problems_from_csv(OP, tmp_path / "problems.csv")
    assert [workload.problem for workload in again] == [race(1)[0].measurement.problem, race(2)[0].measurement.problem]
    assert again[1].families == ("llama-3", "phi")
    assert "phi" in again[0].families


def test_problems_are_chosen_by_family_and_by_what_they_lack():
    table = table_of([*with_families(1, "phi"), *with_families(2, "llama-3")])
    assert problems_of(table, OP, families={"phi"})["m"].to_pylist() == [1]
    assert problems_of(table, OP, lacking=Regime.CHAIN)["m"].to_pylist() == [1, 2]
    with pytest.raises(DataError, match="no such problem among 2; families there: llama-3, phi"):
        problems_of(table, OP, lacking=Regime.COLD)


def test_a_draw_is_the_same_for_the_same_seed_and_keeps_to_what_was_asked_for():
    table = table_of([record for m in (1, 2, 4, 8, 16, 4096) for record in race(m)])
    flops = 2 * 16 * table["n"][0].as_py() * table["k"][0].as_py()
    small = problems_of(table, OP, max_flops=flops)
    assert small["m"].to_pylist() == [1, 2, 4, 8, 16]
    drawn = [problems_of(table, OP, max_flops=flops, at_most=3, seed=seed)["m"].to_pylist() for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert len(set(map(tuple, drawn))) > 1
    assert problems_of(table, OP, at_most=99) == problems_of(table, OP)
    with pytest.raises(DataError, match="no such problem"):
        problems_of(table, OP, dtypes={"fp16"})


def test_configs_are_those_that_a_problem_has_on_any_device_however_they_fared():
    on_a100 = [dataclasses.replace(record, device=find_device("a100")) for record in race(1)[3:]]
    table = table_of([*race(1)[:2], *race(2)[1:2], failed(race(1)[2], Status.CRASHED), *on_a100])
    found = configs_of(table, OP)
    assert {problem.key(): set(configs) for problem, configs in found.items()} == {
        race(1)[0].measurement.problem.key(): set(CONFIGS),
        race(2)[0].measurement.problem.key(): {CONFIGS[1]},
    }
    assert all(len(set(configs)) == len(configs) for configs in found.values())


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        write_problems(problems_of(table_of(race(1)), OP), tmp_path / "nowhere" / "x.csv")
