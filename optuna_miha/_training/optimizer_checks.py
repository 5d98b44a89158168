"""Checks of the optimizer before anything is written to the study."""

from __future__ import annotations

import inspect
from numbers import Real

from torch import Tensor
from torch.optim import Optimizer

from optuna_miha._model.optimizer_state import capture_optimizer, inherit_optimizer
from optuna_miha._model.optimizers import set_optimizer_mode
from optuna_miha._model.suggest_optimizer import check_no_scheduler
from optuna_miha._training.out_of_memory import is_out_of_memory

_REPAIR = "use another optimizer, or pass your own `trainer` to `optimize`"


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that the built-in trainer cannot use.

    Raises:
        ValueError: If a scheduler is attached to it, its ``step`` has required arguments, or a
            group has no learning rate.
    """
    check_no_scheduler(optimizer)
    needed = [
        name
        for name, parameter in inspect.signature(optimizer.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    name = type(optimizer).__name__
    if needed:
        raise ValueError(
            "The built-in trainer calls `optimizer.step()` without arguments, but that of "
            f"{name} needs `{needed[0]}`: {_REPAIR}."
        )
    for rate in (group.get("lr") for group in optimizer.param_groups):
        if not isinstance(rate, (Real, Tensor)):
            raise ValueError(
                "Each parameter group must have a learning rate `lr`, because the run anneals "
                f"it, got {rate!r} in a group of {name}: set one, or {_REPAIR}."
            )


def check_step(optimizer: Optimizer) -> None:
    """Take steps with the present gradients, and let the optimizer inherit its own state.

    Args:
        optimizer: The optimizer of a recipe that is not used afterwards.

    Raises:
        ValueError: If the step fails, the optimizer changes its learning rates itself, or its
            state cannot be loaded.
    """
    name = type(optimizer).__name__
    before = [float(group["lr"]) for group in optimizer.param_groups]
    try:
        _step(optimizer)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            "The built-in trainer calls `optimizer.step()` after the gradients of a batch are "
            f"computed, but that of {name} failed with {type(error).__name__}: {error} Repair "
            f"the cause, {_REPAIR}."
        ) from error
    after = [float(group["lr"]) for group in optimizer.param_groups]
    if before != after:
        raise ValueError(
            "An optimizer must not change the learning rate `lr` of its groups itself, because "
            f"the study stores the one that a segment begins with, got {after} instead of "
            f"{before} after a step of {name}: {_REPAIR}."
        )
    try:
        inherit_optimizer(optimizer, capture_optimizer(optimizer))
        _step(optimizer)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            "The state of the optimizer must be restored by `load_state_dict`, because branches "
            f"inherit it, but with that of {name}, the next step failed with "
            f"{type(error).__name__}: {error} Repair its `state_dict` and `load_state_dict`, or "
            f"{_REPAIR}."
        ) from error


def _step(optimizer: Optimizer) -> None:
    set_optimizer_mode(optimizer, training=True)
    optimizer.step()
    set_optimizer_mode(optimizer, training=False)
