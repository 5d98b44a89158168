"""Updates of the weights: backward passes, accumulation, clipping, scaling, and schedulers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._training.compute import Engine
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.loss_weights import LossWeights
from optuna_miha._training.scheduler_checks import make_scheduler


class Updates:
    """Updates the weights with the gradients of one batch, or of several.

    Without options of the recipe and in single precision, an update is a backward pass and a step
    of the optimizer.

    With ``accumulate``, the gradients of several batches are combined in proportion to what each
    batch counts in the loss, so that they equal those of one large batch. The scaler of half
    precision and the scheduler of the recipe are extra state, and outlive a segment.

    Args:
        recipe: The recipe, with an optimizer.
        engine: The compute settings.
        weights: What each batch counts in the loss.
        extra: The extra state of the segment.
    """

    def __init__(
        self, recipe: Recipe, engine: Engine, weights: LossWeights, extra: ExtraState
    ) -> None:
        assert recipe.optimizer is not None
        self._optimizer = recipe.optimizer
        self._clip = recipe.grad_clip
        self._size = recipe.accumulate
        self._weights = weights
        self._scaler: GradScaler | None = None
        if engine.precision == "fp16":
            self._scaler = extra.register("miha:scaler", GradScaler(device_of(recipe.model).type))
        self._scheduler: LRScheduler | None = None
        if recipe.scheduler is not None:
            self._scheduler = extra.register("miha:scheduler", make_scheduler(recipe))
        self._steps_scheduler = recipe.scheduler_interval == "step"
        self._is_plain = not (
            self._clip is not None or self._size > 1 or self._scaler or self._scheduler
        )
        self._n_batches = 0
        self._unit = 1.0
        self._total: float | Tensor = 0.0

    def add(self, loss: Tensor, weight: float | Tensor, length: int) -> None:
        """Compute the gradients of a batch, and update the weights if it is the last of a group.

        Args:
            loss: The loss of the batch.
            weight: What it counts in the loss of all samples.
            length: Its number of samples.
        """
        if self._is_plain:
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            return
        if self._n_batches == 0:
            self._optimizer.zero_grad(set_to_none=True)
            self._unit, self._total = float(length), 0.0  # Keeps the loss near its own size.
        if self._size > 1 and not self._weights.is_sum:
            loss = self._weights.weighted(loss, weight) / self._unit
            self._total = self._total + weight / self._unit
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))
        self._n_batches += 1
        if self._n_batches == self._size:
            self._update()

    def end_epoch(self, value: float) -> None:
        """Step a scheduler whose interval is an epoch.

        Args:
            value: The monitored value, which :class:`torch.optim.lr_scheduler.ReduceLROnPlateau`
                depends on.
        """
        if self._scheduler is None or self._steps_scheduler:
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(value)
        else:
            self._scheduler.step()

    def flush(self) -> None:
        """Update the weights with the batches of an incomplete group, if there are any."""
        if self._n_batches > 0:
            self._update()

    def _update(self) -> None:
        self._n_batches = 0
        is_mean = self._size > 1 and not self._weights.is_sum
        if self._scaler is not None and (is_mean or self._clip is not None):
            self._scaler.unscale_(self._optimizer)
        if is_mean:
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self._total)
        if self._clip is not None:
            clip_grad_norm_(self._parameters(), self._clip)
        if self._take_step() and self._scheduler is not None and self._steps_scheduler:
            self._scheduler.step()

    def _take_step(self) -> bool:
        """Step the optimizer, unless half precision overflowed; returns whether it stepped."""
        if self._scaler is None:
            self._optimizer.step()
            return True
        before = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= before

    def _parameters(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            yield from group["params"]
