"""The ``suggest_*`` functions: hyperparameters of a network and its training.

Each declares an initial value, the setting that the user would choose without this package, and
calls one or more ``suggest_*`` methods of the trial. They work with any Optuna trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
import torch
from torch import nn

from optuna_miha._model.losses import interchangeable_losses
from optuna_miha._model.optimizers import (
    OPTIMIZERS,
    make_optimizer,
    optimizer_name,
    other_settings,
)
from optuna_miha._model.recipe import DEFAULT_BATCH_SIZE, LossFn
from optuna_miha._search.space import (
    DEFAULT_LR,
    DEFAULT_MOMENTUM,
    OFFERED_OPTIMIZERS,
    check_names,
    declare_initial,
)

_WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_DROPOUTS = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
)


def suggest_optimizer(
    trial: optuna.trial.BaseTrial,
    params: Iterable[Any],
    *,
    initial: str | torch.optim.Optimizer | None = None,
    choices: Sequence[str] = OFFERED_OPTIMIZERS,
    lr: tuple[float, float] = (1e-5, 3.0),
    weight_decay: Sequence[float] = _WEIGHT_DECAYS,
) -> torch.optim.Optimizer:
    """Suggest the optimizer: its class, learning rate, weight decay and momentum.

    The suggested parameters are ``optimizer``, ``lr``, ``weight_decay``, and for SGD
    ``momentum``.

    Args:
        trial: The trial.
        params: The network's parameters, or parameter groups.
        initial:
            The initial setting: an optimizer, whose class and hyperparameters are used (those
            that are not suggested are kept while the class is), or the name of a class, with its
            default learning rate (Adam, AdamW 1e-3, SGD 0.03 with momentum 0.9, Adadelta 1.0)
            and no weight decay. :obj:`None`: the first choice.
        choices: Names of the classes to choose from; the initial one is added.
        lr: Bounds of the learning rate, widened to include the initial one.
        weight_decay: Weight decays to choose from; the initial one is added.

    Returns:
        The optimizer, with torch's fused implementation if there is one.

    Raises:
        TypeError: If ``initial`` is an optimizer of a class that has no name here.
        ValueError: If a choice is not the name of an optimizer, or the bounds are not positive
            and ascending.
    """
    if not choices:
        raise ValueError("`choices` must hold at least one optimizer, got none.")
    start = _initial_settings(choices[0] if initial is None else initial)
    check_names("optimizer", [*choices, start["optimizer"]], OPTIMIZERS)
    if not 0 < lr[0] <= lr[1]:
        raise ValueError(f"`lr` must be two positive bounds in ascending order, got {lr}.")
    if start["optimizer"] not in choices:
        choices = [start["optimizer"], *choices]
    with declare_initial("optimizer", start["optimizer"]):
        name = trial.suggest_categorical("optimizer", choices)
    low, high = min(lr[0], start["lr"]), max(lr[1], start["lr"])
    with declare_initial("lr", start["lr"]):
        chosen_lr = trial.suggest_float("lr", low, high, log=True)
    decays = sorted({*map(float, weight_decay), start["weight_decay"]})
    with declare_initial("weight_decay", start["weight_decay"]):
        chosen_decay = trial.suggest_categorical("weight_decay", decays)
    momentum = 0.0
    if name == "sgd":
        with declare_initial("momentum", start["momentum"]):
            momentum = trial.suggest_float("momentum", 0.0, 0.99)
    return make_optimizer(
        name,
        params,
        lr=chosen_lr,
        weight_decay=chosen_decay,
        momentum=momentum,
        others=start["others"] if name == start["optimizer"] else None,
    )


def suggest_batch_size(
    trial: optuna.trial.BaseTrial,
    *,
    initial: int = DEFAULT_BATCH_SIZE,
    low: int = 16,
    high: int = 256,
) -> int:
    """Suggest the batch size, an integer on a log scale.

    Args:
        trial: The trial.
        initial: The initial value.
        low: The lower bound, widened to include ``initial``.
        high: The upper bound, widened to include ``initial``.

    Returns:
        The batch size.

    Raises:
        ValueError: If a size is not positive, or ``low`` exceeds ``high``.
    """
    if not 1 <= low <= high or initial < 1:
        raise ValueError(
            f"Batch sizes must be positive and `low` at most `high`, got {low=}, {high=}, "
            f"{initial=}."
        )
    with declare_initial("batch_size", initial):
        return trial.suggest_int("batch_size", min(low, initial), max(high, initial), log=True)


def suggest_loss(
    trial: optuna.trial.BaseTrial,
    *,
    initial: LossFn | str | None = None,
    choices: Mapping[str, LossFn] | None = None,
) -> LossFn:
    """Suggest the training loss, the parameter ``loss``.

    The validation loss remains that of the initial configuration, so that branches are compared
    on one scale.

    Args:
        trial: The trial.
        initial:
            The initial loss, or its name in ``choices``. :obj:`None`: the first choice.
        choices:
            Losses by name. :obj:`None`: the losses of torch that take the same targets as
            ``initial``: cross-entropy or multi-margin; MSE, L1, smooth L1 or Huber; binary
            cross-entropy with logits or multi-label soft margin.

    Returns:
        The loss function.

    Raises:
        TypeError: If neither an initial loss nor choices are given.
        ValueError: If ``initial`` is not the name of a choice, or, without ``choices``, a loss
            that no loss of torch can replace.
    """
    if choices is None:
        if initial is None or isinstance(initial, str):
            raise TypeError(
                f"suggest_loss needs an initial loss or `choices`, got initial={initial!r}: "
                "pass, for example, `initial=nn.MSELoss()`, or "
                '`choices={"mse": nn.MSELoss(), "l1": nn.L1Loss()}`.'
            )
        choices = interchangeable_losses(initial)
        initial = next(iter(choices))
    if not choices:
        raise ValueError("`choices` must hold at least one loss, got none.")
    if initial is None:
        initial = next(iter(choices))
    if not isinstance(initial, str):
        name = next((n for n, loss in choices.items() if loss is initial), None)
        if name is None:
            name, choices = "initial", {"initial": initial, **choices}
        initial = name
    if initial not in choices:
        raise ValueError(f"`initial` must be one of {sorted(choices)}, got {initial!r}.")
    with declare_initial("loss", initial):
        return choices[trial.suggest_categorical("loss", list(choices))]


def suggest_dropout(
    trial: optuna.trial.BaseTrial, model: nn.Module, *, low: float = 0.0, high: float = 0.6
) -> None:
    """Suggest the rate of every dropout module of the network, and set it.

    Each becomes a float parameter ``dropout.<qualified name>`` with the current rate as the
    initial value.

    Args:
        trial: The trial.
        model: The network, changed in place.
        low: The lower bound, widened to include a module's current rate.
        high: The upper bound, widened to include a module's current rate.

    Raises:
        ValueError: If the bounds are not in [0, 1), or not ascending.
    """
    if not 0 <= low <= high < 1:
        raise ValueError(
            f"Dropout rates must lie in [0, 1) and be ascending, got low={low}, high={high}."
        )
    for path, module in model.named_modules():
        if isinstance(module, _DROPOUTS):
            with declare_initial(f"dropout.{path}", module.p):
                module.p = trial.suggest_float(
                    f"dropout.{path}", min(low, module.p), max(high, module.p)
                )


def suggest_label_smoothing(
    trial: optuna.trial.BaseTrial, *, initial: float = 0.0, high: float = 0.3
) -> float:
    """Suggest the label smoothing of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        trial: The trial.
        initial: The initial value.
        high: The upper bound, widened to include ``initial``.

    Returns:
        The label smoothing, the parameter ``label_smoothing``.

    Raises:
        ValueError: If a value is not in [0, 1].
    """
    if not (0 <= initial <= 1 and 0 <= high <= 1):
        raise ValueError(f"Label smoothing must lie in [0, 1], got {initial=}, {high=}.")
    with declare_initial("label_smoothing", initial):
        return trial.suggest_float("label_smoothing", 0.0, max(high, initial))


def _initial_settings(initial: str | torch.optim.Optimizer) -> dict[str, Any]:
    """Return the initial class of optimizer and its hyperparameters."""
    if isinstance(initial, str):
        return {
            "optimizer": initial,
            "lr": DEFAULT_LR.get(initial, 1e-3),
            "weight_decay": 0.0,
            "momentum": DEFAULT_MOMENTUM,
            "others": {},
        }
    name = optimizer_name(initial)
    if name is None:
        raise TypeError(
            f"`initial` must be one of torch's {', '.join(OPTIMIZERS)}, got "
            f"{type(initial).__name__}: for another class, suggest its hyperparameters with "
            "`trial.suggest_float`, and build it in `model_fn`."
        )
    group = initial.param_groups[0]
    return {
        "optimizer": name,
        "lr": float(group["lr"]),
        "weight_decay": float(group.get("weight_decay", 0.0)),
        "momentum": float(group.get("momentum", DEFAULT_MOMENTUM)),
        "others": other_settings(initial),
    }
