"""Suggest the optimizer: its class, learning rate, weight decay and momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch

from optuna_miha._model.optimizers import (
    OPTIMIZER_NAMES,
    OPTIMIZERS,
    adjust_optimizer,
    copy_group,
    make_optimizer,
    optimizer_class,
    optimizer_name,
    optimizer_parts,
    other_settings,
)
from optuna_miha._model.suggestions import note_suggestion
from optuna_miha._search.space import (
    DEFAULT_LR,
    DEFAULT_MOMENTUM,
    OFFERED_OPTIMIZERS,
    check_names,
    declare_initial,
)

_WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 0.5)
_LR_BOUNDS = (1e-5, 3.0)


@dataclass(frozen=True)
class _Settings:
    """The class and the hyperparameters of an optimizer."""

    name: str
    lr: float
    weight_decay: float
    momentum: float


def suggest_optimizer(
    trial: optuna.trial.BaseTrial,
    params: Iterable[Any],
    *,
    initial: str | torch.optim.Optimizer | None = None,
    choices: Sequence[str] = OFFERED_OPTIMIZERS,
    lr: tuple[float, float] = _LR_BOUNDS,
    weight_decay: Sequence[float] = _WEIGHT_DECAYS,
) -> torch.optim.Optimizer:
    """Suggest the optimizer: its class, learning rate, weight decay and momentum.

    The suggested parameters are ``optimizer``, ``lr``, ``weight_decay``, and for SGD
    ``momentum``.

    A parameter group keeps the settings that it brings, and the suggested values apply to the
    other groups. Learning rates are an exception: those that groups bring are multiplied by the
    ratio of the suggested to the initial ``lr``. If every group brings one, ``lr`` is that of
    the first group.

    Args:
        trial: The trial.
        params: The network's parameters, or parameter groups.
        initial:
            The initial setting: an optimizer, whose class and hyperparameters are used (those
            that are not suggested are kept while the class is; ``maximize`` and the choice of an
            implementation, such as ``foreach``, always), or the name of a class, with its
            default learning rate (Adam, AdamW 1e-3, SGD 0.03 with momentum 0.9, Adadelta 1.0)
            and no weight decay. :obj:`None`: the first choice.
        choices:
            Names of the classes to choose from; the initial one is added. Those of torch are
            ``"adadelta"``, ``"adagrad"``, ``"adam"``, ``"adamax"``, ``"adamw"``, ``"nadam"``,
            ``"radam"``, ``"rmsprop"`` and ``"sgd"``; ``"soap"`` is that of the package
            pytorch-optimizer, which takes more time for a step (Vyas et al., *SOAP: Improving
            and stabilizing Shampoo using Adam*, 2024).
        lr: Bounds of the learning rate, widened to include the initial one.
        weight_decay: Weight decays to choose from; the initial one is added.

    Returns:
        The optimizer, with torch's fused implementation if there is one.

    Raises:
        ImportError: If the package of a choice is not installed.
        TypeError: If ``initial`` is an optimizer of a class that has no name here.
        ValueError: If a choice is not the name of an optimizer, the bounds are not positive and
            ascending, every group brings its own weight decay or momentum, so that the suggested
            one would have no effect, or ``initial`` has hooks or a scheduler.
    """
    if not choices:
        raise ValueError("`choices` must hold at least one optimizer, got none.")
    if isinstance(initial, torch.optim.Optimizer):
        _check_initial(initial)
    groups = [copy_group(group) for group in params]
    start = _initial_settings(choices[0] if initial is None else initial, groups)
    check_names("optimizer", [*choices, start.name], OPTIMIZER_NAMES)
    for name in choices:
        optimizer_class(name)
    if not 0 < lr[0] <= lr[1]:
        raise ValueError(f"`lr` must be two positive bounds in ascending order, got {lr}.")
    if start.name not in choices:
        choices = [start.name, *choices]
    _check_groups(groups, choices)
    chosen = _suggest(trial, start, choices, lr, weight_decay)
    for group in groups:
        if isinstance(group, dict) and "lr" in group:
            is_start = float(group["lr"]) == start.lr
            group["lr"] = chosen.lr if is_start else group["lr"] * (chosen.lr / start.lr)
    return _build(chosen, groups, initial)


def suggest_around(
    trial: optuna.trial.BaseTrial, optimizer: torch.optim.Optimizer
) -> torch.optim.Optimizer:
    """Suggest the optimizer around the user's own one.

    The user's optimizer is adjusted in place unless its class changes. The class can change only
    if nothing is attached to the optimizer: hooks and attributes would be lost. An optimizer of
    another class than :data:`OPTIMIZERS`, or with several groups, keeps everything but the
    learning rate, which is scaled in all groups.

    Args:
        trial: The trial.
        optimizer: The user's optimizer.

    Raises:
        ValueError: If a scheduler is attached to the optimizer, or it has no learning rate.
    """
    check_no_scheduler(optimizer)
    name = optimizer_name(optimizer)
    if name is None or len(optimizer.param_groups) > 1:
        suggest_lr(trial, optimizer)
        return optimizer
    choices = [name] if _is_extended(optimizer) else OFFERED_OPTIMIZERS
    if name not in choices:
        choices = [name, *choices]
    params = optimizer.param_groups[0]["params"]
    start = _initial_settings(optimizer, params)
    chosen = _suggest(trial, start, choices, _LR_BOUNDS, _WEIGHT_DECAYS)
    if chosen.name != name:
        return _build(chosen, params, optimizer)
    adjust_optimizer(
        optimizer,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        momentum=chosen.momentum,
    )
    return optimizer


def check_no_scheduler(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a learning rate scheduler, which the built-in training does not step.

    Raises:
        ValueError: If one is attached to the optimizer.
    """
    # A scheduler wraps the `step` of its optimizer. The mark is private API of torch.
    if hasattr(vars(optimizer).get("step"), "_wrapped_by_lr_sched"):
        raise ValueError(
            "No learning rate scheduler may be attached to the optimizer in `model_fn`, because "
            "the built-in training does not step it, got one on "
            f"{type(optimizer).__name__}: pass a function that creates it, as in "
            "`Recipe(scheduler=lambda optimizer: StepLR(optimizer, 30), "
            'scheduler_interval="epoch")`, leave it out, or pass your own `trainer` to '
            "`optimize`, and suggest the hyperparameters in `model_fn`."
        )


