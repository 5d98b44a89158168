"""The state of an optimizer, which one inherits from another.

State is all that an optimizer changes while it trains: its ``state``, what else its
``state_dict`` holds, and every value in its parameter groups and attributes that differs from
the value at construction. The values that it was constructed with are settings. An heir has its
own, because a mutation may have changed them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, optim

from optuna_miha._model.optimizer_conversion import (
    converted,
    groups_by_index,
    is_from_torch,
    with_missing_state,
)
from optuna_miha._model.optimizers import optimizer_parts
from optuna_miha._model.tensors import map_tensors
from optuna_miha.exceptions import InheritanceError

Settings: TypeAlias = list[dict[str, Any]]
"""The values in the parameter groups and the attributes of an optimizer, followed by those of the
optimizers that it wraps."""

_OWN_KEYS = frozenset({"params", "param_names", "lr", "initial_lr"})
"""Keys of a group that are never inherited. The run sets and anneals the learning rate, and a
scheduler starts from the rate that it finds."""

_OWN_ATTRIBUTES = frozenset(
    {
        "defaults",
        "param_groups",
        "state",
        "_need_device_dtype_check_for_fused",
        "_opt_called",
        "_step_count",
        "_warned_capturable_if_run_uncaptured",
    }
)
"""Attributes of an optimizer that are captured otherwise, or belong to torch."""


def optimizer_settings(optimizer: optim.Optimizer) -> Settings:
    """Copy the settings of a newly built optimizer, for :func:`capture_optimizer`."""
    return [_settings(part) for part in optimizer_parts(optimizer)]


def capture_optimizer(
    optimizer: optim.Optimizer, settings: Settings | None = None
) -> dict[str, Any]:
    """Copy the class and the state of an optimizer, without its settings.

    Args:
        optimizer: The optimizer.
        settings: Its settings at construction. :obj:`None`: it has not changed any.
    """
    parts = list(optimizer_parts(optimizer))
    settings = settings or [_settings(part) for part in parts]
    captured = [_capture(part, own) for part, own in zip(parts, settings, strict=True)]
    # In one copy, because a wrapper and the wrapped optimizer may share their state.
    first, *wrapped = _copy(captured)
    return {**first, "wrapped": wrapped} if wrapped else dict(first)


def inherit_optimizer(optimizer: optim.Optimizer, captured: Mapping[str, Any]) -> None:
    """Load the state of another optimizer, and keep the optimizer's own settings.

    An optimizer of the same class inherits the whole state. Adam, AdamW and NAdam inherit each
    other's moments, and SGD with momentum inherits Adam's first moment. Other pairs of classes
    inherit nothing.

    Args:
        optimizer: The optimizer, newly built over parameters of the same shapes in the same
            order. Its groups stay the same objects.
        captured: The result of :func:`capture_optimizer`; it is copied, not aliased.

    Raises:
        InheritanceError: If the two optimizers do not hold the same parameters.
    """
    n_params = _n_params(optimizer)
    if n_params != captured["n_params"]:
        raise InheritanceError(
            f"The optimizer must hold the parent's {captured['n_params']} parameters, got "
            f"{n_params}: build it from the same parameters in every branch."
        )
    # Without a copy, siblings would share their moments.
    parents = _copy([captured, *captured.get("wrapped", ())])
    parts = list(optimizer_parts(optimizer))
    if "groups" not in captured:  # Stored by a version that did not look into wrappers.
        parts = parts[:1]
    if not _are_same_classes(parts, parents):
        parents = [converted(parents, optimizer)]
        parts = parts[:1] if parents[0]["state"] else []
    settings = [_settings(part) for part in parts]
    restorations = [_Restoration(part) for part in parts]
    for part, parent in zip(parts, parents, strict=False):
        _load(part, parent)
    for restoration in restorations:
        restoration.restore()
    for part, own, parent in zip(parts, settings, parents, strict=False):
        _apply_settings(part, own, parent)


def move_optimizer_state(optimizer: optim.Optimizer, device: torch.device) -> None:
    """Move the state of a new optimizer to the device of its parameters.

    Few optimizers, such as Adagrad and wrappers like Lookahead, have state before their first
    step. The fused implementation of Adagrad is used on the CPU only, because torch 2.7 has none
    for other devices.

    Args:
        optimizer: The optimizer, changed in place; its groups stay the same objects.
        device: The device of its parameters.
    """
    for part in optimizer_parts(optimizer):
        if part.state:
            if device.type != "cpu" and isinstance(part, optim.Adagrad):
                for group in part.param_groups:
                    group["fused"] = None
            restoration = _Restoration(part)
            _load(part, {"state": part.state_dict().get("state", {})})
            restoration.restore()


def _capture(optimizer: optim.Optimizer, settings: Mapping[str, Any]) -> dict[str, Any]:
    stored = optimizer.state_dict()
    now = _values(optimizer)
    learned = [_learned(*pair) for pair in zip(settings["groups"], now["groups"], strict=False)]
    return {
        "class": type(optimizer).__name__,
        "from_torch": is_from_torch(optimizer),
        "n_params": _n_params(optimizer),
        "dtypes": [str(p.dtype) for g in optimizer.param_groups for p in g["params"]],
        "state": dict(stored.get("state", {})),
        "others": {k: v for k, v in stored.items() if k not in ("state", "param_groups")},
        "sizes": [len(group["params"]) for group in optimizer.param_groups],
        "groups": learned,
        "attributes": _learned(settings["attributes"], now["attributes"]),
    }


def _settings(optimizer: optim.Optimizer) -> dict[str, Any]:
    values: dict[str, Any] = _copy(_values(optimizer))
    return values


def _values(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the values in the groups and the attributes that can be stored."""
    groups = optimizer.param_groups
    parameters = {id(p) for group in groups for p in group["params"]}

    def plain(values: Mapping[str, Any], excluded: frozenset[str]) -> dict[str, Any]:
        names = values.keys() - excluded
        return {k: v for k, v in values.items() if k in names and _is_plain(v, parameters)}

    return {
        "groups": [plain(group, _OWN_KEYS) for group in groups],
        "attributes": plain(vars(optimizer), _OWN_ATTRIBUTES),
    }


