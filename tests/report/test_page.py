"""The report is one self-contained file that escapes all text from the study."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.problems import TINY, classifier, new_study
from helpers.simulated import simulated

import optuna_miha as miha
from optuna_miha._compare.runner import find_comparison
from optuna_miha._history import attributes
from optuna_miha._report.page import write_report
from optuna_miha._results.comparison import Comparison, Run

EVIL = "<script>alert('&')</script>"

URL_ATTRIBUTES = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Tags, text, event handlers and loaded URLs of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in URL_ATTRIBUTES]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def report(study: optuna.Study, folder: Path, **settings: Any) -> str:
    write_report(study, folder / "report.html", **settings)
    return (folder / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_report_is_complete_and_loads_nothing(tmp_path: Path) -> None:
    study = simulated(4)
    study.set_user_attr(attributes.RUN_SEED, 1234)
    study.set_user_attr(attributes.VERSIONS, {"torch": "9.8.7"})
    source = report(study, tmp_path)
    page = Page(source)
    for title in ("Summary", "Lineage", "History", "Schedule", "Gains", "Cycles", "Versions"):
        assert title in page.text
    for word in (study.study_name, "1234", "9.8.7", f"trial {study.best_trial.number} "):
        assert word in page.text
    assert page.tags.count("img") == 4
    assert all(url.startswith("data:image/svg+xml;base64,") for url in page.urls)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import|//\w", re.sub(r"base64,[^\"]*", "", source))
    assert len(source) < 2_000_000


@pytest.mark.slow
def test_report_of_rounds_says_where_they_start_and_lists_their_plan(tmp_path: Path) -> None:
    cycles, study = simulated(2), optuna.create_study()
    for name, value in cycles.user_attrs.items():
        study.set_user_attr(name, value)
    for trial in cycles.trials:
        trial.user_attrs[attributes.BY_STEP] = True
        study.add_trial(trial)
    study.set_user_attr(attributes.PLAN, miha.Plan(200).asdict())
    text = Page(report(study, tmp_path, interactive=True)).text
    for words in ("Rounds", "start from the best weights", "plan: population size"):
        assert words in text
    assert "plan: fixing epochs" not in text  # Means nothing in rounds.


@pytest.mark.slow
def test_pictures_in_a_report_load_nothing(tmp_path: Path) -> None:
    for url in Page(report(simulated(2), tmp_path)).urls:
        picture = base64.b64decode(url.partition("base64,")[2]).decode()
        links = re.findall(r'(?:href|src)="([^"]*)"', picture)
        assert all(link.startswith("#") for link in links)
        assert "<script" not in picture


@pytest.mark.slow
@pytest.mark.parametrize("interactive", [False, True])
def test_text_from_the_study_is_escaped(tmp_path: Path, interactive: bool) -> None:
    source = simulated(2)
    study = optuna.create_study(study_name=f"study {EVIL}")
    for key, value in source.user_attrs.items():
        study.set_user_attr(key, value)
    study.set_user_attr(attributes.VERSIONS, {EVIL: EVIL})
    study.set_user_attr(EVIL, EVIL)
    for trial in source.trials:
        lr = trial.params["lr"]
        distribution = trial.distributions["lr"]
        study.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params={**trial.params, EVIL: lr},
                distributions={**trial.distributions, EVIL: distribution},
                intermediate_values=trial.intermediate_values,
                user_attrs={**trial.user_attrs, attributes.MUTATION: EVIL, EVIL: EVIL}
                | ({attributes.ERROR: EVIL} if trial.state.name == "FAIL" else {}),
            )
        )
    text = report(study, tmp_path, interactive=interactive)
    assert html.escape(EVIL) in text
    assert text.count("<script>alert") == 0
    page = Page(text)
    assert page.handlers == []
    if not interactive:
        assert "script" not in page.tags
        for url in page.urls:
            assert b"<script" not in base64.b64decode(url.partition("base64,")[2])


def test_interactive_report_contains_plotly_once_and_loads_nothing(tmp_path: Path) -> None:
    page = Page(report(simulated(3), tmp_path, interactive=True))
    assert page.urls == []
    assert page.tags.count("script") == 1 + 4
    assert "img" not in page.tags


@pytest.mark.slow
def test_run_without_branches_has_a_report(tmp_path: Path) -> None:
    study = optuna.create_study()
    plan = miha.Plan.no_search(3)
    miha.optimize(study, classifier, plan=plan, show_progress_bar=False)
    page = Page(report(study, tmp_path))
    assert page.tags.count("img") == 3
    assert "Cycles" not in page.text


@pytest.mark.slow
def test_failed_trials_are_listed_with_their_errors(tmp_path: Path) -> None:
    study = simulated(30, seed=1)
    failed = [trial.number for trial in study.trials if trial.state.name == "FAIL"]
    assert failed
    text = Page(report(study, tmp_path)).text
    assert "Failed trials" in text
    assert "RuntimeError: simulated failure" in text


def test_write_report_rejects_a_study_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold a run"):
        write_report(optuna.create_study(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_report_includes_the_comparison(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_epochs": 9, "epochs": 9, "seconds": 1.0, "trial_epochs": None}
    runs = [
        Run(method=m, seed=0, value=v, test=None, curve=((1, 1.0), (9, v)), **settings)
        for m, v in (("miha", 0.5), ("no-search", 0.75))
    ]
    page = Page(report(simulated(1), tmp_path, comparison=Comparison(runs=tuple(runs))))
    assert page.tags.count("img") == 5
    assert "no-search" in page.text
    assert "0.75" in page.text


def test_find_comparison_accepts_any_run_of_the_comparison() -> None:
    storage = optuna.storages.InMemoryStorage()
    found = miha.compare(
        classifier,
        n_epochs=4,
        methods=["no-search-cosine", "no-search"],
        seeds=2,
        storage=storage,
        show_progress_bar=False,
    )
    other = optuna.create_study(study_name="compare-miha-0", storage=storage)
    assert find_comparison(other, storage) is None
    study = optuna.load_study(study_name="compare-no-search-1", storage=storage)
    again = find_comparison(study, storage)
    assert again is not None
    assert again.describe() == found.describe()


@pytest.mark.slow
def test_report_has_pictures_for_phones_and_says_when_and_where(tmp_path: Path) -> None:
    study = new_study()
    miha.optimize(study, classifier, plan=TINY, show_progress_bar=False)
    write_report(study, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<picture><source media=") == 4
    assert "min-width: 680px" not in page.replace(".plot { min-width: 680px; }", "")
    [about] = re.findall('<p class="about">(.*)</p>', page)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d · took 0:0\d:\d\d h · \w+", about)
    assert f"optuna_miha {miha.__version__}" in about
