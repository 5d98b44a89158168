"""Optimizers by name, and the state that one inherits from another."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, optim

from optuna_miha._model.tensors import copy_tensors
from optuna_miha.exceptions import InheritanceError

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
_SHARE_MOMENTS = ("Adam", "AdamW", "NAdam")


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


def capture_optimizer(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the class and the state of an optimizer, without its hyperparameters."""
    return {
        "class": type(optimizer).__name__,
        "n_params": _n_params(optimizer),
        "state": optimizer.state_dict()["state"],
    }


def inherit_optimizer(optimizer: optim.Optimizer, captured: dict[str, Any]) -> None:
    """Load the state of another optimizer, and keep the optimizer's own hyperparameters.

    An optimizer of the same class inherits the whole state. Adam, AdamW and NAdam inherit each
    other's moments, and SGD with momentum inherits Adam's first moment. Other pairs of classes
    inherit nothing.

    Args:
        optimizer: The optimizer, over parameters of the same shapes in the same order.
        captured: The result of :func:`capture_optimizer`; it is copied, not aliased.

    Raises:
        InheritanceError: If the two optimizers do not hold the same number of parameters.
    """
    n_params = _n_params(optimizer)
    if n_params != captured["n_params"]:
        raise InheritanceError(
            f"The optimizer must hold the parent's {captured['n_params']} parameters, got "
            f"{n_params}: build it from the same parameters in every branch."
        )
    # Without a copy, siblings would share their moments.
    state = {int(index): copy_tensors(entry) for index, entry in captured["state"].items()}
    old, new = captured["class"], type(optimizer).__name__
    group = optimizer.param_groups[0]
    if old != new:
        momentum = group.get("momentum", 0.0)
        state = {i: _convert(entry, old, new, momentum) for i, entry in state.items()}
        state = {i: entry for i, entry in state.items() if entry}
    if not state:
        return  # Loading an empty state would delete the initial state of Adagrad.
    state = {i: _with_missing_state(entry, group) for i, entry in state.items()}
    # Keep the optimizer's own `param_groups`: those of the parent would undo the mutation, for
    # example of the learning rate.
    param_groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def _n_params(optimizer: optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _with_missing_state(entry: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Initialize the state that the optimizer's settings need and the parent's did not."""
    if group.get("amsgrad") and "exp_avg_sq" in entry:
        entry.setdefault("max_exp_avg_sq", entry["exp_avg_sq"].clone())
    if "square_avg" in entry and "acc_delta" not in entry:  # RMSprop; Adadelta has both.
        if group.get("momentum"):
            entry.setdefault("momentum_buffer", torch.zeros_like(entry["square_avg"]))
        if group.get("centered"):
            entry.setdefault("grad_avg", torch.zeros_like(entry["square_avg"]))
    return entry


def _convert(entry: dict[str, Any], old: str, new: str, momentum: float) -> dict[str, Any]:
    """Convert the state of a parameter to another class; the result may be empty."""
    if old not in _SHARE_MOMENTS:
        return {}
    if new == "SGD" and momentum > 0:
        # SGD sums gradients where Adam averages them.
        return {"momentum_buffer": entry["exp_avg"] / (1 - momentum)}
    if new not in _SHARE_MOMENTS:
        return {}
    shared = {key: entry[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    if new == "NAdam":
        # The product of all momenta so far, which tends to 0: no bias correction is left.
        shared["mu_product"] = torch.zeros_like(entry["step"])
    return shared