def _is_plain(value: Any, parameters: set[int]) -> bool:
    """Whether a value consists of numbers, strings and tensors that are not parameters.

    A subclass of :class:`dict`, such as the one that holds torch's hooks, does not, and neither
    does a dictionary of parameters by ``id``, which differs between branches.
    """
    if isinstance(value, Tensor):
        return id(value) not in parameters and not isinstance(value, torch.nn.Parameter)
    if type(value) is dict:
        parts = [part for pair in value.items() for part in pair]
        return not parameters & {key for key in value if type(key) is int} and all(
            _is_plain(part, parameters) for part in parts
        )
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part, parameters) for part in value)
    return value is None or isinstance(value, (bool, int, float, complex, str))


def _learned(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that have changed, each as a list: the value now, and before if any."""
    return {
        key: [value, *([before[key]] if key in before else [])]
        for key, value in now.items()
        if key not in before or not _equal(before[key], value)
    }


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        is_alike = one.dtype == other.dtype and one.shape == other.shape
        return is_alike and torch.equal(one.cpu(), other.cpu())
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other) or (one != one and other != other)  # Both may be NaN.


def _load(optimizer: optim.Optimizer, captured: Mapping[str, Any]) -> None:
    """Load a state by the optimizer's own method, without torch's change of dtypes."""
    own = optimizer.state_dict()
    groups = groups_by_index(optimizer) if is_from_torch(optimizer) else {}
    given = {
        **own,
        **captured.get("others", {}),
        # Loading an empty state would delete the initial state of Adagrad.
        "state": {
            k: with_missing_state(v, groups.get(k, {})) for k, v in captured["state"].items()
        }
        or own.get("state", {}),
    }
    if "state" not in own:
        del given["state"]
    loaded: dict[str, Any] = {}
    with ExitStack() as stack:
        with suppress(AttributeError):  # A wrapper that does not call `super().__init__`.
            hook = optimizer.register_load_state_dict_pre_hook(lambda _, sd: loaded.update(sd))
            stack.callback(hook.remove)
        optimizer.load_state_dict(given)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    dtypes = captured.get("dtypes", [])
    for index, (parameter, dtype) in enumerate(zip(parameters, dtypes, strict=False)):
        if str(parameter.dtype) == dtype and index in loaded.get("state", {}):
            entry = _uncast(optimizer.state[parameter], loaded["state"][index])
            optimizer.state[parameter] = entry
    for key, value in optimizer.state.items():
        if not isinstance(key, Tensor):  # Torch moves only the state of parameters.
            optimizer.state[key] = map_tensors(value, lambda t: _moved(t, parameters[0].device))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, except for counters, which torch keeps on the CPU."""
    return tensor.to(device) if tensor.ndim > 0 else tensor


def _uncast(loaded: Any, given: Any) -> Any:
    """Undo that torch converts all state of a parameter to its dtype, and strings to nonsense."""
    if isinstance(loaded, Tensor) and isinstance(given, Tensor):
        return loaded if loaded.dtype == given.dtype else given.to(loaded.device)
    if isinstance(loaded, dict) and isinstance(given, Mapping) and loaded.keys() == given.keys():
        return {key: _uncast(loaded[key], given[key]) for key in loaded}
    if isinstance(loaded, (list, tuple)) and type(loaded) is type(given):
        return type(loaded)(map(_uncast, loaded, given))
    return given if isinstance(given, str) else loaded


class _Restoration:
    """Keeps the objects of an optimizer that ``load_state_dict`` replaces.

    A wrapper and the wrapped optimizer share them, and the user's code may refer to them.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state = optimizer.state
        self._groups = optimizer.param_groups
        self._own = [(group, dict(group)) for group in self._groups]

    def restore(self) -> None:
        """Put back the groups with their own values, and the state with the loaded ones."""
        optimizer, state = self._optimizer, self._optimizer.state
        if state is not self._state:
            loaded = dict(state)
            self._state.clear()
            self._state.update(loaded)
            with suppress(AttributeError):  # A property: the state of a wrapped optimizer.
                optimizer.state = self._state
        for group, own in self._own:
            group.clear()
            group.update(own)
        if optimizer.param_groups is not self._groups:
            with suppress(AttributeError):
                optimizer.param_groups = self._groups


def _apply_settings(
    optimizer: optim.Optimizer, own: Mapping[str, Any], captured: Mapping[str, Any]
) -> None:
    """Set what the parent has learned, and the own value of each setting that differs."""
    groups, learned = optimizer.param_groups, captured.get("groups", [])
    sizes = [len(group["params"]) for group in groups]
    if any(learned) and sizes != captured["sizes"]:
        raise InheritanceError(
            "The optimizer must have the parent's parameter groups, because it changes values in "
            f"them, got groups of {sizes} instead of {captured['sizes']} parameters: build the "
            "same groups in every branch."
        )
    for group, before, changes in zip(groups, own["groups"], learned, strict=False):
        group.update(_inherited(before, changes))
    before, loaded = own["attributes"], _values(optimizer)["attributes"]
    kept = {key: value for key, value in before.items() if key in loaded}
    inherited = _inherited(before, captured.get("attributes", {}))
    vars(optimizer).update({**kept, **inherited})


def _inherited(own: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learned values of settings that a mutation has not changed."""
    return {
        key: value
        for key, (value, *before) in learned.items()
        if (_equal(own[key], before[0]) if key in own and before else key not in own)
    }


def _are_same_classes(
    parts: Sequence[optim.Optimizer], parents: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether an optimizer and those that it wraps have the classes of the parent's."""
    own = [(type(part).__name__, is_from_torch(part)) for part in parts]
    # Another package may have a class of the same name.
    return own == [
        (parent["class"], parent.get("from_torch", from_torch))
        for parent, (_, from_torch) in zip(parents, own, strict=False)
    ] and len(own) == len(parents)


def _n_params(optimizer: optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _copy(value: Any) -> Any:
    """Copy nested containers and their tensors; tensors that share memory do so in the copy."""
    return copy.deepcopy(map_tensors(value, Tensor.detach))
