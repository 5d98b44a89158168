"""Check that a branch is not validated by a measure of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from optuna_miha._model.batches import split_batch
from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import Initial, build_recipe, offline_trial
from optuna_miha._model.recipe import Recipe, accuracy, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.step_output import loss_of, step_output
from optuna_miha._model.tensors import is_equal, map_tensors
from optuna_miha._training.changes import MAX_BUILDS, describe_value
from optuna_miha._training.context import Context
from optuna_miha._training.data import evaluation_batches
from optuna_miha._training.data_checks import has_same_targets
from optuna_miha._training.metrics import Metrics
from optuna_miha._training.trainer import outputs_of

_MODEL_PARAMS = ("activation", "batch_size", "dropout", "lr", "momentum", "optimizer")
"""Kinds of suggested parameters that are no part of a loss."""


def check_grading(context: Context, initial: Initial, changes: Mapping[str, Any]) -> None:
    """Refuse a measure of validation that depends on a suggested value.

    Two networks with the same weights are built, one of the initial configuration and one with
    other values. If both compute the same outputs for a batch, their validation must agree. That
    a value changes the outputs is its right.

    Args:
        context: The context of the run. With a user-defined trainer, nothing is checked.
        initial: The initial configuration.
        changes: Another value of each parameter that may mutate.

    Raises:
        ValueError: If the monitored metric, or the ``train_step``, depends on a value.
    """
    metric = initial.recipe.metrics.get(initial.recipe.monitor, accuracy)
    if context.trainer is not None or (context.valid_step is None and metric is accuracy):
        return
    if context.valid_step is not None:
        known = initial.recipe.suggestions.names
        changes = {
            name: value
            for name, value in changes.items()
            if name not in known or not name.startswith(_MODEL_PARAMS)
        }
    name = None
    with suppress(Exception), preserved_rng(), torch.no_grad():  # See `_first_alone`.
        name = _first_alone(_Measure(context, initial.params).is_shared_with, changes)
    if name is not None:
        raise _self_graded(context, initial, name, changes[name])


def check_targets(context: Context, initial: Initial, changes: Mapping[str, Any]) -> None:
    """Refuse validation targets that depend on a suggested value.

    Args:
        context: The context of the run. With a user-defined trainer, nothing is checked.
        initial: The initial configuration.
        changes: Another value of each parameter that may mutate.

    Raises:
        ValueError: If the targets, or the number of samples, depend on a value.
    """
    if context.trainer is not None:
        return

    def is_shared_with(changes: Mapping[str, Any]) -> bool:
        trial = offline_trial({**initial.params, **changes})
        recipe = build_recipe(context.model_fn, trial, context.seed)
        return has_same_targets(initial.recipe, recipe)

    name = None
    with suppress(Exception):  # See `_first_alone`.
        name = _first_alone(is_shared_with, changes)
    if name is not None:
        raise ValueError(
            "Validation must use the same samples and targets with all hyperparameters, because "
            "branches are compared by it, got others when "
            f"{describe_value(initial, name, changes[name])}: let the suggested value change only "
            "the training data, or the inputs of the validation data."
        )


def _first_alone(
    is_shared_with: Callable[[Mapping[str, Any]], bool], changes: Mapping[str, Any]
) -> str | None:
    """The first parameter that has a measure of its own; :obj:`None` if all share one.

    Other checks raise what ``is_shared_with`` raises, with a better message.

    Args:
        is_shared_with: Whether the measure stays the same with some changes.
        changes: Another value of each parameter.
    """
    if not changes or is_shared_with(changes):
        return None
    names = list(changes)[:MAX_BUILDS]
    own = [name for name in names if not is_shared_with({name: changes[name]})]
    return own[0] if own else None


class _Measure:
    """The validation of the initial configuration, to compare others with.

    Args:
        context: The context of the run.
        params: The initial parameters.
    """

    def __init__(self, context: Context, params: Mapping[str, Any]) -> None:
        self._context = context
        self._params = dict(params)
        self._recipe = self._build(self._params)
        self._weights = self._recipe.model.state_dict()
        with DataState().watch(self._recipe.valid_data):
            device = device_of(self._recipe.model)
            batches = evaluation_batches(
                self._recipe.valid_data, device, self._recipe.valid_batch_size
            )
            self._batch = next(iter(batches))
        self._values = self._values_of(self._recipe)
        # One that draws numbers of its own cannot be compared.
        self._is_stable = is_equal(self._values, self._values_of(self._recipe))

    def is_shared_with(self, changes: Mapping[str, Any]) -> bool:
        """Whether validation agrees where the networks' outputs do."""
        recipe = self._build({**self._params, **changes})
        recipe.model.load_state_dict(self._weights)
        (own_outputs, own), (outputs, other) = self._values, self._values_of(recipe)
        is_comparable = self._is_stable and len(outputs) > 0 and is_equal(own_outputs, outputs)
        return not is_comparable or is_equal(own, other)

    def _build(self, params: dict[str, Any]) -> Recipe:
        trial = offline_trial(params)
        recipe = build_recipe(self._context.model_fn, trial, self._context.seed)
        recipe = self._context.on_device(recipe)
        recipe.model.eval()
        return recipe

    def _values_of(self, recipe: Recipe) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs that are compared, and what validation says of them."""
        engine, device = self._context.engine, device_of(recipe.model)
        seed_all(self._context.seed)
        if self._context.valid_step is not None:
            outputs: list[Tensor] = []
            hook = recipe.model.register_forward_hook(lambda *call: _add(call[-1], outputs))
            with engine.autocast(device):
                result = self._context.valid_step(
                    recipe.model, self._batch, self._context.valid_loss_fn
                )
            hook.remove()
            values = [loss_of(result)]
            found = step_output(result)
            if found is not None and recipe.monitor in recipe.metrics:
                values = [_metric_of(recipe, found.outputs, found.targets)]
            return outputs, [torch.as_tensor(value) for value in values]
        # Those of the initial network, because metrics are functions of outputs alone.
        parts = split_batch(self._batch)
        output = outputs_of(self._recipe.model, parts, device, engine)
        values = [_metric_of(recipe, output, parts.target)]
        with suppress(Exception):  # It may expect probabilities.
            # An untrained network may be indifferent.
            noisy = output + 3 * torch.randn_like(output)
            values.append(_metric_of(recipe, noisy, parts.target))
        return [output], [torch.as_tensor(value) for value in values]


def _metric_of(recipe: Recipe, outputs: Any, targets: Any) -> float:
    """Compute the monitored metric of one batch."""
    metric = {recipe.monitor: recipe.metrics[recipe.monitor]}
    metrics = Metrics(metric, device_of(recipe.model))
    metrics.add(outputs, targets)
    return metrics.compute()[recipe.monitor]


def _add(output: Any, outputs: list[Tensor]) -> None:
    """Add the tensors of an output, except for a loss that the network computes itself."""

    def add(tensor: Tensor) -> None:
        if tensor.ndim > 0:
            outputs.append(tensor)

    map_tensors(output, add)


def _self_graded(context: Context, initial: Initial, name: str, value: Any) -> ValueError:
    change = describe_value(initial, name, value)
    if context.valid_step is None:
        return ValueError(
            "The monitored metric must not depend on a suggested value, because branches are "
            f"compared by it, got other values of {initial.recipe.monitor!r} for the same outputs "
            f"when {change}: use a fixed value in the metric, or apply the suggested one in the "
            "`forward` of the network."
        )
    return ValueError(
        "Validation must depend on a suggested value by the outputs of the network alone, because "
        "branches are compared by it, got another loss of the `train_step` for the same weights "
        f"and outputs when {change}, for example because the network holds the weight of a term: "
        "define the `train_step` in `model_fn`, and use the suggested value in it directly rather "
        "than as an attribute of the network. Validation then uses the initial value."
    )
