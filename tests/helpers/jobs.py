"""Networks and trainers for the tests of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import optuna_miha as miha
from helpers.networks import network, recipe, samples
from optuna_miha import EpochResult, Recipe
from optuna_miha._model.optimizers import make_optimizer
from optuna_miha._training.outcome import Outcome

PARAMS = {
    "activation.2": "relu",
    "optimizer": "adam",
    "lr": 0.01,
    "weight_decay": 0.0,
    "batch_size": 7,
}

UNUSED_PARAM = {"unused": 0.5}


def model_fn_with_suggestions(trial: Any) -> Recipe:
    """A ``model_fn`` with the suggestions in ``PARAMS``."""
    model = network()
    miha.suggest_activations(trial, model)
    return recipe(
        model=model,
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=miha.suggest_batch_size(trial, low=4),
    )


def fixed_model_fn(
    optimizer: str = "adam", *, loader: bool = False, **changes: Any
) -> Callable[[Any], Recipe]:
    """A ``model_fn`` with one parameter, ``UNUSED_PARAM``, which has no effect."""

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0.0, 1.0)
        model = network()
        data: Any = samples(24)
        if loader:
            data = DataLoader(TensorDataset(*data), batch_size=7, shuffle=True)
        built = recipe(**({"model": model, "train_data": data, "batch_size": 7} | changes))
        built.optimizer = make_optimizer(
            optimizer, model.parameters(), lr=0.02, weight_decay=1e-3, momentum=0.9
        )
        return built

    return model_fn


def values_of(*outcomes: Outcome) -> list[tuple[float, float, float | None]]:
    return [(r.value, r.train_loss, r.ema_value) for o in outcomes for r in o.results]


def trainer_of_values(*values: float) -> Callable[..., Iterator[EpochResult]]:
    """A trainer whose epochs have the given values; each adds 1 to the weights."""

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for value in values[:n_epochs]:
            with torch.no_grad():
                built.model[0].weight += 1
            built.optimizer.step()  # Without gradients, it does nothing.
            yield EpochResult(value=value)

    return trainer
