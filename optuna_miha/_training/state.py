"""The state of a network in training, which a branch inherits from the trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import optuna
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optuna_miha._model.optimizer_state import Settings, capture_optimizer, inherit_optimizer
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._model.rng import capture_rng, restore_rng
from optuna_miha._model.tensors import copy_tensors, copy_to_host, on_host
from optuna_miha.exceptions import InheritanceError

_logger = optuna.logging.get_logger("optuna.miha")

State: TypeAlias = dict[str, Any]
"""``model``, ``ema`` (or None), ``optimizer``, ``rng`` and ``epoch`` of a network in training,
and ``best``, the weights with the best validation value in the segment. In an annealed segment,
``epoch_steps`` is the number of steps of the last epoch. A state consists of tensors, numbers and
strings, so that it loads with ``weights_only=True``. Its tensors are on the CPU, whatever device
the network trains on. If the best weights are the present ones or their average, they are the same
tensors, in memory and in a checkpoint. Instead of a large state, a reference is passed on; see
:class:`~optuna_miha._training.spool.Spool`."""


def make_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """Create the moving average of the weights of ``model``; :obj:`None` if ``decay`` is 0.

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
            "`torch.nn.utils.weight_norm`, remove attributes that cannot be copied, or use "
            "`Plan(ema_decay=0)`."
        ) from error


def update_ema(ema: AveragedModel, model: nn.Module) -> None:
    """Update the moving average of the weights of ``model``, and copy its buffers."""
    match_buffers(ema, model)
    ema.update_parameters(model)


def match_buffers(ema: AveragedModel, model: nn.Module) -> None:
    """Give the average the buffers that the network has.

    A network may create buffers that are not part of its state in ``forward``, or replace them,
    to cache tables and masks.
    """
    own = dict(ema.module.named_buffers())
    for name, buffer in model.named_buffers():
        if name not in own or own[name].shape != buffer.shape:
            path, _, key = name.rpartition(".")
            ema.module.get_submodule(path).register_buffer(key, buffer.clone(), persistent=False)


def capture(
    recipe: Recipe, ema: AveragedModel | None, epoch: int, settings: Settings | None = None
) -> State:
    """Copy the whole state of a network in training to the memory of the host.

    Args:
        recipe: The network and its optimizer.
        ema: The moving average of its weights.
        epoch: Epochs trained so far, including those of its ancestors.
        settings: The settings of the optimizer at construction. :obj:`None`: it has not changed
            any.
    """
    assert recipe.optimizer is not None
    return {
        "model": copy_to_host(recipe.model.state_dict()),
        "ema": None if ema is None else copy_to_host(ema.state_dict()),
        "optimizer": on_host(capture_optimizer(recipe.optimizer, settings)),
        "rng": capture_rng(device_of(recipe.model)),
        "epoch": epoch,
    }


def with_best(state: State, best: Mapping[str, Any] | None, source: str | None = None) -> State:
    """Add the best weights to a state, without another copy if it holds them already.

    Args:
        state: The state, which is not changed.
        best: The best weights with their value and epoch.
        source: ``"model"`` or ``"ema"`` if the best weights equal this part of the state.
    """
    if best is None or source is None:
        return {**state, "best": on_host(best)}
    held = {
        k.removeprefix("module.") if source == "ema" else k: v for k, v in state[source].items()
    }
    names = best["weights"]
    # A module may name its parameters by a hook, so that the average names them differently.
    is_held = all(name in held for name in names)
    weights = {name: held[name] for name in names} if is_held else on_host(names)
    return {**state, "best": {**best, "weights": weights}}


def inherit(recipe: Recipe, ema: AveragedModel | None, state: State) -> None:
    """Load the weights, average, optimizer state and random state from ``state``.

    The recipe keeps its own hyperparameters. ``state`` is copied, so that any number of branches
    can inherit from it.

    Raises:
        InheritanceError: If the network has other parameters than the captured one.
    """
    _check_same_network(recipe.model, state["model"])
    recipe.model.load_state_dict(_with_copied_extra_state(state["model"]), strict=True)
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(_with_copied_extra_state(state["ema"]), strict=True)
    assert recipe.optimizer is not None
    inherit_optimizer(recipe.optimizer, state["optimizer"])
    restore_rng(state["rng"], device_of(recipe.model))


def from_best(state: State) -> State:
    """The state of a child that continues from the best weights of its parent.

    The average of the weights begins with them. The optimizer's state and the random state are
    those of the parent's end.

    Args:
        state: The state at the end of the parent.
    """
    weights, ema = state["best"]["weights"], state["ema"]
    if ema is not None:
        ema = {**ema, **{f"module.{name}": value for name, value in weights.items()}}
    rest = {k: v for k, v in state.items() if k != "best"}
    return {**rest, "model": weights, "ema": ema}


def _with_copied_extra_state(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the extra state of modules, which ``load_state_dict`` may not copy."""
    return {k: v if isinstance(v, Tensor) else copy_tensors(v) for k, v in weights.items()}


def averaged_state(state: State, other: State) -> State:
    """Return ``state`` with the mean of its own weights and those of ``other``.

    Moving averages of the weights and statistics of batch norm are averaged too. Tensors of
    integers, such as counters, and the state of optimizer and random generators are those of
    ``state``.
    """
    parts = {k: _mean(state[k], other[k]) for k in ("model", "ema") if state[k] is not None}
    return {**state, **parts}


def _mean(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    def mean(own: Any, other: Any) -> Any:
        if not isinstance(own, Tensor) or not (own.is_floating_point() or own.is_complex()):
            return own
        # The sibling may have been trained on another device.
        return (own + other.to(own.device)) / 2

    return {name: mean(value, two[name]) for name, value in one.items()}


def _check_same_network(model: nn.Module, inherited: Mapping[str, Any]) -> None:
    """Refuse weights with other names or shapes than those of the network."""
    own = model.state_dict()
    repair = (
        "A mutation must not change the network's parameters: keep the architecture fixed in "
        "`model_fn`."
    )
    for name in [*inherited, *own]:
        if name not in own or name not in inherited:
            where = (
                "the parent has it, the branch lacks it. If the network creates it in `forward`, "
                "create it in `__init__`, or register it with `persistent=False`"
            )
            if name not in inherited:
                where = "the branch has it, the parent lacks it"
            raise InheritanceError(f"Parameter {name!r} cannot be inherited: {where}. {repair}")
        old, new = inherited[name], own[name]
        if isinstance(new, Tensor) and old.shape != new.shape:
            raise InheritanceError(
                f"Parameter {name!r} cannot be inherited: its shape is {tuple(old.shape)} in "
                f"the parent and {tuple(new.shape)} in the branch. {repair}"
            )
