"""The sampler from a copy of the registry: in a study of its own, then in a run of optuna_miha."""

from __future__ import annotations

from pathlib import Path

import optuna
import optunahub
import torch
from torch import nn

import optuna_miha as miha

registry = Path(__file__).resolve().parents[2]
MihaSampler = optunahub.load_local_module("samplers/miha", registry_root=str(registry)).MihaSampler


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -5, 5)
    y = trial.suggest_float("y", -5, 5)
    return x**2 + y**2


order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
x = torch.linspace(-3, 3, 300)[order].unsqueeze(1)


def model_fn(trial: optuna.Trial) -> miha.Recipe:
    return miha.Recipe(
        model=nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)),
        loss_fn=nn.MSELoss(),
        train_data=(x[:200], x[:200].sin()),
        valid_data=(x[200:], x[200:].sin()),
    )


if __name__ == "__main__":
    study = optuna.create_study(sampler=MihaSampler(seed=0))
    study.optimize(objective, n_trials=30)
    print(study.best_params)

    study = optuna.create_study(sampler=MihaSampler(seed=0))
    result = miha.optimize(study, model_fn, n_epochs=60)
    print(result.describe())
