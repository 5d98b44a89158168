"""The network that a method selected on validation data, and its test metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FixedTrial
from torch import Tensor, nn

from optuna_miha._model.model_fn import ModelFn, build_initial, build_recipe
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.trainer import evaluate


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The network that a method selected on validation data.

    Args:
        value: Validation value; NaN if there never was a finite one.
        params: Hyperparameters that the network is built with.
        weights: Weights of the network; :obj:`None` if there never was a finite value.
        curve: Pairs of epochs spent and the best validation value so far, where it improved.
    """

    value: float
    params: dict[str, Any]
    weights: dict[str, Tensor] | None
    curve: list[tuple[int, float]]


def tested(model_fn: ModelFn, selected: Selected, seed: int) -> dict[str, float] | None:
    """Loss and metrics on the test data, as :func:`optuna_miha.compare` computes them.

    Args:
        model_fn: The task; its recipe has test data.
        selected: The network to test.
        seed: Seed of the run.
    """
    if selected.weights is None or math.isnan(selected.value):
        return None
    network = build_recipe(model_fn, FixedTrial(selected.params), seed).model
    network.load_state_dict(selected.weights)
    return examined(model_fn, network, seed)


def examined(model_fn: ModelFn, network: nn.Module, seed: int) -> dict[str, float]:
    """Loss and metrics of a network on the test data.

    Args:
        model_fn: The task; its recipe has test data.
        network: The network to test.
        seed: Seed of the run.
    """
    recipe = build_initial(model_fn, seed).recipe
    assert recipe.test_data is not None
    # The test loss does not depend on a mutated loss or on label smoothing.
    loss_fn = recipe.valid_loss_fn or recipe.loss_fn
    exam = replace(recipe, valid_data=recipe.test_data, test_data=None, valid_loss_fn=loss_fn)
    with intra_op_threads(1):
        return evaluate(exam, network)
