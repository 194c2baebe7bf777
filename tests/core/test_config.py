"""The config space: rules, legality folded per device, fingerprint; over every op and a small made-up space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aks.core import formula
from aks.core.config import Config, ConfigSpace, Rule
from aks.core.device import known_devices
from aks.core.errors import FormulaError, IllegalConfigError, InvalidProblemError
from aks.ops import OPS
from tests.core.test_problem import some_problem

DEVICES = list(known_devices().values())
every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))
H200 = known_devices()["h200"]


@dataclass(frozen=True, slots=True)
class SawConfig(Config):
    OP: ClassVar[str] = "saw"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"kind": ("vendor", "hand")}

    kind: str
    teeth: int = 0


def saw_space(*rules: Rule, revision: int = 1) -> ConfigSpace:
    configs = (SawConfig("vendor"), *(SawConfig("hand", teeth=teeth) for teeth in (2, 4, 8)))
    return ConfigSpace("saw", configs, rules, revision)


def test_legal_keeps_the_order_of_the_space():
    space = saw_space(Rule("teeth divide m", "kind == VENDOR or m % max(1, teeth) == 0"))
    problem = replace(some_problem(OPS["gemm"]), m=12)
    assert [config.key() for config in space.legal(problem, H200)] == ["vendor", "hand teeth=2", "hand teeth=4"]


def test_a_broken_rule_is_named():
    space = saw_space(Rule("teeth divide m", "m % max(1, teeth) == 0"), Rule("few teeth", "teeth <= 4"))
    problem = replace(some_problem(OPS["gemm"]), m=12)
    assert space.broken_rules(SawConfig("hand", 8), problem, H200) == ["teeth divide m", "few teeth"]
    with pytest.raises(IllegalConfigError, match=r"'hand teeth=8' is illegal.*m=12.*h200: needs teeth divide m; few"):
        space.check(SawConfig("hand", 8), problem, H200)
    space.check(SawConfig("hand", 4), problem, H200)


def test_a_rule_must_be_a_formula():
    with pytest.raises(FormulaError):
        Rule("no subtraction", "m - teeth >= 0")


def test_a_space_without_rules_allows_all():
    assert saw_space().legality(SawConfig("hand", 2), H200) == "True"


def test_configs_refuse_unknown_choices_and_missing_fields():
    with pytest.raises(IllegalConfigError, match="kind='steam'; kind must be one of"):
        SawConfig.from_row({"kind": "steam"})
    with pytest.raises(IllegalConfigError, match="kind"):
        SawConfig.from_row({"teeth": 2})


def test_a_formula_sees_choices_as_names():
    assert SawConfig("hand", 2).variables() == {"VENDOR": 0, "HAND": 1, "kind": 1, "teeth": 2}


def test_the_fingerprint_changes_with_all_that_changes_meaning():
    rule = Rule("few teeth", "teeth <= 4")
    base = saw_space(rule)
    reordered = replace(base, configs=base.configs[::-1])
    assert saw_space(rule).fingerprint == base.fingerprint == reordered.fingerprint
    changed = [
        saw_space(rule, revision=2),
        saw_space(),
        saw_space(Rule("few teeth", "teeth <= 5")),
        replace(base, configs=base.configs[:-1]),
        replace(base, op="axe"),
    ]
    assert len({base.fingerprint, *(space.fingerprint for space in changed)}) == 1 + len(changed)


@every_op
def test_configs_are_distinct_and_round_trip(op):
    assert len({config.key() for config in op.space.configs}) == len(op.space.configs)
    assert all(op.config_type.from_row(config.to_row()) == config for config in op.space.configs)
    assert op.vendor in op.space.configs


@every_op
@given(data=st.data())
def test_the_vendor_is_legal_for_every_problem(op, data):
    """It is the answer where nothing else is."""
    problem, device = data.draw(problems(op)), data.draw(st.sampled_from(DEVICES))
    assert op.space.broken_rules(op.vendor, problem, device) == []


@every_op
@given(data=st.data())
def test_legality_folded_is_legality(op, data):
    """The formula that a tree carries says what the rules say."""
    problem = data.draw(problems(op))
    device = data.draw(st.sampled_from(DEVICES))
    legal = set(op.space.legal(problem, device))
    for config in data.draw(st.lists(st.sampled_from(op.space.configs), min_size=1, max_size=20)):
        text = op.space.legality(config, device)
        assert formula.names(text) <= set(problem.variables())
        assert bool(formula.compile_python(text)(problem.variables())) == (config in legal)
        assert (not op.space.broken_rules(config, problem, device)) == (config in legal)


def problems(op) -> st.SearchStrategy:
    """Problems of ``op``: axes small or large, every choice, but for choices that exclude each other."""
    axis = st.one_of(st.integers(1, 300), st.integers(1, 2**18))
    axes = {name: axis for name in op.problem_type.AXES}
    choices = {name: st.sampled_from(values) for name, values in op.problem_type.CHOICES.items()}
    return st.fixed_dictionaries(axes | choices).map(partial(pose, op)).filter(lambda problem: problem is not None)


def pose(op, row: dict[str, Any]):
    try:
        return op.problem_type.from_row(row)
    except InvalidProblemError:
        return None
