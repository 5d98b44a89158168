"""Optimizers by name, and what one takes over from another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, optim

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


def make_optimizer(
    name: str, params: Iterable[Any], *, lr: float, weight_decay: float, momentum: float
) -> optim.Optimizer:
    """Build an optimizer, with torch's fused implementation where the class has one.

    Args:
        name: A key of :data:`OPTIMIZERS`.
        params: Parameters or parameter groups.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum; used by SGD alone.
    """
    cls = OPTIMIZERS[name]
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if cls is optim.SGD:
        settings["momentum"] = momentum
    if cls in _FUSED:
        params = list(params)
        try:
            return cls(params, fused=True, **settings)
        except RuntimeError:  # Parameters of a kind that the fused kernels do not know.
            pass
    return cls(params, **settings)


def capture_optimizer(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Class name and state; hyperparameters are left out, since the heir has its own."""
    return {"class": type(optimizer).__name__, "state": optimizer.state_dict()["state"]}


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
    own = optimizer.state_dict()
    n_params = sum(len(group["params"]) for group in own["param_groups"])
    state = {int(index): _clone(entry) for index, entry in captured["state"].items()}
    if state and max(state) >= n_params:
        raise InheritanceError(
            f"The optimizer must hold the {max(state) + 1} parameters that the parent's held, "
            f"got {n_params}: build it from the same parameters in every branch."
        )
    old, new = captured["class"], type(optimizer).__name__
    if old != new:
        momentum = optimizer.param_groups[0].get("momentum", 0.0)
        state = {i: _translate(entry, old, new, momentum) for i, entry in state.items()}
        state = {i: entry for i, entry in state.items() if entry}
    # The heir's own `param_groups` go back in: `load_state_dict` would otherwise restore the
    # parent's learning rate, and the mutation would be lost.
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


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


def _clone(entry: dict[str, Any]) -> dict[str, Any]:
    """Without this, heirs would share their moments, ``step`` among them."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
