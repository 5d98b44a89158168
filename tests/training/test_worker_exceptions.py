"""Exceptions of the user's code in workers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.networks import run_context
from helpers.problems import explicit, new_study, run

import optuna_miha as miha
from optuna_miha._training import worker
from optuna_miha._training.job import Job
from optuna_miha._training.pools import OnExecutor


@pytest.fixture(autouse=True)
def forget_contexts() -> None:
    worker._cached_context = None


class ErrorWithTwoArguments(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.__notes__ = ["a note"]  # As `add_note` does, from Python 3.11 on.


class ErrorWithPrefix(ValueError):
    """Would be unpickled with the prefix twice."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


def exception_from_worker(fail: Callable[[], Any]) -> Any:
    """The exception in a worker as the coordinator receives it."""

    def model_fn(trial: Any) -> miha.Recipe:
        fail()
        raise AssertionError("It did not fail.")

    with ThreadPoolExecutor(1) as executor:
        workers = OnExecutor(run_context(model_fn), executor)
        [outcome] = workers.run([Job(params={}, state=None, n_epochs=1)], lambda *_: None)
    return outcome.exception


def test_exceptions_from_workers_are_unchanged() -> None:
    def fail(cls: Any, *args: Any) -> None:
        raise cls(*args)

    exception = exception_from_worker(lambda: fail(ErrorWithTwoArguments, 7, "in the worker"))
    assert type(exception) is ErrorWithTwoArguments
    assert str(exception) == "7: in the worker"
    assert exception.code == 7
    assert exception.__notes__ == ["a note"]
    assert str(exception_from_worker(lambda: fail(ErrorWithPrefix, 3))) == "code 3"
    assert exception_from_worker(lambda: fail(FileNotFoundError, 2, "none")).errno == 2
    assert exception_from_worker(lambda: b"\xff".decode()).start == 0
    assert type(exception_from_worker(lambda: fail(KeyError, object()))) is KeyError


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_exception_with_two_arguments_is_caught_for_any_number_of_jobs(n_jobs: int) -> None:
    def fail(output: Any, target: Any) -> Any:
        raise ErrorWithTwoArguments(7, "no SGD")

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        if trial.params["optimizer"] == "sgd":
            recipe.loss_fn = fail
        return recipe

    study = new_study()
    run(study, model_fn, n_jobs=n_jobs, catch=ErrorWithTwoArguments)
    errors = [t.user_attrs.get("miha:error") for t in study.trials]
    assert "ErrorWithTwoArguments: 7: no SGD" in errors
