"""Small data, networks, recipes and jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import torch
from optuna.distributions import CategoricalDistribution
from torch import Tensor, nn
from torch.utils.data import DataLoader

from optuna_miha import MihaSampler, Recipe
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.outcome import Outcome

CPU = torch.device("cpu")


class Doubling(DataLoader[Any]):
    """A loader that changes its batches."""

    def __iter__(self) -> Any:
        return ((2 * x, y) for x, y in super().__iter__())


def samples(n: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs of shape ``(n, 4)``, and classes 0, 1, 2 that depend on them."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(dim=1)


def network() -> nn.Sequential:
    """A network with buffers (batch norm) and random numbers in training (dropout)."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
    )


def mlp() -> nn.Sequential:
    """Two hidden layers with different activations, dropout, and an output activation."""
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(6, 6),
        nn.Tanh(),
        nn.Linear(6, 1),
        nn.Sigmoid(),
    )


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.linear(x))


class Nested(nn.Module):
    """Activations at several levels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block())
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Shared(nn.Module):
    """One activation module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.tail = nn.Sequential(self.act, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.two(self.act(self.one(x))))


def recipe(**changes: Any) -> Recipe:
    """A valid recipe with ``changes``."""
    settings = {
        "model": changes.get("model") or network(),
        "loss_fn": nn.CrossEntropyLoss(),
        "train_data": samples(24, seed=0),
        "valid_data": samples(16, seed=1),
    }
    return Recipe(**(settings | changes))


def run_context(model_fn: Callable[[Any], Recipe], **changes: Any) -> Context:
    """The context of a run, with ``changes``."""
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
    """Run a job that must succeed."""
    outcome = run_job(context, Job(**({"params": {}, "state": None} | job)))
    assert outcome.error is None, outcome.error
    assert outcome.state is not None
    return outcome


def choices_of(trial: Any, name: str) -> tuple[Any, ...]:
    """The choices of a categorical parameter."""
    distribution = trial.distributions[name]
    assert isinstance(distribution, CategoricalDistribution)
    return distribution.choices


def first_trial(params: dict[str, Any] | None = None) -> optuna.Trial:
    """The first trial of a study with MihaSampler, which suggests initial values."""
    study = optuna.create_study(sampler=MihaSampler(seed=0))
    study.enqueue_trial(params or {})
    return study.ask()


def train_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int = 3, seed: int = 0
) -> None:
    """Take steps on a batch of all samples."""
    x, y = samples(seed=seed)
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
