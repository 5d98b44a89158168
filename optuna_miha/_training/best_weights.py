"""The best weights of a segment, raw or averaged."""

from __future__ import annotations

import math
from typing import Any

from torch.optim.swa_utils import AveragedModel

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._training.compute import Engine
from optuna_miha._training.running_statistics import FirstBatches, estimate_running_statistics
from optuna_miha._training.state import update_ema
from optuna_miha._training.trainer import evaluate


def update_average(
    recipe: Recipe,
    ema: AveragedModel,
    sample: FirstBatches | None,
    engine: Engine,
) -> float:
    """Update the average of the weights after an epoch, and return its validation value."""
    update_ema(ema, recipe.model)
    if sample is not None:
        # The buffers are copies of the network's, whose activations differ.
        estimate_running_statistics(recipe, ema.module, sample.take(), engine)
    return evaluate(recipe, ema.module, engine)[recipe.monitor]


def validated(
    recipe: Recipe, ema: AveragedModel | None, epoch: int, engine: Engine
) -> dict[str, Any]:
    """Return the weights that represent a branch, the average if there is one, and their value."""
    model = recipe.model if ema is None else ema.module
    value = evaluate(recipe, model, engine)[recipe.monitor]
    return {"value": value, "epoch": epoch, "weights": copy_tensors(model.state_dict())}


def updated_best(
    best: dict[str, Any] | None,
    result: EpochResult,
    epoch: int,
    recipe: Recipe,
    ema: AveragedModel | None,
    sign: int,
) -> dict[str, Any] | None:
    """Return the best weights, raw or averaged, including those of the last epoch."""
    value, model = result.value, recipe.model
    if ema is not None and _is_average_best(result, sign):
        value, model = result.score, ema.module
    if not math.isfinite(value) or (best is not None and sign * best["value"] <= sign * value):
        return best
    return {"value": value, "epoch": epoch, "weights": copy_tensors(model.state_dict())}


def best_source(
    best: dict[str, Any] | None,
    result: EpochResult,
    epoch: int,
    ema: AveragedModel | None,
    sign: int,
) -> str | None:
    """Return the part of the present state that the best weights equal, or :obj:`None`.

    Args:
        best: The best weights after the last epoch.
        result: The result of the last epoch.
        epoch: The number of the last epoch.
        ema: The moving average of the weights.
        sign: 1 if the study minimizes, -1 if it maximizes.
    """
    if best is None or best["epoch"] != epoch:
        return None
    return "ema" if ema is not None and _is_average_best(result, sign) else "model"


def _is_average_best(result: EpochResult, sign: int) -> bool:
    """Whether the average, whose value is the score, is at least as good as the raw weights."""
    return not sign * result.score > sign * result.value
