"""Calling the user's ``model_fn``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from torch import nn

from optuna_miha._history.scalars import as_python
from optuna_miha._history.schedule import PLACE
from optuna_miha._model.activations import find_activations
from optuna_miha._model.losses import with_label_smoothing
from optuna_miha._model.optimizers import make_optimizer, name_of
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.suggest import (
    suggest_batch_size,
    suggest_dropout,
    suggest_label_smoothing,
    suggest_optimizer,
)
from optuna_miha._model.suggest_activations import suggest_activations
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._search.space import DEFAULT_LR, contains, declare_initial, value_or_initial

ModelFn: TypeAlias = Callable[[Any], Recipe]


@dataclass(frozen=True)
class Initial:
    """The initial configuration: what the user wrote, before anything changes.

    Args:
        recipe: The recipe that it gives.
        params: Its hyperparameters.
        distributions: Their distributions, by name.
    """

    recipe: Recipe
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


def build_recipe(model_fn: ModelFn, trial: optuna.trial.BaseTrial, seed: int) -> Recipe:
    """Call ``model_fn`` from the given random state, and complete what it returns.

    A ``model_fn`` that suggests nothing gets the default search space; a recipe without an
    optimizer gets Adam. The same seed gives the same initial weights, whatever was suggested.
    The global random generators are left as they were.

    Args:
        model_fn: The user's function.
        trial: What it suggests on.
        seed: Seed of every global random generator during the call.

    Raises:
        TypeError: If it does not return a recipe.
    """
    with preserved_rng():
        seed_all(seed)
        recipe = model_fn(trial)
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"`model_fn` must return an optuna_miha.Recipe, got {recipe!r}: end it with "
            "`return Recipe(model=..., loss_fn=..., train_data=..., valid_data=...)`."
        )
    if not trial.params:
        _suggest_default_space(trial, recipe)
    if recipe.optimizer is None:
        recipe.optimizer = make_optimizer(
            "adam",
            recipe.model.parameters(),
            lr=DEFAULT_LR["adam"],
            weight_decay=0.0,
            momentum=0.0,
        )
    return recipe


def build_initial(
    model_fn: ModelFn, seed: int, overrides: Mapping[str, Any] | None = None
) -> Initial:
    """Find the initial configuration by asking ``model_fn``.

    Args:
        model_fn: The user's function.
        seed: As of :func:`build_recipe`.
        overrides: Initial values that take precedence over the declared ones.

    Raises:
        ValueError: If ``overrides`` names a parameter that is not suggested, or a value that
            its distribution does not contain; or if a parameter is named as a column of a
            schedule.
    """
    trial = offline_trial({})
    recipe = build_recipe(model_fn, trial, seed)
    if overrides:
        overrides = {name: as_python(value) for name, value in overrides.items()}
        _check_overrides(overrides, trial)
        trial = offline_trial(overrides)
        recipe = build_recipe(model_fn, trial, seed)
        _check_overrides(overrides, trial)
        for name in overrides:
            if name not in trial.distributions:
                raise ValueError(
                    f"`initial_params` must name parameters that `model_fn` suggests, got "
                    f"{name!r}; it suggests {sorted(trial.distributions)}."
                )
    taken = sorted(trial.distributions.keys() & set(PLACE))
    if taken:
        raise ValueError(
            f"A hyperparameter must not be named as a column of the schedule {PLACE}, got "
            f"{taken[0]!r}: give it another name."
        )
    return Initial(recipe, dict(trial.params), dict(trial.distributions))


def _check_overrides(overrides: Mapping[str, Any], trial: optuna.Trial) -> None:
    """Names that the trial lacks may depend on the others, and are not judged yet."""
    for name, value in overrides.items():
        distribution = trial.distributions.get(name)
        if distribution is not None and not contains(distribution, value):
            raise ValueError(
                f"The initial value of {name!r} must lie in {distribution}, got {value!r}."
            )


def offline_trial(params: dict[str, Any]) -> optuna.Trial:
    """A trial of a study of its own, in memory, for ``model_fn`` to suggest on.

    Args:
        params: What is suggested, where the distribution contains it; the initial values of
            all other parameters are.
    """
    with warnings_only():
        return optuna.create_study(sampler=_Proposed(params)).ask()


class _Proposed(BaseSampler):
    def __init__(self, params: dict[str, Any]) -> None:
        self._params = params

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return value_or_initial(self._params, param_name, param_distribution)


def _suggest_default_space(trial: optuna.trial.BaseTrial, recipe: Recipe) -> None:
    """Make everything mutable that a bare recipe names."""
    if find_activations(recipe.model):  # Nobody asked for them where there are none.
        suggest_activations(trial, recipe.model)
    suggest_dropout(trial, recipe.model)
    optimizer = recipe.optimizer
    if optimizer is None:
        recipe.optimizer = suggest_optimizer(trial, recipe.model.parameters())
    elif name_of(optimizer) is not None and len(optimizer.param_groups) == 1:
        held = optimizer.param_groups[0]["params"]
        recipe.optimizer = suggest_optimizer(trial, held, initial=optimizer)
    else:
        _suggest_lr(trial, optimizer)
    assert recipe.batch_size is not None
    recipe.batch_size = suggest_batch_size(trial, initial=recipe.batch_size)
    if type(recipe.loss_fn) is nn.CrossEntropyLoss:
        start = recipe.loss_fn.label_smoothing
        smoothing = suggest_label_smoothing(trial, initial=start)
        recipe.loss_fn = with_label_smoothing(recipe.loss_fn, smoothing)


def _suggest_lr(trial: optuna.trial.BaseTrial, optimizer: torch.optim.Optimizer) -> None:
    """For a class, or groups, that we cannot rebuild: scale the learning rate of all groups."""
    start = float(optimizer.param_groups[0]["lr"])
    with declare_initial("lr", start):
        lr = trial.suggest_float("lr", start / 1000, start * 1000, log=True)
    for group in optimizer.param_groups:
        group["lr"] *= lr / start
