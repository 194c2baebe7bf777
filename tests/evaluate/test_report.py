"""The whole table, its report and its terminal form, over a small synthetic data set and a hand-made tree."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from aks.core.measurement import Regime
from aks.evaluate import baselines
from aks.evaluate.evaluation import Evaluation, assemble, held_out_rows
from aks.evaluate.regret import Chooser
from aks.evaluate.report import render_report, write_report
from aks.evaluate.samples import measure_noise
from aks.evaluate.tables import print_table
from aks.runtime.predictor import Predictor
from aks.train.dataset import from_frame, present_regimes
from tests.evaluate.stand_in import write_models
from tests.evaluate.tiny import OP, PLAIN, VENDOR, make_frame

SIZES = (1, 2, 8, 16, 33, 64, 200, 512, 4096)
HELD_OUT = ("beta", "gamma")


def measured() -> pd.DataFrame:
    """Two families held out and one not; PLAIN is faster up to m = 64; the chain shrinks its lead."""
    families = {m: [("alpha", "beta", "gamma")[index % 3]] for index, m in enumerate(SIZES)}
    frames = []
    for regime, gain in ((Regime.COLD, 2.0), (Regime.CHAIN, 1.2)):
        table = {
            m: {VENDOR: [10.0 + m, 10.1 + m, 10.2 + m], PLAIN: [(10.1 + m) / (gain if m <= 64 else 0.8)] * 3}
            for m in SIZES
        }
        frames.append(make_frame(table, families=families, regime=regime))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Evaluation:
    frame = measured()
    predictor = Predictor.load("gemm", path=write_models(tmp_path_factory.mktemp("models")))
    data = {r: held_out_rows(from_frame(frame, OP, regime=r), HELD_OUT) for r in present_regimes(frame)}
    tree = baselines.tree_chooser(predictor.tree, predict=predictor.predict)
    columns = [data[Regime.COLD].configs.index(config) for config in (VENDOR, PLAIN)]
    some = Chooser("someone <else>", lambda entry: np.where(entry.axes[:, :1] > 20, columns[1], -1))
    return assemble(
        tree.name,
        [baselines.vendor(), tree, baselines.portfolio_oracle(columns), baselines.oracle()],
        data,
        frame,
        regime=Regime.COLD,
        noise=measure_noise(frame, OP),
        subsets=[some],
        supported=baselines.supported_chooser(predictor.tree),
        held_out=HELD_OUT,
        remarks=["a remark"],
        tree=predictor.tree,
        model={"sha256": "abc"},
        bench={"Python": 210.0},
        command="aks evaluate gemm --report out.html",
    )


def test_the_tree_is_scored_as_the_predictor_answers(evaluation):
    # The tree takes PLAIN below m = 100; of the held-out sizes 2, 8, 33, 64, 512, 4096 it is right on all.
    row = evaluation.row("exported tree")
    assert row.score.problems == 6
    assert row.score.worst_regret == 0.0
    assert row.bands[1] == pytest.approx(2.0)
    assert row.bands[3] == 1.0
    assert evaluation.row("vendor").score.geomean_speedup == 1.0
    assert evaluation.row("oracle").score.worst_regret == 0.0


def test_the_tree_s_choices_are_scored_with_each_regime_s_latencies(evaluation):
    chain = {row.chooser: row for row in evaluation.regime_rows}
    assert {row.regime for row in evaluation.regime_rows} == {"chain"}
    assert chain["exported tree"].bands[1] == pytest.approx(1.2)


def test_a_baseline_without_an_answer_everywhere_is_compared_on_its_own_problems(evaluation):
    rows = {row.chooser: row for row in evaluation.subset_rows}
    theirs = rows["someone <else>"]
    assert theirs.share == pytest.approx(4 / 6)
    assert rows["exported tree, where someone <else> answers"].score.problems == theirs.score.problems == 4
    assert rows["exported tree, inside its support"].share == 1.0


def test_families_and_worst_problems_are_of_the_tree(evaluation):
    assert set(evaluation.families) == set(HELD_OUT)
    assert len(evaluation.worst) == 6


def test_no_family_of_that_name_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="no problem of delta in regime 'cold'; families: alpha, beta, gamma"):
        held_out_rows(from_frame(measured(), OP), ["delta"])


def test_metrics_are_flat_and_finite(evaluation):
    metrics = evaluation.metrics()
    assert metrics["cold.exported_tree.mean_regret"] == 0.0
    assert metrics["chain.exported_tree.speedup_m_2_16"] == pytest.approx(1.2)
    assert metrics["predict.python_ns"] == 210.0
    assert all(np.isfinite(value) and re.fullmatch(r"[a-z0-9_.]+", name) for name, value in metrics.items())


def test_json_form_is_plain(evaluation):
    document = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert [row["chooser"] for row in document["rows"]][:2] == ["vendor", "exported tree"]


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory) -> str:
    return write_report(evaluation, tmp_path_factory.mktemp("report") / "new" / "report.html").read_text()


class _Tags(HTMLParser):
    """Collects what a page refers to, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "br", "source", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_page_that_loads_nothing(page):
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.references and all(reference.startswith("data:") for reference in tags.references)
    assert not tags.names & {"script", "link", "iframe"}
    assert not re.search(r"https?://|@import|url\(", page)


def test_report_says_what_it_should(evaluation, page):
    for row in (*evaluation.rows, *evaluation.regime_rows):
        assert row.chooser in page
    assert "someone &lt;else&gt;" in page and "someone <else>" not in page
    for text in (
        "a remark",
        evaluation.command,
        "No cell was measured in two runs",
        "h200",
        "210 ns",
        OP.space.fingerprint,
    ):
        assert text in page
    assert page.count("<picture>") == 5


def test_report_says_which_of_the_worst_lie_outside_the_support(evaluation):
    tree = replace(evaluation.tree, support={**evaluation.tree.support, "m": (1, 1000)})
    page = render_report(replace(evaluation, tree=tree))
    assert page.count("outside the support: m") == 1  # m = 4096


def test_report_is_the_same_for_the_same_evaluation(evaluation, page):
    assert render_report(evaluation) == page


@pytest.mark.parametrize("width", [80, 170])
def test_terminal_table_fits_its_width(evaluation, width):
    text = io.StringIO()
    print_table(evaluation, Console(file=text, width=width, force_terminal=True, color_system=None))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    joined = "\n".join(lines)
    assert "exported tree" in joined and "regime chain" in joined and "a remark" in joined and "0.210" in joined
    assert ("p99" in joined) == (width == 170)
    assert "\u2026" not in joined  # no figure is cut off


def test_a_log_gets_whole_lines(evaluation):
    text = io.StringIO()
    print_table(evaluation, Console(file=text, width=40))
    assert "p99" in text.getvalue()
