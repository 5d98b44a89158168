"""Runs whose loader and generators are created once, beside ``model_fn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import SHORT, blobs, explicit, history, new_study, run, weights
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import optuna_miha as miha

pytestmark = pytest.mark.slow


def with_one_generator() -> tuple[Callable[[Any], miha.Recipe], torch.Generator]:
    """A ``model_fn`` whose sampler and loaders draw from one generator, as in a new process."""
    generator = torch.Generator().manual_seed(5)
    train, valid = TensorDataset(*blobs(60, seed=0)), TensorDataset(*blobs(30, seed=1))
    sampler = WeightedRandomSampler(torch.ones(60), 60, generator=generator)
    loader = DataLoader(train, 16, sampler=sampler, generator=generator)
    other = DataLoader(valid, 16, generator=generator)

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.train_data, recipe.valid_data = loader, other
        return recipe

    return model_fn, generator


@pytest.fixture(scope="module")
def whole() -> miha.Result:
    """An uninterrupted run."""
    return run(new_study(), with_one_generator()[0], plan=SHORT)


def test_run_leaves_the_generator_as_it_was(whole: miha.Result) -> None:
    model_fn, generator = with_one_generator()
    before = generator.get_state()
    for _ in range(2):
        again = run(new_study(), model_fn, plan=SHORT)
        assert torch.equal(before, generator.get_state())
        assert history(again) == history(whole)


def test_run_that_stops_after_every_trial_equals_an_uninterrupted_one(whole: miha.Result) -> None:
    study = new_study()

    def stop(study: optuna.Study, trial: Any) -> None:
        study.stop()

    n_calls, resumed = 0, None
    while resumed is None or resumed.n_epochs_trained < whole.n_epochs_trained:
        resumed = run(study, with_one_generator()[0], plan=SHORT, callbacks=[stop])
        n_calls += 1
    assert n_calls > 1
    assert history(resumed) == history(whole)
    assert same(weights(resumed), weights(whole))


@pytest.mark.long
@pytest.mark.slow
def test_workers_give_the_same_result(whole: miha.Result) -> None:
    result = run(new_study(), with_one_generator()[0], plan=SHORT, n_jobs=2)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
