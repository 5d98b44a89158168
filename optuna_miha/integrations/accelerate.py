"""Accelerate's mixed precision, accumulation and clipping for :func:`optuna_miha.optimize`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.optional_imports import try_import
from optuna_miha._model.optimizers import set_optimizer_mode
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.modes import frozen_modules, set_training
from optuna_miha._training.trainer import batch_loss, check_loss, evaluate
from optuna_miha._training.trainer_context import TrainerContext


class AccelerateTrainer:
    """Trains a recipe with an ``accelerate.Accelerator``.

    The loop is that of an ordinary script: ``prepare``, ``accumulate``, ``backward``,
    ``clip_grad_norm_`` and ``step``, with the data, the loss and the ``train_step`` of the recipe.
    A gradient scaler is part of the checkpoints. Schedulers in ``recipe.extra_state`` are stepped
    after every step of the optimizer. While a segment is annealed, the learning rate is multiplied
    by the factor of the run during each step.

    Example::

        trainer = AccelerateTrainer(
            lambda: Accelerator(mixed_precision="fp16", gradient_accumulation_steps=4),
            max_grad_norm=1.0,
        )
        result = optuna_miha.optimize(study, model_fn, trainer=trainer)

    Args:
        make_accelerator: Creates the accelerator of a segment. Its device is that of the run.
        max_grad_norm: The gradients are clipped to this norm. :obj:`None`: they are not.

    Raises:
        ValueError: If ``max_grad_norm`` is not positive.
    """

    def __init__(
        self,
        make_accelerator: Callable[[], Any] | None = None,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"`max_grad_norm` must be positive, got {max_grad_norm!r}.")
        self._make_accelerator = make_accelerator
        self._max_grad_norm = max_grad_norm

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe without data or a loss, before a run begins.

        Raises:
            ValueError: If one of them is missing.
        """
        recipe.check_complete()

    def __call__(
        self, recipe: Recipe, n_epochs: int, context: TrainerContext
    ) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, and yield the result of each."""
        with try_import("accelerate", needed_by="AccelerateTrainer"):
            import accelerate
        make = self._make_accelerator or (lambda: accelerate.Accelerator())
        accelerator = make()
        _check_device(accelerator.device, device_of(recipe.model))
        if accelerator.scaler is not None:
            context.register("scaler", accelerator.scaler)
        model, optimizer = accelerator.prepare(recipe.model, recipe.optimizer)
        schedulers = [
            part
            for part in recipe.extra_state.values()
            if isinstance(part, torch.optim.lr_scheduler.LRScheduler)
        ]
        frozen = frozen_modules(recipe.model)
        assert recipe.optimizer is not None
        for _ in range(n_epochs):
            set_training(recipe.model, frozen)
            set_optimizer_mode(recipe.optimizer, training=True)
            # Prepared anew in each epoch, because its order depends on a seed drawn here.
            batches = accelerator.prepare_data_loader(_loader(recipe))
            total, n_samples = 0.0, 0
            for batch in batches:
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        loss = batch_loss(recipe, model, batch, recipe.loss_fn)
                    check_loss(recipe, loss)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and self._max_grad_norm is not None:
                        accelerator.clip_grad_norm_(model.parameters(), self._max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients and not optimizer.step_was_skipped:
                    for scheduler in schedulers:
                        scheduler.step()
                length = batch_length(batch)
                total, n_samples = total + loss.item() * length, n_samples + length
            set_optimizer_mode(recipe.optimizer, training=False)
            values = evaluate(recipe, accelerator.unwrap_model(model))
            others = {name: value for name, value in values.items() if name != recipe.monitor}
            yield EpochResult(
                value=values[recipe.monitor], train_loss=total / n_samples, metrics=others
            )


def _check_device(chosen: torch.device, expected: torch.device) -> None:
    if chosen.type != expected.type:
        raise ValueError(
            f"The accelerator must use the device of the run, {expected}, got {chosen}: pass "
            f'`device="{chosen.type}"` to `optimize`, or `cpu=True` to the Accelerator.'
        )


def _loader(recipe: Recipe) -> DataLoader[Any]:
    """A loader of the training data, with the batch size of the recipe."""
    data = recipe.train_data
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, tuple):
        data = TensorDataset(*data)
    shuffle = not isinstance(data, IterableDataset)
    return DataLoader(data, batch_size=recipe.batch_size, shuffle=shuffle)
