"""The link between a recipe and the trainer that an adapter runs it with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from torch.optim import Optimizer

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.recipe import Recipe

_S = TypeVar("_S", bound="Session")

_NO_METRICS = ("_runtime", "_per_second", "dur", "epoch")
"""Ends of names of what loops put beside their metrics; times differ from run to run."""


class Session:
    """What the recipe of an adapter needs besides network and optimizer; part of extra state.

    Args:
        optimizer: The optimizer that the loop steps.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.n_steps = 0
        # With a hook, the default search space adjusts the optimizer and does not replace it.
        optimizer.register_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self.n_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps of the lineage."""
        return {"n_steps": self.n_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the number of steps."""
        self.n_steps = state["n_steps"]


def session_of(recipe: Recipe, cls: type[_S], adapter: str) -> _S:
    """Return the session of a recipe.

    Args:
        recipe: The recipe.
        cls: The class of the session.
        adapter: The name of the adapter's class.

    Raises:
        ValueError: If the recipe is not of the adapter, or has an optimizer of another origin.
    """
    found = [part for part in recipe.extra_state.values() if isinstance(part, cls)]
    if not found:
        raise ValueError(
            f"With a {adapter}, `model_fn` must return its recipe, got one without it: end "
            "`model_fn` with `return trainer.recipe(...)`, and keep its `extra_state`."
        )
    if recipe.optimizer is not found[0].optimizer:
        raise ValueError(
            f"A {adapter} must control the optimizer, got a recipe with another one than that of "
            "the loop: leave `recipe.optimizer` as it is, and give the suggested values to the "
            "optimizer where the loop creates it."
        )
    return found[0]


def result_of(metrics: Mapping[str, Any], monitor: str, adapter: str) -> EpochResult:
    """Make the result of an epoch of the metrics of the loop.

    Args:
        metrics: The metrics by name; those that are no numbers are left out.
        monitor: The name of the monitored one.
        adapter: The name of the adapter's class.

    Raises:
        ValueError: If it is missing.
    """
    if monitor not in metrics:
        raise ValueError(
            f"`monitor` of a {adapter} must be a metric of every epoch, got {monitor!r}, but the "
            f"loop has computed {sorted(metrics)}: log it in every validation, or monitor another."
        )
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, bool) or (name.endswith(_NO_METRICS) and name != monitor):
            continue
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue
    train_loss = numbers.pop("train_loss", math.nan)
    others = {name: value for name, value in numbers.items() if name != monitor}
    return EpochResult(value=numbers[monitor], train_loss=train_loss, metrics=others)
