"""State besides that of network, optimizer and data: schedulers, environments, buffers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optuna_miha._model.optimizer_state import (
    capture_optimizer,
    inherit_optimizer,
    move_optimizer_state,
    optimizer_settings,
)
from optuna_miha._model.tensors import copy_tensors, is_equal

_Scalar = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Stateful(Protocol):
    """An object with a state that can be stored."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Restore the state."""
        ...


_S = TypeVar("_S", bound=Stateful)


class ExtraState(AbstractContextManager["ExtraState"]):
    """The registered objects of one segment, and what they inherit.

    It is the one mechanism for whatever must outlive a segment and is not part of the model, the
    recipe's optimizer or the training data. ``Recipe.extra_state`` and
    :meth:`TrainerContext.register` use it. Code of this package that needs another part does the
    same: ``extra.register("scheduler", scheduler)`` before the first epoch, when the recipe has
    inherited its state. Capturing, copies for siblings, checkpoints and resuming follow from it.

    An object gets the state that its parent had under the same name, if it is of the same class;
    otherwise it keeps its own. What no object is registered for is passed on unchanged. The values
    that an optimizer or a learning rate scheduler was constructed with are settings, which a
    mutation may have changed, and are not inherited.

    On leaving the context, the objects get back the state that they had when they were registered:
    one that was created outside of ``model_fn`` would carry it into siblings otherwise.
    """

    def __init__(self) -> None:
        self._inherited: Mapping[str, Any] = {}
        self._parts: dict[str, _Part] = {}

    def __exit__(self, *_: object) -> None:
        for part in self._parts.values():
            part.reset()

    def inherit(self, state: Mapping[str, Any]) -> None:
        """Use the extra part of a segment's state for the objects that are registered later."""
        self._inherited = state.get("extra", {})  # Earlier versions did not store it.

    def register(self, name: str, part: _S) -> _S:
        """Register an object, and restore its inherited state.

        Args:
            name: Its name, the same in every segment.
            part: The object.

        Returns:
            The object.

        Raises:
            TypeError: If it has no ``state_dict`` and ``load_state_dict``, or if a checkpoint
                cannot hold its state.
            ValueError: If another object has the name.
        """
        if not isinstance(name, str):
            raise TypeError(f"The name of extra state must be a string, got {name!r}.")
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(part, method, None)):
                raise TypeError(
                    f"Extra state must have `state_dict` and `load_state_dict`, got {name!r} of "
                    f"{type(part).__qualname__}, which has no `{method}`: write the method, or "
                    "register an object that has it."
                )
        if name in self._parts:
            if self._parts[name].part is part:
                return part
            raise ValueError(
                f"Names of extra state must be unique, got two objects named {name!r}: register "
                "an object once per call of the trainer, under a name of its own."
            )
        new = _make_part(name, part)
        new.capture()  # Refuses a state that cannot be stored.
        inherited = self._inherited.get(name)
        if inherited is not None and inherited["kind"] == new.kind:
            new.inherit(inherited)
        self._parts[name] = new
        return part

    def capture(self) -> dict[str, Any]:
        """Copy the state, as a part of the state of the segment; empty if there is none.

        Raises:
            TypeError: If a checkpoint cannot hold it.
        """
        extra = dict(copy_tensors(self._inherited))
        extra |= {name: part.capture() for name, part in self._parts.items()}
        return {"extra": extra} if extra else {}


def _make_part(name: str, part: Any) -> _Part:
    if isinstance(part, Optimizer):
        return _OptimizerPart(name, part)
    if isinstance(part, LRScheduler):
        return _SchedulerPart(name, part)
    return _Part(name, part)


class _Part:
    """One object of any class."""

    def __init__(self, name: str, part: Any) -> None:
        self.name = name
        self.part = part
        self.kind = type(part).__qualname__
        self._first = copy_tensors(part.state_dict())

    def capture(self) -> dict[str, Any]:
        state = copy_tensors(self.part.state_dict())
        _check_storable(self.name, state)
        return {"kind": self.kind, "state": state}

    def inherit(self, captured: Mapping[str, Any]) -> None:
        self.part.load_state_dict(copy_tensors(captured["state"]))

    def reset(self) -> None:
        self.part.load_state_dict(self._first)