def _is_extended(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks or attributes are attached to an optimizer, or keys to its group."""
    cls: Any = type(optimizer)
    plain = cls([torch.zeros(1, requires_grad=True)])
    names = vars(optimizer).keys() - vars(plain).keys()
    keys = optimizer.param_groups[0].keys() - plain.param_groups[0].keys() - {"param_names"}
    return bool(_has_hooks(optimizer) or keys or any(not n.startswith("_") for n in names))


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    return any(value for name, value in vars(optimizer).items() if name.endswith("_hooks"))


def _check_initial(initial: torch.optim.Optimizer) -> None:
    """Refuse an initial optimizer with a scheduler or hooks: it is not the one that trains."""
    check_no_scheduler(initial)
    if _has_hooks(initial):
        raise ValueError(
            "`initial` must have no hooks, because another optimizer is built from its settings, "
            f"got {type(initial).__name__} with hooks: register them on the optimizer that "
            "`suggest_optimizer` returns."
        )


def suggest_lr(trial: optuna.trial.BaseTrial, optimizer: torch.optim.Optimizer) -> None:
    """Suggest a learning rate, and scale that of all groups, keeping the optimizer.

    None is suggested for Rprop, which reads its learning rate in its first step only.

    Args:
        trial: The trial.
        optimizer: The user's optimizer, changed in place.

    Raises:
        ValueError: If a scheduler is attached to the optimizer, or it has no learning rate.
    """
    check_no_scheduler(optimizer)
    rates = [float(group["lr"]) for group in optimizer.param_groups if group.get("lr")]
    if not rates or min(rates) < 0:
        raise ValueError(
            "The optimizer must have a positive learning rate `lr`, got "
            f"{[group.get('lr') for group in optimizer.param_groups]} in the groups of "
            f"{type(optimizer).__name__}: set one, or suggest hyperparameters in `model_fn`."
        )
    if any(isinstance(part, torch.optim.Rprop) for part in optimizer_parts(optimizer)):
        return
    initial = rates[0]
    note_suggestion("lr")
    with declare_initial("lr", initial):
        lr = trial.suggest_float("lr", initial / 1000, initial * 1000, log=True)
    for group in optimizer.param_groups:
        if group.get("lr"):
            group["lr"] = group["lr"] * (lr / initial)  # Groups may share a tensor.


def _suggest(
    trial: optuna.trial.BaseTrial,
    start: _Settings,
    choices: Sequence[str],
    lr: tuple[float, float],
    weight_decay: Sequence[float],
) -> _Settings:
    for known in ("optimizer", "lr", "weight_decay"):
        note_suggestion(known)
    with declare_initial("optimizer", start.name):
        name = trial.suggest_categorical("optimizer", choices)
    low, high = min(lr[0], start.lr), max(lr[1], start.lr)
    with declare_initial("lr", start.lr):
        chosen_lr = trial.suggest_float("lr", low, high, log=True)
    decays = sorted({*map(float, weight_decay), start.weight_decay})
    with declare_initial("weight_decay", start.weight_decay):
        chosen_decay = trial.suggest_categorical("weight_decay", decays)
    momentum = 0.0
    if name == "sgd":
        note_suggestion("momentum")
        with declare_initial("momentum", start.momentum):
            momentum = trial.suggest_float("momentum", 0.0, 0.99)
    return _Settings(name, chosen_lr, chosen_decay, momentum)


def _build(
    chosen: _Settings, params: Iterable[Any], initial: str | torch.optim.Optimizer | None
) -> torch.optim.Optimizer:
    others: Mapping[str, Any] | None = None
    if isinstance(initial, torch.optim.Optimizer):
        others = other_settings(initial, chosen.name)
    return make_optimizer(
        chosen.name,
        params,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        momentum=chosen.momentum,
        others=others,
    )


def _initial_settings(initial: str | torch.optim.Optimizer, groups: Sequence[Any]) -> _Settings:
    """Return the initial class of optimizer and its hyperparameters."""
    rates: list[Any] = [g.get("lr") if isinstance(g, dict) else None for g in groups]
    own_lr = None if not rates or None in rates else float(rates[0])
    if isinstance(initial, str):
        lr = DEFAULT_LR.get(initial, 1e-3) if own_lr is None else own_lr
        return _checked(_Settings(initial, lr, 0.0, DEFAULT_MOMENTUM))
    name = optimizer_name(initial)
    if name is None:
        raise TypeError(
            f"`initial` must be one of torch's {', '.join(OPTIMIZERS)}, got "
            f"{type(initial).__name__}: for another class, suggest its hyperparameters with "
            "`trial.suggest_float`, and build it in `model_fn`."
        )
    # Of several groups, each may have settings of its own.
    values = initial.param_groups[0] if len(initial.param_groups) == 1 else initial.defaults
    return _checked(
        _Settings(
            name,
            float(values["lr"]) if own_lr is None else own_lr,
            float(values.get("weight_decay", 0.0)),
            float(values.get("momentum", DEFAULT_MOMENTUM)),
        )
    )


def _checked(settings: _Settings) -> _Settings:
    if not settings.lr > 0:
        raise ValueError(
            f"The initial learning rate must be positive, got {settings.lr}: set `lr` of the "
            "optimizer or of the first parameter group."
        )
    return settings


def _check_groups(groups: Sequence[Any], choices: Sequence[str]) -> None:
    """Refuse groups that leave a suggested value without effect."""
    suggested = ["weight_decay", *(["momentum"] if "sgd" in choices else [])]
    for name in suggested:
        if groups and all(isinstance(group, dict) and name in group for group in groups):
            raise ValueError(
                f"At least one parameter group must leave {name!r} to be suggested, got it in "
                f"all of {len(groups)} groups: leave it out of the groups that shall have the "
                "suggested value, or build the optimizer in `model_fn` and suggest its "
                "hyperparameters by `trial.suggest_float`."
            )
