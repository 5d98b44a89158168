"""Tiny data, networks and jobs for the tests of the training engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import torch
from optuna.distributions import CategoricalDistribution
from torch import Tensor, nn
from torch.utils.data import DataLoader

from optuna_miha import MihaSampler, Recipe
from optuna_miha._training.job import Context, Job, Outcome, run_job

CPU = torch.device("cpu")


class Doubling(DataLoader[Any]):
    """A loader that works on its batches."""

    def __iter__(self) -> Any:
        return ((2 * x, y) for x, y in super().__iter__())


def objects(n: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs ``(n, 4)`` and classes 0, 1, 2 that depend on them."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(dim=1)


def network() -> nn.Sequential:
    """Batch norm, so that there are buffers, and dropout, so that training draws."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
    )


def recipe(**changes: Any) -> Recipe:
    """A valid recipe, with ``changes``."""
    settings = {
        "model": changes.get("model") or network(),
        "loss_fn": nn.CrossEntropyLoss(),
        "train_data": objects(24, seed=0),
        "valid_data": objects(16, seed=1),
    }
    return Recipe(**(settings | changes))


def run_context(model_fn: Callable[[Any], Recipe], **changes: Any) -> Context:
    """What all jobs of a test have in common."""
    settings = {
        "valid_loss_fn": nn.CrossEntropyLoss(),
        "trainer": None,
        "sign": 1,
        "seed": 0,
        "devices": (CPU,),
        "ema_decay": 0.6,
    }
    return Context(model_fn=model_fn, **(settings | changes))


def succeed(context: Context, **job: Any) -> Outcome:
    """Run a job that must not fail."""
    outcome = run_job(context, Job(**({"params": {}, "state": None} | job)))
    assert outcome.error is None, outcome.error
    assert outcome.state is not None
    return outcome


def choices_of(trial: Any, name: str) -> tuple[Any, ...]:
    """What a categorical of the trial offers."""
    distribution = trial.distributions[name]
    assert isinstance(distribution, CategoricalDistribution)
    return distribution.choices


def first_trial(params: dict[str, Any] | None = None) -> optuna.Trial:
    """The first trial of a study with our sampler: it proposes initial values."""
    study = optuna.create_study(sampler=MihaSampler(seed=0))
    study.enqueue_trial(params or {})
    return study.ask()


def train_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int = 3, seed: int = 0
) -> None:
    """A few steps on all objects."""
    x, y = objects(seed=seed)
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
