"""The same ``model_fn`` under plain Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable

import optuna
import torch

from optuna_miha._history.lineage import sign_of
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.preflight import check_direction
from optuna_miha._training.trainer import move, train


def plain_objective(
    model_fn: ModelFn, *, n_epochs: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Callable[[optuna.Trial], float]:
    """Make an ordinary objective of ``model_fn``: train from scratch, report every epoch.

    The global random generators are seeded for each trial. With ``study.optimize(n_jobs=...)``
    above 1, whose trials are threads of one process, trials disturb each other's random numbers
    and are not reproducible.

    Args:
        model_fn: As for :func:`optimize`.
        n_epochs: Epochs of every trial that is not pruned.
        seed: Seed of the initial weights and of the order of the data.
        device: Where to train.

    Returns:
        An objective for ``study.optimize``: the best monitored value of the trial's epochs. It
        validates with the trial's own ``loss_fn``, since a plain trial has no initial
        configuration to compare with; give the recipe a ``valid_loss_fn`` where the loss is
        among what is suggested.

    Raises:
        ValueError: If ``n_epochs`` is not positive.
    """
    if n_epochs < 1:
        raise ValueError(f"`n_epochs` must be at least 1, got {n_epochs}.")

    def objective(trial: optuna.Trial) -> float:
        recipe = build_recipe(model_fn, trial, seed)
        check_direction(trial.study, recipe)
        move(recipe, torch.device(device))
        sign = sign_of(trial.study.direction)
        best = math.inf
        with intra_op_threads(1), preserved_rng():
            seed_all(seed)
            for epoch, result in enumerate(train(recipe, n_epochs), start=1):
                best = min(best, sign * result.value)
                trial.report(result.value, step=epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return sign * best if math.isfinite(best) else math.nan  # NaN fails the trial.

    return objective
