"""A trainer that prepares network and optimizer with Hugging Face Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.networks import run_context, succeed
from helpers.problems import classifier
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import optuna_miha as miha
from optuna_miha._search.learning_rate import half_cosine

accelerate = pytest.importorskip("accelerate")


class Recorder(torch.optim.SGD):
    """Records the rate of every step."""

    rates: list[float]

    def step(self, closure: Any = None) -> Any:
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
    accelerator = accelerate.Accelerator(cpu=True)
    data = DataLoader(TensorDataset(*recipe.train_data), batch_size=30, shuffle=True)
    scheduler = LambdaLR(recipe.optimizer, lambda step: 0.5**step)
    model, optimizer, loader, schedule = accelerator.prepare(
        recipe.model, recipe.optimizer, data, scheduler
    )
    for _ in range(n_epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = recipe.loss_fn(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
        yield miha.EpochResult(value=loss.item())


def test_annealing_and_scheduler_reach_the_steps_of_a_prepared_optimizer() -> None:
    rates: list[float] = []

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        trial.suggest_float("unused", 0.0, 1.0)
        recipe.optimizer = Recorder(recipe.model.parameters(), lr=0.25)
        recipe.optimizer.rates = rates
        return recipe

    context = run_context(model_fn, trainer=trainer)
    succeed(context, params={"unused": 0.5}, n_epochs=3, anneal=True)
    expected = [0.25 * 0.5**step * half_cosine(step // 2, 3) for step in range(6)]
    assert rates == pytest.approx(expected)
