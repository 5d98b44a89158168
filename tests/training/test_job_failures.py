"""Jobs that fail: their outcomes hold the error, and no exception is raised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.jobs import (
    UNUSED_PARAM,
    fixed_model_fn,
    trainer_of_values,
)
from helpers.networks import network, recipe, run_context, succeed
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha import EpochResult, Recipe
from optuna_miha._training.job import Job, run_job


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_is_an_error_without_an_exception(value: float) -> None:
    context = run_context(fixed_model_fn(), trainer=trainer_of_values(1.0, value, 0.5))
    outcome = run_job(context, Job(params=UNUSED_PARAM, state=None, n_epochs=3))
    assert outcome.state is None
    assert outcome.exception is None
    assert outcome.error == f"The monitored value is {value} after 2 epochs."
    assert len(outcome.results) == outcome.begun == 2


@pytest.mark.parametrize("ema_decay", [0.0, 0.6])
def test_loss_that_is_nan_is_an_error_without_an_exception(ema_decay: float) -> None:
    model_fn = fixed_model_fn(loss_fn=lambda outputs, targets: (outputs * math.nan).sum())
    outcome = run_job(
        run_context(model_fn, ema_decay=ema_decay),
        Job(params=UNUSED_PARAM, state=None, n_epochs=3),
    )
    assert outcome.state is None and outcome.exception is None
    assert outcome.error == "The monitored value is nan after 1 epochs."
    assert len(outcome.results) == 1


def test_exception_in_model_fn_is_returned() -> None:
    def model_fn(trial: Any) -> Recipe:
        raise ZeroDivisionError("mine")

    outcome = run_job(run_context(model_fn), Job(params=UNUSED_PARAM, state=None, n_epochs=2))
    assert outcome.error == "ZeroDivisionError: mine"
    assert isinstance(outcome.exception, ZeroDivisionError)
    assert (outcome.results, outcome.begun, outcome.state) == ((), 0, None)


def test_exception_in_training_is_returned_with_the_previous_epochs() -> None:
    calls: list[int] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise ZeroDivisionError("mine")
        return nn.functional.cross_entropy(outputs, targets)

    context = run_context(fixed_model_fn(loss_fn=loss_fn))
    outcome = run_job(context, Job(params=UNUSED_PARAM, state=None, n_epochs=3))
    assert outcome.error == "ZeroDivisionError: mine"
    assert len(outcome.results) == 1
    assert outcome.begun == 2
    assert outcome.state is None


def test_missing_parameter_is_an_error() -> None:
    outcome = run_job(
        run_context(fixed_model_fn()), Job(params={"lr": 1.0}, state=None, n_epochs=1)
    )
    assert outcome.error is not None and "unused" in outcome.error


def test_changed_architecture_is_an_error() -> None:
    parent = succeed(run_context(fixed_model_fn()), params=UNUSED_PARAM, n_epochs=1)
    outcome = run_job(
        run_context(wider_network), Job(params=UNUSED_PARAM, state=parent.state, n_epochs=1)
    )
    assert isinstance(outcome.exception, miha.exceptions.InheritanceError)
    assert "'4.weight'" in str(outcome.error)


def wider_network(trial: Any) -> Recipe:
    trial.suggest_float("unused", 0.0, 1.0)
    model = network()
    model[4] = nn.Linear(6, 4)
    return recipe(model=model)


def test_trainer_that_stops_early_ends_the_job() -> None:
    context = run_context(fixed_model_fn(), trainer=trainer_of_values(3.0, 2.0))
    outcome = succeed(context, params=UNUSED_PARAM, n_epochs=5)
    assert len(outcome.results) == outcome.begun == outcome.state["epoch"] == 2


def test_trainer_is_stopped_after_the_last_epoch() -> None:
    def endless(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        while True:
            yield EpochResult(value=1.0)

    outcome = succeed(
        run_context(fixed_model_fn(), trainer=endless), params=UNUSED_PARAM, n_epochs=3
    )
    assert len(outcome.results) == 3


def test_trainer_that_yields_nothing_is_an_error() -> None:
    context = run_context(fixed_model_fn(), trainer=trainer_of_values())
    outcome = run_job(context, Job(params=UNUSED_PARAM, state=None, n_epochs=2))
    assert isinstance(outcome.exception, ValueError)
    assert "must yield a result after each of 2 epochs, got none" in str(outcome.error)
    assert (outcome.results, outcome.begun, outcome.state) == ((), 0, None)


@pytest.mark.parametrize("yielded", [0.5, {"value": 0.5}])
def test_trainer_that_yields_another_type_gets_a_helpful_error(yielded: Any) -> None:
    def trainer(built: Recipe, n_epochs: int) -> Iterator[Any]:
        for _ in range(n_epochs):
            yield yielded

    context = run_context(fixed_model_fn(), trainer=trainer)
    outcome = run_job(context, Job(params=UNUSED_PARAM, state=None, n_epochs=2))
    assert isinstance(outcome.exception, TypeError)
    assert "EpochResult" in str(outcome.error)
    assert type(yielded).__name__ in str(outcome.error)


def own_optimizer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
    """A trainer that steps an optimizer of its own."""
    optimizer = torch.optim.SGD(built.model.parameters(), lr=0.1)
    for _ in range(n_epochs):
        built.model[0].weight.grad = torch.ones_like(built.model[0].weight)
        optimizer.step()
        yield EpochResult(value=0.0)


def test_trainer_with_an_optimizer_of_its_own_is_refused() -> None:
    outcome = run_job(
        run_context(fixed_model_fn(), trainer=own_optimizer),
        Job(params=UNUSED_PARAM, state=None, n_epochs=2),
    )
    assert isinstance(outcome.exception, ValueError)
    assert "must train with `recipe.optimizer`" in str(outcome.exception)
    assert outcome.results == ()


def test_trainer_with_an_optimizer_of_its_own_is_accepted_if_the_recipe_has_none() -> None:
    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        built.optimizer = None
        return built

    context = run_context(model_fn, trainer=own_optimizer)
    assert len(succeed(context, params=UNUSED_PARAM, n_epochs=2).results) == 2
