"""The moving average of the weights in a job: by the epoch, or by the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.recipe import Recipe
from optuna_miha._search.learning_rate import Course
from optuna_miha._training.best_weights import update_average
from optuna_miha._training.compute import Engine
from optuna_miha._training.optimizer_steps import OptimizerSteps
from optuna_miha._training.running_statistics import (
    FirstBatches,
    estimate_running_statistics,
    has_running_statistics,
)
from optuna_miha._training.state import match_buffers


class Average:
    """The average of a job: it is updated, gets running statistics, and is validated.

    Args:
        recipe: The recipe.
        ema: The average; :obj:`None`: there is none, and the network itself is validated.
        engine: The compute settings.
    """

    def __init__(self, recipe: Recipe, ema: AveragedModel | None, engine: Engine) -> None:
        self._recipe, self._ema, self._engine = recipe, ema, engine
        self._by_step: StepAverage | None = None
        self._epoch_steps: EpochSteps | None = None
        self._end_steps: Callable[[], None] = lambda: None
        self._sample: FirstBatches | None = None
        if ema is not None and has_running_statistics(ema.module):
            self._sample = FirstBatches()

    def follow(
        self, course: Course, steps: OptimizerSteps, epoch_steps: EpochSteps, decay: float
    ) -> None:
        """Anneal the learning rate by the step, and update the average after every step.

        Args:
            course: The course of the learning rate.
            steps: The steps of the optimizer.
            epoch_steps: Their number in each epoch.
            decay: The decay of the average per epoch.
        """
        self._epoch_steps = epoch_steps
        self._end_steps = lambda: epoch_steps.end_epoch(steps.count)
        update = None
        if self._ema is not None:
            self._by_step = StepAverage(self._ema, self._recipe.model, decay, epoch_steps)
            update = self._by_step.update
        steps.follow(lambda count: course.factor(epoch_steps.position(count)), update)

    @property
    def state(self) -> dict[str, int | None]:
        """What a job that goes on with the segment needs besides the average."""
        return {} if self._epoch_steps is None else {"epoch_steps": self._epoch_steps.length}

    @property
    def watchers(self) -> list[Callable[[Any], None]]:
        """Functions to call with every batch."""
        return [] if self._sample is None else [self._sample.add]

    @property
    def validated(self) -> Callable[[], nn.Module] | None:
        """Returns the network that the trainer validates; :obj:`None`: that of the recipe."""
        return None if self._by_step is None else self._end_epoch

    def _end_epoch(self) -> nn.Module:
        assert self._ema is not None and self._by_step is not None
        self._by_step.end_epoch()
        if self._sample is not None:
            # The buffers are copies of the network's, whose activations differ.
            batches = self._sample.take()
            estimate_running_statistics(self._recipe, self._ema.module, batches, self._engine)
        return self._ema.module

    def add_value(self, result: EpochResult) -> EpochResult:
        """Update an average by the epoch, and add its value to the result of the epoch."""
        self._end_steps()
        if self._ema is None or self._by_step is not None:
            return result
        value = update_average(self._recipe, self._ema, self._sample, self._engine)
        return replace(result, ema_value=value)


class EpochSteps:
    """Counts the steps of an optimizer by the epoch.

    Args:
        length: Steps in an epoch. :obj:`None`: as many as in the epoch before; in the first epoch
            it is then unknown.
    """

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._epoch, self._start = 0, 0

    @property
    def length(self) -> int | None:
        """Steps in an epoch; :obj:`None` if it is unknown."""
        return self._length

    def position(self, count: int) -> float:
        """The number of epochs, fractions included, before step ``count``."""
        share = 0.0 if self._length is None else (count - self._start) / self._length
        return self._epoch + min(share, 1.0)

    def end_epoch(self, count: int) -> None:
        """Note that an epoch is over, after ``count`` steps in total."""
        self._length = max(count - self._start, 1)
        self._epoch, self._start = self._epoch + 1, count


class StepAverage:
    """Updates the moving average of the weights after every step.

    In a training from the initial weights, the first averages are narrower: the latest weights
    count at least ``2 / (step + 2)``.

    Args:
        ema: The average, which counts its updates.
        model: The network in training.
        decay: The decay per epoch.
        steps: The steps of the epochs.
    """

    def __init__(
        self, ema: AveragedModel, model: nn.Module, decay: float, steps: EpochSteps
    ) -> None:
        self._ema, self._model, self._decay, self._steps = ema, model, decay, steps
        self._n_updates = int(ema.n_averaged)
        self._averages: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._frozen = list(zip(ema.module.parameters(), model.parameters(), strict=True))
        self._add_trainable()

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights."""
        weight = 2 / (self._n_updates + 2)
        if self._steps.length is not None:
            weight = max(weight, 1 - self._decay ** (1 / self._steps.length))
        get_ema_multi_avg_fn(1 - weight)(self._averages, self._weights, self._n_updates)  # type: ignore[no-untyped-call]
        self._n_updates += 1

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Copy what is not averaged, such as buffers, at the end of an epoch.

        User code may move frozen parameters, such as those of a target network, or unfreeze them.
        These are averaged from now on.
        """
        self._ema.n_averaged.fill_(self._n_updates)
        match_buffers(self._ema, self._model)
        averages = dict(self._ema.module.named_buffers())
        for name, own in self._model.named_buffers():
            averages[name].copy_(own)
        for average, own in self._frozen:
            average.copy_(own)
        self._add_trainable()

    def _add_trainable(self) -> None:
        """Average the parameters that require gradients, also if they are frozen later."""
        trainable = [(average, own) for average, own in self._frozen if own.requires_grad]
        self._frozen = [pair for pair in self._frozen if not pair[1].requires_grad]
        self._averages += [average for average, _ in trainable]
        self._weights += [own for _, own in trainable]
