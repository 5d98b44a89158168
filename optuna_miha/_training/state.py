"""The state of a network in training, which passes from trunk to branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import optuna
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optuna_miha._model.optimizers import capture_optimizer, inherit_optimizer
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._model.rng import capture_rng, restore_rng
from optuna_miha._model.tensors import copy_tensors
from optuna_miha.exceptions import InheritanceError

_logger = optuna.logging.get_logger("optuna.miha")

State: TypeAlias = dict[str, Any]
"""``model``, ``ema`` (or None), ``optimizer``, ``rng``, ``epoch`` of a network in training,
and ``best``: the weights that validated best in the segment. Tensors, numbers and strings only,
so that it loads with ``weights_only=True``."""


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """A moving average of the weights of ``model``; :obj:`None` if ``decay`` is 0.

    Raises:
        TypeError: If the network cannot be copied.
    """
    if decay == 0:
        return None
    try:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            "The network must be copyable by `copy.deepcopy`, because its weights are averaged, "
            f"got: {error}. Use `torch.nn.utils.parametrizations.weight_norm` instead of "
            "`torch.nn.utils.weight_norm`, keep out of the network what cannot be copied, or use "
            "`Plan(ema_decay=0)`."
        ) from error


def capture(recipe: Recipe, ema: AveragedModel | None, epoch: int) -> State:
    """Copy the whole state of a network in training.

    Args:
        recipe: The network and its optimizer.
        ema: The average of its weights.
        epoch: Epochs that its lineage has behind it.
    """
    assert recipe.optimizer is not None
    return {
        "model": copy_tensors(recipe.model.state_dict()),
        "ema": None if ema is None else copy_tensors(ema.state_dict()),
        "optimizer": copy_tensors(capture_optimizer(recipe.optimizer)),
        "rng": capture_rng(device_of(recipe.model)),
        "epoch": epoch,
    }


def inherit(recipe: Recipe, ema: AveragedModel | None, state: State) -> None:
    """Continue from ``state``: weights, average, optimizer state and random state.

    Hyperparameters stay the recipe's own. ``state`` is copied, so that any number of branches
    can inherit from it.

    Raises:
        InheritanceError: If the network has other parameters than the one captured.
    """
    _check_same_network(recipe.model, state["model"])
    recipe.model.load_state_dict(_own(state["model"]), strict=True)
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(_own(state["ema"]), strict=True)
    assert recipe.optimizer is not None
    inherit_optimizer(recipe.optimizer, state["optimizer"])
    restore_rng(state["rng"], device_of(recipe.model))


def _own(weights: Mapping[str, Any]) -> dict[str, Any]:
    """``weights``, with a copy of any extra state, which a module may keep as it is."""
    return {k: v if isinstance(v, Tensor) else copy_tensors(v) for k, v in weights.items()}


def averaged_state(state: State, other: State) -> State:
    """``state`` with weights that are the mean of its own and another's, the averages too.

    Statistics of batch norm are a mean as well. Tensors of integers, such as counters, and the
    state of optimizer and generators stay as they are.
    """
    parts = {k: _mean(state[k], other[k]) for k in ("model", "ema") if state[k] is not None}
    return {**state, **parts}


def _mean(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    def mean(mine: Any, theirs: Any) -> Any:
        if not isinstance(mine, Tensor) or not (mine.is_floating_point() or mine.is_complex()):
            return mine
        # The sibling may have been trained on another device.
        return (mine + theirs.to(mine.device)) / 2

    return {name: mean(value, two[name]) for name, value in one.items()}


def _check_same_network(model: nn.Module, inherited: Mapping[str, Any]) -> None:
    own = model.state_dict()
    advice = (
        "A mutation must not change the network's parameters: keep the architecture fixed in "
        "`model_fn`."
    )
    for name in [*inherited, *own]:
        if name not in own or name not in inherited:
            where = "the parent has it, the branch lacks it"
            if name not in inherited:
                where = "the branch has it, the parent lacks it"
            raise InheritanceError(f"Parameter {name!r} cannot be inherited: {where}. {advice}")
        old, new = inherited[name], own[name]
        if isinstance(new, Tensor) and old.shape != new.shape:
            raise InheritanceError(
                f"Parameter {name!r} cannot be inherited: its shape is {tuple(old.shape)} in "
                f"the parent and {tuple(new.shape)} in the branch. {advice}"
            )
