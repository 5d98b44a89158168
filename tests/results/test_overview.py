"""What results show of themselves in a console and in a notebook."""

from __future__ import annotations

import sys

import pytest
from helpers.problems import TINY, classifier, new_study, run
from optuna.trial import FixedTrial

import optuna_miha as miha


@pytest.fixture(scope="module")
def result() -> miha.Result:
    return run(new_study(seed=0), classifier, plan=TINY, device="cpu")


def test_representations_take_a_few_lines_of_a_console(result: miha.Result) -> None:
    recipe = classifier(FixedTrial({}))
    replay = miha.replay(result.schedule, classifier, device="cpu")
    texts = [repr(x) for x in (result, result.schedule, result.lineage[-1], recipe, replay, TINY)]
    for text in texts:
        lines = text.splitlines()
        assert len(lines) <= 14
        assert max(map(len, lines)) <= 150
        assert "tensor(" not in text
    assert f"value {result.value:.6g}, trial {result.trial.number} (final phase)" in texts[0]
    assert f"trial {result.lineage[-1].number}: final of cycle" in texts[2]
    assert "train_data=tensors of shapes (60, 4), (60,)" in texts[3]


def test_a_long_schedule_is_cut_in_the_middle() -> None:
    rows = [{"from_epoch": k, "to_epoch": k + 1, "lr": 0.1 * k} for k in range(30)]
    text = repr(miha.Schedule(rows))
    assert len(text.splitlines()) == 10
    assert "… 22 more rows" in text
    assert "lr 2.8 -> 2.9" in text


@pytest.mark.parametrize(
    "plan", [miha.Plan(70, n_cycles=2, anneal="cosine"), miha.Plan.no_search(5)]
)
def test_a_plan_shows_the_call_that_makes_it(plan: miha.Plan) -> None:
    assert eval(repr(plan), {"Plan": miha.Plan}) == plan
    assert repr(miha.Plan(70)) == "Plan(70)"
    assert repr(miha.Plan(70, anneal="cosine")) == "Plan(70, anneal='cosine')"


def test_a_notebook_shows_figure_and_schedule(result: miha.Result) -> None:
    page = result._repr_html_()
    assert 'src="data:image/svg+xml;base64,' in page
    assert page.count("<tr>") >= len(result.schedule)


def test_a_notebook_without_plotly_shows_the_rest(
    result: miha.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    page = result._repr_html_()
    assert "<img" not in page
    assert "pip install plotly" in page
    assert "<td>final</td>" in page
