"""What a run monitors: stored when the run starts, and compared when it is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from torch import nn

from optuna_miha._history import attributes
from optuna_miha._model.recipe import LossFn, Recipe
from optuna_miha.exceptions import MonitorChangedError

_logger = optuna.logging.get_logger("optuna.miha")

_TOLERANCE = 0.01
"""Relative difference of the value of the untrained network that is ignored: devices and
precisions differ by less."""


def describe_monitor(recipe: Recipe, valid_loss_fn: LossFn, value: float) -> dict[str, Any]:
    """What is monitored, as JSON.

    Args:
        recipe: The recipe of the initial configuration.
        valid_loss_fn: The validation loss.
        value: The monitored value of the untrained network.

    Returns:
        The name; the class and the settings of the loss, if it is monitored and one of torch's;
        and the value. Of a function, nothing but the value can be compared.
    """
    loss = None
    is_torch = type(valid_loss_fn).__module__ == nn.modules.loss.__name__
    if recipe.monitor == "loss" and recipe.train_step is None and is_torch:
        plain = (bool, int, float, str)
        settings = {
            name: setting
            for name, setting in vars(valid_loss_fn).items()
            if isinstance(setting, plain) and not name.startswith("_") and name != "training"
        }
        loss = {"class": type(valid_loss_fn).__name__, "settings": settings}
    return {"name": recipe.monitor, "loss": loss, "value": float(value)}


def check_monitor(study: optuna.Study, current: Mapping[str, Any]) -> None:
    """Compare what is monitored with what was monitored when the run started.

    A changed value is a warning only: besides data and functions, it depends on the version of
    torch, by which the initial weights may differ.

    Args:
        study: The study. One that an early version started has nothing to compare with.
        current: The description by :func:`describe_monitor`.

    Raises:
        MonitorChangedError: If the name, or the class or a setting of the loss, differs.
    """
    stored = study.user_attrs.get(attributes.MONITOR)
    if stored is None:
        return
    for was, now in ((stored["name"], current["name"]), _losses(stored, current)):
        if was != now:
            raise MonitorChangedError(
                f"The monitored value must be the one that the study {study.study_name!r} was "
                f"started with, {was}, got {now}: values of two kinds cannot be compared. Restore "
                "`monitor` and the validation loss to resume, or start a study with another name."
            )
    was, now = stored["value"], current["value"]
    if not math.isclose(was, now, rel_tol=_TOLERANCE, abs_tol=1e-8):
        _logger.warning(
            f"The untrained network has {current['name']} {now:.6g}, and had {was:.6g} when the "
            f"study {study.study_name!r} was started. If validation data, loss or metric have "
            "changed, the values before and after cannot be compared: restore them, or start a "
            "study with another name."
        )


def _losses(stored: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, str]:
    """The stored and the present loss in words; equal if there is nothing to compare."""
    was, now = stored["loss"], current["loss"]
    if was is None or now is None:
        return "", ""
    # Another version of torch may have further settings.
    common = sorted(was["settings"].keys() & now["settings"].keys())
    changed = [k for k in common if was["settings"][k] != now["settings"][k]]
    return _call(was, changed), _call(now, changed)


def _call(loss: Mapping[str, Any], names: Sequence[str]) -> str:
    arguments = ", ".join(f"{name}={loss['settings'][name]!r}" for name in names)
    return f"{loss['class']}({arguments})"
