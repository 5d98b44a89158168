"""The log of a run tells its turns, in the words of ``Result.describe``."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator

import optuna
import pytest
import torch
from helpers.problems import TINY, After, blobs, classifier, new_study, run
from helpers.segments import segment
from optuna.study import StudyDirection
from torch import nn

import optuna_miha as miha
from optuna_miha._history.curve import EpochResult
from optuna_miha._history.lineage import Lineage
from optuna_miha._run.progress import Progress, open_bar


@pytest.fixture(autouse=True)
def _info_log() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    yield
    optuna.logging.disable_propagation()
    optuna.logging.set_verbosity(verbosity)


def overfitting(trial: optuna.Trial) -> miha.Recipe:
    """A wide network for labels that cannot be learned."""
    x, y = blobs(30)
    return miha.Recipe(
        model=nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(x, y.roll(7)),
        valid_data=blobs(60, seed=1),
        optimizer=None,
        batch_size=8,
    )


@pytest.mark.slow
def test_log_and_description_use_the_same_lines(caplog: pytest.LogCaptureFixture) -> None:
    result = run(new_study())
    log = "\n".join(record.message for record in caplog.records).lower()
    described = result.describe().splitlines()
    [end] = [k for k, line in enumerate(described) if line.startswith("best value ")]
    lines, best = described[:end], described[end]
    assert {line.split(" ")[0] for line in lines} == {"start-up", "cycle", "final"}
    for line in lines:
        assert line.removesuffix(", not continued").lower() in log
    assert f"result: the {best}" in log
    assert f"the last {result.lineage[-1].trained} epochs" in log


def test_log_says_why_before_the_run_turns_to_restarts(caplog: pytest.LogCaptureFixture) -> None:
    reason = "it overfits, and the rest of the budget is spent on restarts"
    said_before: list[bool] = []

    def notice(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.user_attrs["miha:role"] == "restart":
            said_before.append(reason in caplog.text)

    result = run(
        new_study(),
        overfitting,
        plan=miha.Plan(90, startup=1, fixing_epochs=6, anneal="cosine"),
        callbacks=[notice],
    )
    restarts = [s for s in result.segments if s.role == "restart"]
    assert said_before == [True] * len(restarts) != []
    assert caplog.text.count(reason) == 1
    for number, restart in enumerate(restarts, start=1):
        [line] = [r.message for r in caplog.records if f"Restart {number}: " in r.message]
        assert f"trial {restart.number})" in line


def test_a_stopped_run_says_that_it_can_be_continued(caplog: pytest.LogCaptureFixture) -> None:
    run(new_study(), callbacks=[lambda study, trial: study.stop()])
    assert f"of {TINY.n_epochs} epochs by `timeout` or `study.stop()`" in caplog.text


@pytest.mark.slow
def test_a_comparison_logs_one_line_per_run(caplog: pytest.LogCaptureFixture) -> None:
    methods = ["miha", "no-search"]
    miha.compare(classifier, n_epochs=30, methods=methods, seeds=1, show_progress_bar=False)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("Run 1 of 2, miha with seed 0: validation loss ")


def test_a_bar_in_a_file_writes_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("optuna_miha._run.progress._FILE_INTERVAL", 0.0)
    with open_bar(10_000, show=True) as bar:
        for _ in range(10_000):
            bar.update()
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 23
    assert "\r" not in stream.getvalue()


def test_the_bar_ends_with_the_best_value_of_a_complete_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    lineage = Lineage(StudyDirection.MINIMIZE, [segment(value=0.5)])
    with Progress(3, lineage, n_workers=1, show=True) as progress:
        progress.count_epoch(EpochResult(value=0.25))  # Of a segment that is pruned.
        progress.finish_phase()
    assert stream.getvalue().splitlines()[-1].endswith("best 0.5]")


def test_the_bar_of_several_workers_counts_the_epochs_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("optuna_miha._run.progress._FILE_INTERVAL", 0.0)
    study = new_study()
    plan = miha.Plan(50, n_workers=3)
    run(study, plan=plan, show_progress_bar=True, callbacks=[After(3, study.stop)])
    assert "start-up race of 3" in stream.getvalue()
    assert "4/16 epochs x 3" in stream.getvalue()
    run(study, plan=plan, show_progress_bar=True)
    *_, last = stream.getvalue().splitlines()
    assert re.match(r"round 1, 3 heirs: 100%.* 16/16 epochs x 3 \[.*, best 0", last)


@pytest.mark.parametrize(("smoothing", "is_warned"), [(0, True), (0.1, False)])
def test_a_loss_that_few_samples_cannot_confirm_is_named(
    smoothing: float, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def separable(trial: optuna.Trial) -> miha.Recipe:
        x = torch.linspace(-3, 3, 12)[:, None]
        data = (x, (x[:, 0] > 0).long())
        loss_fn = nn.CrossEntropyLoss(label_smoothing=smoothing)
        network = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
        return miha.Recipe(model=network, loss_fn=loss_fn, train_data=data, valid_data=data)

    result = run(new_study(), separable, plan=miha.Plan(60))
    assert result.value < 1 / 13 or not is_warned
    warnings = [r.message for r in caplog.records if "tell a better network" in r.message]
    assert len(warnings) == is_warned
    assert all("CrossEntropyLoss(label_smoothing=1 / 13)" in text for text in warnings)
