"""Validation of the options of the built-in training in a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from optuna_miha._history.scalars import as_int

if TYPE_CHECKING:
    from optuna_miha._model.recipe import Recipe

_COUNTS = {"accumulate": 1, "warmup_steps": 0, "steps_per_epoch": 1, "valid_batch_size": 1}
"""The least value of each option that is an integer."""

_DEFAULTS: dict[str, Any] = {
    "grad_clip": None,
    "accumulate": 1,
    "scheduler": None,
    "lr_schedule": None,
    "warmup_steps": 0,
    "steps_per_epoch": None,
    "valid_batch_size": None,
}


def check_options(recipe: Recipe) -> None:
    """Check the options of the built-in training, and convert integers.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range.
    """
    for name, least in _COUNTS.items():
        value = as_int(getattr(recipe, name))
        if value is None and _DEFAULTS[name] is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{name}` must be an integer, got {value!r}.")
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        setattr(recipe, name, value)
    if recipe.grad_clip is not None:
        clip = recipe.grad_clip
        if isinstance(clip, bool) or not isinstance(clip, (int, float)):
            raise TypeError(f"`grad_clip` must be a number or None, got {clip!r}.")
        if not clip > 0 or math.isinf(clip):
            raise ValueError(
                f"`grad_clip` must be a positive norm, got {clip}: leave it out for no clipping."
            )
    if recipe.valid_batch_size is not None and isinstance(recipe.valid_data, DataLoader):
        raise ValueError(
            f"`valid_batch_size` must not be set for a DataLoader, got {recipe.valid_batch_size}: "
            "set the `batch_size` of the loader."
        )
    _check_schedules(recipe)


def _check_schedules(recipe: Recipe) -> None:
    if isinstance(recipe.scheduler, LRScheduler):
        raise TypeError(
            "`scheduler` must be a function that creates a scheduler of the optimizer that is "
            f"passed to it, got a {type(recipe.scheduler).__qualname__}: write "
            f"`scheduler=lambda optimizer: {type(recipe.scheduler).__qualname__}(optimizer, ...)`."
        )
    for name in ("scheduler", "lr_schedule"):
        value = getattr(recipe, name)
        if value is not None and not callable(value):
            raise TypeError(f"`{name}` must be a function, got {type(value).__qualname__}.")
    if recipe.scheduler_interval not in ("step", "epoch"):
        raise ValueError(
            f'`scheduler_interval` must be "step" or "epoch", got {recipe.scheduler_interval!r}.'
        )


def check_no_options(recipe: Recipe) -> None:
    """Refuse options of the built-in training with a user-defined trainer.

    Raises:
        ValueError: If there are any.
    """
    used = [name for name, default in _DEFAULTS.items() if getattr(recipe, name) != default]
    if used:
        raise ValueError(
            f"`{used[0]}` applies only to the built-in training, got "
            f"{getattr(recipe, used[0])!r} with your own `trainer`: do it in the trainer."
        )
