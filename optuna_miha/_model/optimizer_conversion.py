"""Convert the state of an optimizer to another class or other settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import optim

_SHARE_MOMENTS = ("Adam", "AdamW", "NAdam")


def with_missing_state(entry: Any, group: Mapping[str, Any]) -> Any:
    """Initialize the state that the optimizer's settings need and the parent's did not."""
    if not isinstance(entry, dict):
        return entry
    if group.get("amsgrad") and "exp_avg_sq" in entry:
        entry.setdefault("max_exp_avg_sq", entry["exp_avg_sq"].clone())
    if "square_avg" in entry and "acc_delta" not in entry:  # RMSprop; Adadelta has both.
        if group.get("momentum"):
            entry.setdefault("momentum_buffer", torch.zeros_like(entry["square_avg"]))
        if group.get("centered"):
            entry.setdefault("grad_avg", torch.zeros_like(entry["square_avg"]))
    return entry


def _convert_entry(entry: dict[str, Any], old: str, new: str, momentum: float) -> dict[str, Any]:
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


def is_from_torch(optimizer: optim.Optimizer) -> bool:
    """Whether the class of an optimizer is one of torch's."""
    return type(optimizer).__module__.startswith("torch.")


def groups_by_index(optimizer: optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return the group of each parameter, by the index of the parameter."""
    return dict(enumerate(group for group in optimizer.param_groups for _ in group["params"]))


def converted(parents: Sequence[Mapping[str, Any]], optimizer: optim.Optimizer) -> dict[str, Any]:
    """Convert the state of an optimizer to another class; the result may be empty."""
    state: dict[int, Any] = {}
    first = parents[0]
    if len(parents) == 1 and first.get("from_torch", True) and is_from_torch(optimizer):
        groups = groups_by_index(optimizer)
        for index, entry in first["state"].items():
            momentum = groups[index].get("momentum", 0.0)
            state[index] = _convert_entry(
                entry, first["class"], type(optimizer).__name__, momentum
            )
    return {"state": {index: entry for index, entry in state.items() if entry}}
