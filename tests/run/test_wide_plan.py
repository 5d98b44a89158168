"""Runs with a plan for several workers."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.failures import KillsOnce, classifier_with
from helpers.problems import After, classifier, explicit, history, new_study, run, weights

import optuna_miha as miha
from optuna_miha.exceptions import PlanMismatchError

PLAN = miha.Plan(72, n_workers=3)


def n_workers_of(study: Any) -> Any:
    return study.user_attrs["miha:plan"]["n_workers"]


@pytest.mark.slow
def test_an_interrupted_run_with_other_workers_gives_the_model_of_the_whole_run() -> None:
    whole = run(new_study(), explicit, plan=PLAN)
    assert [s.trained for s in whole.segments if s.role == "branch"] == [19] * 3
    study = new_study()
    run(study, explicit, plan=PLAN, callbacks=[After(2, study.stop)])
    resumed = run(study, explicit, plan=None, n_jobs=2)
    assert history(resumed) == history(whole)
    assert n_workers_of(study) == 3
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.slow
def test_restarts_of_several_workers_are_resumed_bit_identically() -> None:
    plan = miha.Plan(120, n_workers=3)
    whole = run(new_study(), noisy, plan=plan)
    restarts = [s for s in whole.segments if s.role == "restart"]
    assert {s.branch for s in restarts} == {0, 1, 2}
    assert [s.mutation for s in restarts].count("no change") <= 1
    first = min(s.number for s in restarts)
    for n in (first + 1, first + 2):
        study = new_study()
        with pytest.raises(KeyboardInterrupt):
            run(study, noisy, plan=plan, callbacks=[After(n, interrupt)])
        assert history(run(study, noisy, plan=plan)) == history(whole)


def interrupt() -> None:
    raise KeyboardInterrupt


def noisy(trial: Any) -> miha.Recipe:
    """Targets without a pattern, which every network overfits."""
    recipe = classifier(trial)
    for data in (recipe.train_data, recipe.valid_data):
        x, y = data
        y.copy_(torch.randint(3, y.shape, generator=torch.Generator().manual_seed(len(x))))
    return recipe


@pytest.mark.slow
def test_the_plan_of_a_new_study_is_as_wide_as_its_workers() -> None:
    study = new_study()
    with ThreadPoolExecutor(3) as executor:
        result = run(study, plan=None, n_epochs=30, executor=executor)
    assert n_workers_of(study) == 3
    assert history(result) == history(run(new_study(), plan=miha.Plan(30, n_workers=3)))


def test_a_budget_that_is_too_small_for_all_workers_uses_some_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    with ThreadPoolExecutor(8) as executor, caplog.at_level(logging.WARNING, "optuna.miha"):
        run(study, plan=miha.Plan(16), executor=executor)
    assert n_workers_of(study) == 2
    assert "16 epochs suffice for 2 of 8 workers" in caplog.text
    assert "Raise `n_epochs` to 64" in caplog.text


class OneAtATime(Executor):
    """An executor that does not say how many workers it has."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_of_unknown_size_has_the_plan_of_one_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    with caplog.at_level(logging.WARNING, "optuna.miha"):
        run(study, plan=None, n_epochs=8, executor=OneAtATime())
    assert n_workers_of(study) is None
    assert "The `executor` does not say how many workers it has" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "optuna.miha"):
        run(study, plan=None, n_epochs=8, executor=OneAtATime())
    assert not caplog.text  # The plan is that of the study.


@pytest.mark.long
def test_a_killed_worker_process_of_a_wide_plan_does_not_change_the_model(tmp_path: Path) -> None:
    whole_folder, folder = tmp_path / "whole", tmp_path / "killed"
    whole_folder.mkdir()
    folder.mkdir()
    plan = miha.Plan(32, n_workers=4)
    whole = run(new_study(), classifier_with(lambda: KillsOnce(whole_folder)), plan=plan)

    def arm() -> None:
        (folder / "armed").touch()

    model_fn = classifier_with(lambda: KillsOnce(folder))
    result = run(new_study(), model_fn, plan=plan, n_jobs=2, callbacks=[After(4, arm)])
    assert (folder / "dead").exists(), "no worker died"
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


class Shrinking(OneAtATime):
    """An executor that says how many workers are connected, such as that of Dask."""

    def __init__(self, n_workers: int) -> None:
        self._max_workers = n_workers


def test_an_executor_without_connected_workers_has_the_plan_of_one_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    with caplog.at_level(logging.WARNING, "optuna.miha"):
        run(study, plan=None, n_epochs=8, executor=Shrinking(0))
    assert n_workers_of(study) is None
    assert "No worker of the `executor` is connected yet" in caplog.text


def test_a_run_goes_on_with_the_workers_that_are_left(caplog: pytest.LogCaptureFixture) -> None:
    executor, study = Shrinking(3), new_study()

    def vanish() -> None:
        executor._max_workers = 2

    with caplog.at_level(logging.WARNING, "optuna.miha"):
        result = run(
            study, plan=None, n_epochs=30, executor=executor, callbacks=[After(3, vanish)]
        )
    assert n_workers_of(study) == 3
    assert caplog.text.count("The executor has 2 of 3 workers left") == 1
    assert history(result) == history(run(new_study(), plan=miha.Plan(30, n_workers=3)))


def test_the_number_of_workers_of_a_study_does_not_change() -> None:
    study = new_study()
    run(study, plan=miha.Plan(16))
    run(study, plan=miha.Plan(16, n_workers=1))
    with pytest.raises(PlanMismatchError, match=r"n_workers=2 \(stored: 1\)"):
        run(study, plan=miha.Plan(16, n_workers=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_epochs": 31, "n_workers": 4}, "need 32 for a race and a round.*`n_workers` to 3"),
        ({"anneal": "cosine", "n_workers": 2}, "must be 1 in a plan of cycles"),
        ({"n_workers": 0}, "must be at least 1"),
        ({"n_workers": 2.5}, "must be an integer"),
    ],
)
def test_invalid_numbers_of_workers_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        miha.Plan(**arguments)
