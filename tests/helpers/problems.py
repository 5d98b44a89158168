"""Small problems for tests: a few dozen samples, networks with a few dozen weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import Tensor, nn

import optuna_miha as miha

TINY = miha.Plan(90, startup=4, fixing_epochs=3, restarts=False, anneal="cosine")
"""A start-up race, two cycles and a final phase; no restarts."""

SHORT = miha.Plan(40, startup=1, fixing_epochs=3, restarts=False, anneal="cosine")
"""Trunk, population, trunk and final phase."""


def blobs(n_samples: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three noisy classes in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n_samples) % 3
    centers = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, -1], [0, 0, 1, 0]])
    return centers[y] + 0.7 * torch.randn(n_samples, 4, generator=generator), y


def classifier(trial: Any) -> miha.Recipe:
    """A network with activations, dropout and batch norm, and the default search space."""
    model = nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3)
    )
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        train_data=blobs(60, seed=0),
        valid_data=blobs(30, seed=1),
        batch_size=16,
    )


def accuracy_classifier(trial: Any) -> miha.Recipe:
    """The same with batches of 32, monitoring the accuracy, which must be maximized."""
    recipe = classifier(trial)
    return miha.Recipe(
        model=recipe.model,
        loss_fn=recipe.loss_fn,
        train_data=recipe.train_data,
        valid_data=recipe.valid_data,
        monitor="accuracy",
    )


def explicit(trial: Any) -> miha.Recipe:
    """The same with an explicit search space, by the ``suggest_*`` functions."""
    recipe = classifier(trial)
    miha.suggest_activations(trial, recipe.model)
    recipe.optimizer = miha.suggest_optimizer(trial, recipe.model.parameters())
    recipe.batch_size = miha.suggest_batch_size(trial, initial=16)
    return recipe


class After:
    """A callback that calls ``action`` once, after the ``n``-th trial."""

    def __init__(self, n: int, action: Callable[[], None]) -> None:
        self.n, self.action = n, action

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.n -= 1
        if self.n == 0:
            self.action()


def new_study(storage: Any = None, *, seed: int = 0, **settings: Any) -> optuna.Study:
    """Create a study named ``tiny`` with a seeded sampler, or load it if it exists."""
    settings = {"sampler": miha.MihaSampler(seed=seed), "pruner": miha.SlopePruner()} | settings
    return optuna.create_study(storage=storage, study_name="tiny", load_if_exists=True, **settings)


def run(study: optuna.Study, model_fn: Callable[..., Any] = classifier, **settings: Any) -> Any:
    """Call ``optimize`` with the plan ``TINY`` and without a progress bar."""
    settings = {"plan": TINY, "show_progress_bar": False} | settings
    return miha.optimize(study, model_fn, **settings)


def weights(result: miha.Result) -> dict[str, Tensor]:
    """The state dict of the model."""
    return dict(result.model.state_dict())


def history(result: miha.Result) -> list[tuple[Any, ...]]:
    """The segments of a run, without trial numbers and times."""
    rows = [
        (s.cycle, ROLES[s.role], s.branch, s.birth, s.trained, s.mutation, s.scores, s.state.name)
        for s in result.segments
    ]
    return sorted(rows, key=lambda row: row[:3])


ROLES = {"startup": 0, "branch": 1, "trunk": 2, "restart": 3, "final": 4}
"""The order of the roles within a cycle."""
