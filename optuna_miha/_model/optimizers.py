"""Optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, optim

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
"""Optimizer classes by their name in a study."""

_FUSED = (optim.Adagrad, optim.Adam, optim.AdamW, optim.SGD)


def optimizer_name(optimizer: optim.Optimizer) -> str | None:
    """Return the name of the optimizer's class; :obj:`None` for a class without one."""
    return next((n for n, cls in OPTIMIZERS.items() if type(optimizer) is cls), None)


def other_settings(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the arguments of an optimizer other than learning rate and weight decay.

    The choice of the implementation is left out, because :func:`make_optimizer` makes it.
    """
    accepted = inspect.signature(type(optimizer)).parameters.keys()
    excluded = {"lr", "weight_decay", "fused", "foreach"}
    return {k: v for k, v in optimizer.defaults.items() if k in accepted - excluded}


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
        name: A key of :data:`OPTIMIZERS`.
        params: Parameters or parameter groups.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum, for SGD only.
        others: Further arguments of the class.
    """
    cls = OPTIMIZERS[name]
    settings: dict[str, Any] = {**(others or {}), "lr": lr, "weight_decay": weight_decay}
    if cls is optim.SGD:
        settings["momentum"] = momentum
        settings["nesterov"] = settings.get("nesterov", False) and momentum > 0
    groups = [_copy_group(p) for p in params]
    if cls in _FUSED and all(map(torch.is_floating_point, _parameters_in(groups))):
        settings["fused"] = True
    return cls(groups, **settings)


def _copy_group(group: Any) -> Any:
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


def move_optimizer_state(optimizer: optim.Optimizer, device: torch.device) -> None:
    """Move the state of a new optimizer to the device of its parameters.

    Only Adagrad has state before its first step. Its fused implementation is used on the CPU
    only, because torch 2.7 has none for other devices.

    Args:
        optimizer: The optimizer, changed in place.
        device: The device of its parameters.
    """
    if not optimizer.state:
        return
    state = optimizer.state_dict()
    if device.type != "cpu" and isinstance(optimizer, optim.Adagrad):
        for group in state["param_groups"]:
            group["fused"] = None
    optimizer.load_state_dict(state)
