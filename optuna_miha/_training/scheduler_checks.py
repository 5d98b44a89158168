"""The learning rate scheduler of a recipe, and checks that it and the run agree on the rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.trial import FixedTrial
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optuna_miha._model.model_fn import Initial, ModelFn, build_recipe
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.suggest_optimizer import check_no_scheduler
from optuna_miha._search.space import lr_distribution

_RATES = ("lr", "initial_lr", "max_lr")
"""Keys of a group that a scheduler computes its rates from."""


def make_scheduler(recipe: Recipe) -> LRScheduler:
    """Create the scheduler of a recipe.

    Raises:
        TypeError: If ``scheduler`` does not return a scheduler of torch.
        ValueError: If another scheduler is attached to the optimizer, or if the scheduler belongs
            to another optimizer.
    """
    assert recipe.scheduler is not None and recipe.optimizer is not None
    check_no_scheduler(recipe.optimizer)
    scheduler = recipe.scheduler(recipe.optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            "`scheduler` must return a torch.optim.lr_scheduler.LRScheduler, got "
            f"{type(scheduler).__qualname__}: pass a function of the optimizer, such as "
            "`lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)`, or a function "
            "of the fraction of the run as `lr_schedule`."
        )
    if scheduler.optimizer is not recipe.optimizer:
        raise ValueError(
            "`scheduler` must schedule the optimizer that is passed to it, got a "
            f"{type(scheduler).__qualname__} of another optimizer: write "
            "`lambda optimizer: StepLR(optimizer, 30)`, without an optimizer of `model_fn`."
        )
    if isinstance(scheduler, ReduceLROnPlateau) and recipe.scheduler_interval == "step":
        raise ValueError(
            "A ReduceLROnPlateau needs the monitored value, which is known after an epoch, got "
            '`scheduler_interval="step"`: use "epoch".'
        )
    return scheduler


def check_scheduler(
    model_fn: ModelFn, initial: Initial, params: Mapping[str, Any], seed: int
) -> None:
    """Refuse a scheduler whose rates do not depend on the suggested learning rate.

    Args:
        model_fn: The user's function.
        initial: The initial configuration; its recipe does not change.
        params: The parameters of the run's initial configuration.
        seed: The run's seed.

    Raises:
        ValueError: If the scheduler has the same rates for another ``lr``.
    """
    distribution = lr_distribution(initial.distributions)
    if initial.recipe.scheduler is None or distribution is None or distribution.single():
        return
    lr = params["lr"]
    other = distribution.high if distribution.high != lr else distribution.low
    rates = []
    for value in (lr, other):
        trial = FixedTrial({**params, "lr": value})
        recipe = build_recipe(model_fn, trial, seed)
        if recipe.scheduler is None:
            return
        scheduler = make_scheduler(recipe)
        groups = scheduler.optimizer.param_groups
        rates.append([[float(group.get(key, 0.0)) for key in _RATES] for group in groups])
    if rates[0] == rates[1]:
        raise ValueError(
            "The rates of `scheduler` must follow the suggested `lr`, which the study stores, got "
            f"the same rates {rates[0][0][0]:.4g} for lr={lr:.4g} and lr={other:.4g}: pass the "
            "suggested value, as in `OneCycleLR(optimizer, max_lr=lr, total_steps=500)`, or use "
            "a scheduler that multiplies the optimizer's own rate."
        )
