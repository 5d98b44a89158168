"""Optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, optim

from optuna_miha._history.optional_imports import try_import

OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    "adadelta": optim.Adadelta,
    "adagrad": optim.Adagrad,
    "adam": optim.Adam,
    "adamax": optim.Adamax,
    "adamw": optim.AdamW,
    "nadam": optim.NAdam,
    "radam": optim.RAdam,
    "rmsprop": optim.RMSprop,
    "sgd": optim.SGD,
}
"""Classes of torch by their name in a study."""

OPTIMIZER_NAMES = (*OPTIMIZERS, "soap")
"""Names that a study may offer."""

_MOST_PRECONDITIONED = 512
"""Longest dimension for which SOAP keeps a preconditioner. One along the words of an embedding
would take longer than the rest of the training."""

_FUSED = (optim.Adagrad, optim.Adam, optim.AdamW, optim.SGD)
_OF_ALL_CLASSES = ("capturable", "differentiable", "foreach", "fused", "maximize")
"""Arguments that a user chooses for the optimizer, whatever its class."""


def optimizer_name(optimizer: optim.Optimizer) -> str | None:
    """Return the name of the optimizer's class; :obj:`None` for a class without one."""
    return next((n for n, cls in OPTIMIZERS.items() if type(optimizer) is cls), None)


def optimizer_class(name: str) -> type[optim.Optimizer]:
    """Return the class of a name.

    Raises:
        ImportError: If its package is not installed.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    with try_import(
        "pytorch-optimizer",
        needed_by="The optimizer 'soap'",
        alternative=", or leave 'soap' out of `choices`",
    ):
        from pytorch_optimizer import SOAP
    cls: type[optim.Optimizer] = SOAP
    return cls


def optimizer_parts(optimizer: optim.Optimizer) -> Iterator[optim.Optimizer]:
    """Iterate over an optimizer and those that it wraps, as SAM and Lookahead do."""
    pending, seen = [optimizer], set()
    while pending:
        part = pending.pop(0)
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            for value in vars(part).values():
                values = value if isinstance(value, (list, tuple)) else [value]
                pending += [inner for inner in values if isinstance(inner, optim.Optimizer)]


def other_settings(optimizer: optim.Optimizer, name: str) -> dict[str, Any]:
    """Return the arguments of an optimizer other than learning rate and weight decay.

    Args:
        optimizer: The optimizer. If it has a single group, the values of the group count.
        name: The name of the class that they are for. Another class than that of the optimizer
            takes over the sign (``maximize``) and the implementation only.
    """
    values = optimizer.defaults
    if len(optimizer.param_groups) == 1:
        values = {key: optimizer.param_groups[0].get(key, value) for key, value in values.items()}
    cls = optimizer_class(name)
    excluded = {"lr", "weight_decay"}
    names = inspect.signature(cls).parameters.keys() - excluded
    if type(optimizer) is not cls:
        # Values that the user has not chosen are those of the other class.
        names &= {key for key in _OF_ALL_CLASSES if values.get(key)} | (
            {"fused", "foreach"} & {key for key in values if values[key] is not None}
        )
    return {key: value for key, value in values.items() if key in names}


def make_optimizer(
    name: str,
    params: Iterable[Any],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    others: Mapping[str, Any] | None = None,
) -> optim.Optimizer:
    """Build an optimizer, with torch's fused implementation if there is one.

    Args:
        name: One of :data:`OPTIMIZER_NAMES`.
        params: Parameters or parameter groups.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum, for SGD only.
        others: Further arguments of the class. Another implementation that they or a group
            choose (``fused``, ``foreach``) is used.
    """
    cls = optimizer_class(name)
    settings: dict[str, Any] = {**(others or {}), "lr": lr, "weight_decay": weight_decay}
    if cls is optim.SGD:
        settings["momentum"] = momentum
        settings["nesterov"] = settings.get("nesterov", False) and momentum > 0
    if name == "soap":
        settings.setdefault("max_precondition_dim", _MOST_PRECONDITIONED)
    groups = [copy_group(p) for p in params]
    own = [group for group in groups if isinstance(group, dict)]
    if _can_be_fused(cls, [settings, *own], _parameters_in(groups)):
        settings["fused"] = True
    return cls(groups, **settings)


def adjust_optimizer(
    optimizer: optim.Optimizer, *, lr: float, weight_decay: float, momentum: float
) -> None:
    """Set the hyperparameters of an optimizer with a single group in place.

    The result is that of :func:`make_optimizer`, but the object and its hooks stay.

    Args:
        optimizer: An optimizer of one of the classes of :data:`OPTIMIZERS`.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum, for SGD only.
    """
    (group,) = optimizer.param_groups
    group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr
    group["weight_decay"] = weight_decay
    if isinstance(optimizer, optim.SGD):
        group["momentum"] = momentum
        group["nesterov"] = group["nesterov"] and momentum > 0
    if _can_be_fused(type(optimizer), [group], group["params"]):
        group["fused"] = True


def _can_be_fused(
    cls: type[optim.Optimizer], settings: Iterable[Mapping[str, Any]], params: Iterable[Tensor]
) -> bool:
    """Whether to use the fused implementation, unless the user has chosen one."""
    is_chosen = any(
        values.get("differentiable")
        or any(values.get(key) is not None for key in ("foreach", "fused"))
        for values in settings
    )
    return cls in _FUSED and not is_chosen and all(map(torch.is_floating_point, params))


def copy_group(group: Any) -> Any:
    """Copy a parameter group, because an optimizer writes its settings into it."""
    if not isinstance(group, dict):
        return group
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, Tensor) else list(params)}


def _parameters_in(groups: Iterable[Any]) -> Iterator[Tensor]:
    """Iterate over parameters given as groups, ``(name, parameter)`` pairs, or tensors."""
    for group in groups:
        if isinstance(group, dict):
            yield from _parameters_in(group["params"])
        else:
            yield group[1] if isinstance(group, tuple) else group


def set_optimizer_mode(optimizer: optim.Optimizer, *, training: bool) -> None:
    """Switch an optimizer that has modes, as Schedule-Free has, between training and evaluation.

    Its weights for evaluation differ from those that it trains.

    Args:
        optimizer: The optimizer. One without the methods ``train`` and ``eval`` has no modes.
        training: Whether to prepare for training, or for evaluation and checkpoints.
    """
    switch = getattr(optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()