class _OptimizerPart(_Part):
    """An optimizer besides the recipe's; its settings, such as the learning rate, are its own."""

    def __init__(self, name: str, part: Optimizer) -> None:
        self.name = name
        self.part = part
        self.kind = "optimizer"
        move_optimizer_state(part, part.param_groups[0]["params"][0].device)
        self._settings = optimizer_settings(part)

    def capture(self) -> dict[str, Any]:
        state = capture_optimizer(self.part, self._settings)
        _check_storable(self.name, state)
        return {"kind": self.kind, "state": state}

    def inherit(self, captured: Mapping[str, Any]) -> None:
        inherit_optimizer(self.part, captured["state"])

    def reset(self) -> None:
        """It holds parameters of the segment's network, and ends with it."""


class _SchedulerPart(_Part):
    """A learning rate scheduler, whose settings and base rates are its own."""

    def __init__(self, name: str, part: LRScheduler) -> None:
        super().__init__(name, part)
        groups = part.optimizer.param_groups
        # A warm-up may begin at zero, so that the present rate is no reference.
        self._base_rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self._base_momenta = [_momenta(group) for group in groups]

    def capture(self) -> dict[str, Any]:
        groups = self.part.optimizer.param_groups
        rates, momenta = [float(group["lr"]) for group in groups], list(map(_momenta, groups))
        return {
            **super().capture(),
            "settings": self._first,
            "rates": [rates, self._base_rates],
            "momenta": [momenta, self._base_momenta],
        }

    def inherit(self, captured: Mapping[str, Any]) -> None:
        own, groups = copy_tensors(self._first), self.part.optimizer.param_groups
        state = _with_learned(own, captured["settings"], copy_tensors(captured["state"]))
        pairs = zip(groups, self._base_rates, *captured["rates"], strict=False)
        for group, base, rate, parent_base in pairs:
            # A scheduler that multiplies the present rate continues from the factor it reached.
            _set_rate(group, rate if base == parent_base else base * (rate / (parent_base or 1.0)))
        for group, momenta, before in zip(groups, *captured["momenta"], strict=False):
            # Few schedulers set them, and only their step would set them again.
            group.update({k: v for k, v in momenta.items() if v != before.get(k) and k in group})
        self.part.load_state_dict({**state, "_last_lr": [group["lr"] for group in groups]})

    def reset(self) -> None:
        """It belongs to an optimizer of the segment, and ends with it."""


def _with_learned(own: Any, before: Any, now: Any) -> Any:
    """Return ``now`` where it has changed from ``before``, and ``own`` elsewhere."""
    if isinstance(now, dict) and isinstance(own, dict) and isinstance(before, dict):
        merged = {k: _with_learned(own.get(k), before.get(k), v) for k, v in now.items()}
        return {**own, **merged}
    are_lists = isinstance(now, list) and isinstance(own, list) and isinstance(before, list)
    if are_lists and len(now) == len(own) == len(before) and any(isinstance(v, dict) for v in now):
        return [_with_learned(*parts) for parts in zip(own, before, now, strict=True)]
    return own if is_equal(before, now) and type(before) is type(now) else now


def _momenta(group: Mapping[str, Any]) -> dict[str, Any]:
    """The momentum of a parameter group, which a scheduler such as OneCycleLR sets."""
    return {key: copy_tensors(group[key]) for key in ("momentum", "betas") if key in group}


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a learning rate, which is a tensor for some optimizers."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _check_storable(name: str, state: Any) -> None:
    """Refuse a state that a checkpoint cannot hold, or not give back without running code."""
    found = _not_storable(state, "")
    if found is not None:
        path, value = found
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(
            f"The `state_dict` of the extra state {name!r} must consist of tensors, numbers, "
            "strings, and lists, tuples and dictionaries of them, so that a checkpoint can be "
            f"read without running code, got {kind} at `state_dict(){path}`: convert it, for "
            "example with `torch.as_tensor`, `float` or `list`."
        )


def _not_storable(value: Any, path: str) -> tuple[str, Any] | None:
    if isinstance(value, Tensor) or type(value) in _Scalar:
        return None
    if isinstance(value, Mapping):
        for key, part in value.items():
            if type(key) not in _Scalar:
                return f"{path}, as a key", key
            if (found := _not_storable(part, f"{path}[{key!r}]")) is not None:
                return found
        return None if type(value) is dict else (path, value)
    if type(value) in (list, tuple, torch.Size):
        for index, part in enumerate(cast("list[Any]", value)):
            if (found := _not_storable(part, f"{path}[{index}]")) is not None:
                return found
        return None
    return path, value
