"""A resumed run gives the same result as an uninterrupted one; budgets and plans may grow."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.kills import start_process
from helpers.problems import TINY, blobs, classifier, explicit, history, new_study, run, weights
from optuna.trial import TrialState
from torch import nn

import optuna_miha as miha

pytestmark = pytest.mark.slow


def train_until_killed(storage: str, fatal: int) -> None:
    """Train, and kill the process when the loss is computed for the ``fatal``-th time."""
    n_losses = 0

    def killing_loss(output: Any, target: Any) -> Any:
        nonlocal n_losses
        n_losses += 1
        if n_losses == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(output, target)

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.loss_fn = killing_loss
        return recipe

    run(new_study(storage), model_fn)


def explicit_loss(trial: Any) -> miha.Recipe:
    """The same problem without killing the process."""
    recipe = explicit(trial)
    recipe.loss_fn = nn.functional.cross_entropy
    return recipe


@pytest.fixture(scope="module")
def whole_explicit() -> Any:
    """An uninterrupted run of ``explicit_loss``."""
    return run(new_study(), explicit_loss)


@pytest.fixture(scope="module")
def whole_random_labels() -> Any:
    """An uninterrupted run of ``random_labels``, with restarts from the initial weights."""
    return run(new_study(seed=1), random_labels, plan=OVERFITTING)


@pytest.mark.parametrize(
    "fatal", [*(pytest.param(n, marks=pytest.mark.long) for n in (50, 170, 333)), 480]
)
def test_killed_run_resumes_bit_identically(
    fatal: int, whole_explicit: Any, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    process = start_process(train_until_killed, storage, fatal)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    study = new_study(storage)
    n_before = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
    resumed = run(study, explicit_loss)
    assert history(resumed) == history(whole_explicit)
    assert same(weights(resumed), weights(whole_explicit))
    assert n_before < len(whole_explicit.segments), "the run was not interrupted"
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


class RaiseAfter:
    """A callback that raises ``error`` after the ``n``-th trial."""

    def __init__(self, n: int, error: type[BaseException]) -> None:
        self.n = n
        self.error = error

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.n -= 1
        if self.n == 0:
            raise self.error


@pytest.mark.parametrize(
    ("n", "error"),
    [
        (1, KeyboardInterrupt),
        pytest.param(4, KeyboardInterrupt, marks=pytest.mark.long),
        (7, RuntimeError),
        pytest.param(8, KeyboardInterrupt, marks=pytest.mark.long),
    ],
)
def test_run_interrupted_between_two_siblings_resumes_with_the_others(
    n: int, error: type[BaseException], whole_tiny: Any, tmp_path: Path
) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(error):
        run(study, callbacks=[RaiseAfter(n, error)])
    assert not study.get_trials(states=(TrialState.RUNNING,))
    resumed = run(new_study(f"sqlite:///{tmp_path}/study.db"))
    assert history(resumed) == history(whole_tiny)
    assert same(weights(resumed), weights(whole_tiny))


OVERFITTING = miha.Plan(60, startup=1, fixing_epochs=4, branch_epochs=2, anneal="cosine")


def random_labels(trial: Any) -> miha.Recipe:
    """A problem with random training labels, on which a network can only overfit."""
    recipe = classifier(trial)
    (x, _), generator = blobs(60, seed=0), torch.Generator().manual_seed(0)
    recipe.train_data = x, torch.randint(3, (60,), generator=generator)
    return recipe


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_run_interrupted_between_restarts_resumes_bit_identically(
    n_jobs: int, whole_random_labels: Any, tmp_path: Path
) -> None:
    whole = whole_random_labels
    restarts = [s for s in whole.segments if s.role == "restart"]
    assert len(restarts) >= 2
    assert {s.birth for s in restarts} == {0}
    storage = f"sqlite:///{tmp_path}/study.db"
    interrupt = RaiseAfter(len(whole.segments) - 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(
            new_study(storage, seed=1),
            random_labels,
            plan=OVERFITTING,
            n_jobs=n_jobs,
            callbacks=[interrupt],
        )
    resumed = run(new_study(storage, seed=1), random_labels, plan=OVERFITTING, n_jobs=n_jobs)
    assert history(resumed) == history(whole)
    assert same(weights(resumed), weights(whole))


def test_restart_trains_the_best_parameters_from_the_initial_weights(
    whole_random_labels: Any,
) -> None:
    whole = whole_random_labels
    first, second, *_ = [s for s in whole.segments if s.role == "restart"]
    before = [s for s in whole.segments if s.role != "restart" and s.value is not None]
    best = min(before, key=lambda s: s.value).params
    assert first.params == best | {"lr": pytest.approx(2 * best["lr"], rel=1e-3)}
    assert first.parent is None
    assert first.mutation == "lr 0.001 -> 0.002"
    assert second.mutation != first.mutation
    assert first.scores[0] == pytest.approx(before[0].scores[0], rel=0.01), "the same start"
    assert "restarts from the initial weights" in whole.describe()
    assert whole.n_epochs_trained == 60


@pytest.mark.parametrize(
    ("file", "advice"),
    [("run.db", "Run the same script again to resume"), (None, "The study is in memory")],
)
def test_interrupted_run_says_how_to_resume(
    file: str | None, advice: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = None if file is None else f"sqlite:///{tmp_path / file}"
    optuna.logging.enable_propagation()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(new_study(storage), callbacks=[RaiseAfter(5, KeyboardInterrupt)])
    finally:
        optuna.logging.disable_propagation()
    assert advice in caplog.text
    # The traceback of a script ends with its notes; Python 3.10 has none.
    assert advice in "".join(getattr(caught.value, "__notes__", [advice]))


def test_finished_run_is_returned_without_training() -> None:
    study = new_study()
    first = run(study)
    n_trials = len(study.trials)
    second = run(study)
    assert len(study.trials) == n_trials
    assert history(first) == history(second)
    assert same(weights(first), weights(second))


def test_larger_budget_continues_a_finished_run() -> None:
    study = new_study()
    first = run(study)
    second = miha.optimize(study, classifier, n_epochs=150, show_progress_bar=False)
    assert second.n_epochs_trained == 150
    assert history(second)[: len(first.segments)] == history(first)
    later = second.segments[len(first.segments) :]
    assert later[0].role == "trunk"
    assert later[0].parent == first.trial.number
    rates = {s.number: s.params["lr"] for s in second.segments}
    [final] = [s for s in first.segments if s.role == "final"]
    assert final.parent is not None
    assert final == first.segments[-1]
    assert rates[final.number] == pytest.approx(3 * rates[final.parent], rel=1e-3)
    assert later[0].params["lr"] == pytest.approx(rates[final.parent], rel=1e-3)
    assert later[-1].role == "final"
    assert study.best_value <= first.value


def test_budget_of_an_unfinished_run_may_grow() -> None:
    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        study.stop()

    study = new_study()
    run(study, callbacks=[stop])
    result = miha.optimize(study, classifier, n_epochs=120, show_progress_bar=False)
    assert result.n_epochs_trained == 120
    assert sum(s.role == "startup" for s in result.segments) == TINY.race_size(TINY.n_epochs)


@pytest.mark.parametrize("n_epochs", [30, 90, None])
def test_smaller_or_omitted_budget_trains_nothing(n_epochs: int | None) -> None:
    study = new_study()
    first = run(study)
    again = miha.optimize(study, classifier, n_epochs=n_epochs, show_progress_bar=False)
    assert history(again) == history(first)


def test_different_plan_is_rejected_with_advice() -> None:
    study = new_study()
    first = run(study)
    plan = miha.Plan(90, startup=4, fixing_epochs=3, population_size=5, anneal="cosine")
    with pytest.raises(miha.exceptions.PlanMismatchError) as caught:
        run(study, plan=plan)
    assert "population_size=5 (stored: 3)" in str(caught.value)
    assert "another name" in str(caught.value)
    assert history(run(study)) == history(first)


def test_changed_search_space_is_rejected_with_the_parameter_name() -> None:
    study = new_study()
    run(study)

    def changed(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        trial.suggest_float("temperature", 0.0, 1.0)
        return recipe

    with pytest.raises(miha.exceptions.SearchSpaceChangedError, match="temperature"):
        run(study, changed)


def test_enqueued_trial_of_an_interrupted_run_is_not_lost(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = new_study(storage)
    study.enqueue_trial({"lr": 0.0123}, user_attrs={"memo": "mine"})
    with pytest.raises(KeyboardInterrupt):
        run(study, callbacks=[RaiseAfter(3, KeyboardInterrupt)])
    result = run(new_study(storage))
    mine = [s for s in result.segments if s.params["lr"] == 0.0123 and s.role == "branch"]
    assert mine
    assert study.trials[mine[0].number].user_attrs["memo"] == "mine"


def test_load_result_names_the_folder_of_a_missing_checkpoint(tmp_path: Path) -> None:
    study = new_study()
    run(study, checkpoint_dir=tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(miha.exceptions.CheckpointError, match=r"missing from the folder"):
        miha.load_result(study, classifier)


def test_load_result_with_the_wrong_folder_changes_nothing(tmp_path: Path) -> None:
    study = new_study()
    first = run(study, checkpoint_dir=tmp_path / "right")
    with pytest.raises(miha.exceptions.CheckpointError):
        miha.load_result(study, classifier, checkpoint_dir=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    assert same(weights(miha.load_result(study, classifier)), weights(first))


@pytest.mark.parametrize(
    "n", [6, 7, 8, *(pytest.param(n, marks=pytest.mark.long) for n in (9, 10, 11))]
)
def test_run_interrupted_around_an_enqueued_trial_can_be_resumed(n: int) -> None:
    study = new_study(pruner=optuna.pruners.NopPruner())
    study.enqueue_trial({"lr": 0.01})
    with pytest.raises(KeyboardInterrupt):
        run(study, callbacks=[RaiseAfter(n, KeyboardInterrupt)])
    assert run(study).n_epochs_trained == TINY.n_epochs
