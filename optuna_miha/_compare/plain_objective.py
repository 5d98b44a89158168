"""Training the same ``model_fn`` with plain Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable

import optuna
import torch

from optuna_miha._history.lineage import sign_of
from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.preflight import check_direction
from optuna_miha._training.trainer import move, train


def plain_objective(
    model_fn: ModelFn, *, n_epochs: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Callable[[optuna.Trial], float]:
    """Create an Optuna objective that trains ``model_fn`` from scratch and reports every epoch.

    The global random number generators are seeded for each trial. With ``n_jobs`` above 1,
    ``study.optimize`` runs trials in threads of one process, which share these generators, so
    that trials are not reproducible.

    Args:
        model_fn: As for :func:`optimize`.
        n_epochs: Epochs of each trial, unless it is pruned.
        seed: Seed of the initial weights and of the order of the data.
        device: Where to train.

    Returns:
        An objective for ``study.optimize``, whose value is the best monitored value of an epoch.
        It validates with the ``loss_fn`` of the trial, since a plain trial has no initial
        configuration. If the loss itself is suggested, set ``valid_loss_fn`` in the recipe.

    Raises:
        ValueError: If ``n_epochs`` is not positive.
    """
    if n_epochs < 1:
        raise ValueError(f"`n_epochs` must be at least 1, got {n_epochs}.")

    def objective(trial: optuna.Trial) -> float:
        recipe = build_recipe(model_fn, trial, seed)
        recipe.check_complete()
        check_direction(trial.study, recipe)
        move(recipe, torch.device(device))
        sign = sign_of(trial.study.direction)
        best = math.inf
        with intra_op_threads(1), preserved_rng(), DataState().watch(recipe.train_data) as data:
            seed_all(seed)
            results = train(recipe, n_epochs)
            for epoch in range(1, n_epochs + 1):
                data.set_epoch(epoch - 1)
                value = next(results).value
                best = min(best, sign * value)
                trial.report(value, step=epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return sign * best if math.isfinite(best) else math.nan  # NaN fails the trial.

    return objective
