"""The batch norm statistics of averaged weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from optuna_miha._model.batches import split_batch
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._model.rng import preserved_rng
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.compute import Engine
from optuna_miha._training.modes import frozen_modules, set_training

N_SAMPLES = 512
"""Training samples per epoch from which running statistics are estimated."""


class FirstBatches:
    """Copies of the first training batches of an epoch, with at least ``N_SAMPLES`` samples.

    They are copies because a network may change its inputs in place.
    """

    def __init__(self) -> None:
        self._batches: list[Any] = []
        self._lengths: list[int] = []

    def add(self, batch: Any) -> None:
        """Copy a batch, unless it is short or there are enough samples."""
        length = batch_length(batch)
        # All batches have the same weight, so that a short last batch would only add noise.
        is_short = bool(self._lengths) and 2 * length < self._lengths[0]
        if sum(self._lengths) < N_SAMPLES and not is_short:
            self._batches.append(copy_tensors(batch))
            self._lengths.append(length)

    def take(self) -> list[Any]:
        """Return the batches and forget them."""
        batches, self._batches, self._lengths = self._batches, [], []
        return batches


def has_running_statistics(model: nn.Module) -> bool:
    """Whether a network has batch norm layers with running statistics."""
    return next(_layers(model), None) is not None


@torch.no_grad()
def estimate_running_statistics(
    recipe: Recipe, model: nn.Module, batches: Sequence[Any], engine: Engine
) -> None:
    """Replace the running statistics of a network by their mean over training batches.

    Frozen layers keep their statistics: layers that remain in evaluation mode during training,
    and layers with a momentum of 0. All other modules are in evaluation mode, so that there is no
    dropout and no other buffer changes. The random state is preserved.

    Args:
        recipe: The recipe that the network is trained with.
        model: The network; it need not be ``recipe.model``.
        batches: Training batches. The network may change them in place.
        engine: The compute settings.
    """
    frozen = frozen_modules(model)
    set_training(model, frozen)
    layers = [layer for layer in _layers(model) if layer.training and layer.momentum != 0]
    model.eval()
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.training = True
        layer.momentum = None  # The running statistics become the mean over all batches.
        layer.num_batches_tracked = torch.tensor(0)
    with preserved_rng(), engine.autocast(device_of(model)):
        for batch in batches:
            if recipe.train_step is not None:
                recipe.train_step(model, batch, recipe.loss_fn)
            else:
                split_batch(batch).outputs(model)
    for layer, (momentum, counter) in zip(layers, before, strict=True):
        layer.momentum, layer.num_batches_tracked = momentum, counter
    set_training(model, frozen)


def _layers(model: nn.Module) -> Iterator[_BatchNorm]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            yield module
