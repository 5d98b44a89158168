"""Optimizers by name, and what one takes over from another."""

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
"""Names as they appear in a study, by class."""

_FUSED = (optim.Adagrad, optim.Adam, optim.AdamW, optim.SGD)
_SHARE_MOMENTS = ("Adam", "AdamW", "NAdam")


def name_of(optimizer: optim.Optimizer) -> str | None:
    """The name of the optimizer's class; :obj:`None` for a class without one."""
    return next((n for n, cls in OPTIMIZERS.items() if type(optimizer) is cls), None)


def other_settings(optimizer: optim.Optimizer) -> dict[str, Any]:
    """What the user set besides learning rate and weight decay, as arguments of the class.

    Which implementation is used is left out: that is :func:`make_optimizer`'s affair.
    """
    accepted = inspect.signature(type(optimizer)).parameters.keys()
    own = {"lr", "weight_decay", "fused", "foreach"}
    return {k: v for k, v in optimizer.defaults.items() if k in accepted - own}


def make_optimizer(
    name: str,
    params: Iterable[Any],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    others: Mapping[str, Any] | None = None,
) -> optim.Optimizer:
    """Build an optimizer, with torch's fused implementation where there is one.

    Args:
        name: A key of :data:`OPTIMIZERS`.
        params: Parameters or parameter groups.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum; used by SGD alone.
        others: Further arguments of the class.
    """
    cls = OPTIMIZERS[name]
    settings: dict[str, Any] = {**(others or {}), "lr": lr, "weight_decay": weight_decay}
    if cls is optim.SGD:
        settings["momentum"] = momentum
        settings["nesterov"] = settings.get("nesterov", False) and momentum > 0
    groups = [_copied(p) for p in params]
    if cls in _FUSED and all(map(torch.is_floating_point, _parameters(groups))):
        settings["fused"] = True
    return cls(groups, **settings)


def _copied(group: Any) -> Any:
    """A copy of a parameter group, since the optimizer writes its settings into it."""
    if not isinstance(group, dict):
        return group
    held = group["params"]
    return {**group, "params": [held] if isinstance(held, Tensor) else list(held)}


def _parameters(groups: Iterable[Any]) -> Iterator[Tensor]:
    """The parameters of groups, of ``(name, parameter)`` pairs, or as they are."""
    for group in groups:
        if isinstance(group, dict):
            yield from _parameters(group["params"])
        else:
            yield group[1] if isinstance(group, tuple) else group


def follow(optimizer: optim.Optimizer, device: torch.device) -> None:
    """Bring what an optimizer set up when it was built to where its parameters were moved.

    Adagrad alone does so. Its fused implementation is for the CPU: torch 2.7 has none for others.

    Args:
        optimizer: The optimizer; changed in place.
        device: Where its parameters are.
    """
    if not optimizer.state:
        return
    state = optimizer.state_dict()
    if device.type != "cpu" and isinstance(optimizer, optim.Adagrad):
        for group in state["param_groups"]:
            group["fused"] = None
    optimizer.load_state_dict(state)


def capture_optimizer(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Class name and state; hyperparameters are left out, since the heir has its own."""
    return {
        "class": type(optimizer).__name__,
        "n_params": _n_params(optimizer),
        "state": optimizer.state_dict()["state"],
    }


def inherit_optimizer(optimizer: optim.Optimizer, captured: dict[str, Any]) -> None:
    """Take over what another optimizer has learned, and keep the own hyperparameters.

    The same class inherits everything. Adam, AdamW and NAdam share their moments; SGD with
    momentum starts from Adam's first moment. Between other classes nothing passes.

    Args:
        optimizer: The heir, over parameters of the same shapes in the same order.
        captured: What :func:`capture_optimizer` returned; it is copied, not aliased.

    Raises:
        InheritanceError: If the two optimizers do not hold the same number of parameters.
    """
    n_params = _n_params(optimizer)
    if n_params != captured["n_params"]:
        raise InheritanceError(
            f"The optimizer must hold the {captured['n_params']} parameters that the parent's "
            f"held, got {n_params}: build it from the same parameters in every branch."
        )
    state = {int(index): copy_tensors(entry) for index, entry in captured["state"].items()}
    old, new = captured["class"], type(optimizer).__name__
    group = optimizer.param_groups[0]
    if old != new:
        momentum = group.get("momentum", 0.0)
        state = {i: _translate(entry, old, new, momentum) for i, entry in state.items()}
        state = {i: entry for i, entry in state.items() if entry}
    if not state:
        return  # Loading nothing would also wipe what Adagrad set up for itself.
    state = {i: _completed(entry, group) for i, entry in state.items()}
    # The heir's own `param_groups` go back in: `load_state_dict` would otherwise restore the
    # parent's learning rate, and the mutation would be lost.
    own = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _n_params(optimizer: optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _completed(entry: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Begin what the heir's settings need and the parent's did not."""
    if group.get("amsgrad") and "exp_avg_sq" in entry:
        entry.setdefault("max_exp_avg_sq", entry["exp_avg_sq"].clone())
    if "square_avg" in entry and "acc_delta" not in entry:  # RMSprop; Adadelta has both.
        if group.get("momentum"):
            entry.setdefault("momentum_buffer", torch.zeros_like(entry["square_avg"]))
        if group.get("centered"):
            entry.setdefault("grad_avg", torch.zeros_like(entry["square_avg"]))
    return entry


def _translate(entry: dict[str, Any], old: str, new: str, momentum: float) -> dict[str, Any]:
    if old not in _SHARE_MOMENTS:
        return {}
    if new == "SGD" and momentum > 0:
        # SGD sums gradients where Adam averages them.
        return {"momentum_buffer": entry["exp_avg"] / (1 - momentum)}
    if new not in _SHARE_MOMENTS:
        return {}
    shared = {key: entry[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    if new == "NAdam":
        # The product of NAdam's momenta so far, which tends to 0: no bias left to correct.
        shared["mu_product"] = torch.zeros_like(entry["step"])
    return shared
