"""A trial of a baseline, trained epoch by epoch, so that those of several workers alternate."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.recipe import device_of
from optuna_miha._model.rng import capture_rng, preserved_rng, restore_rng, seed_all
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._search.learning_rate import half_cosine
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.context import Context
from optuna_miha._training.optimizer_steps import OptimizerSteps
from optuna_miha._training.trainer import train


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a worker trains next.

    Args:
        n_epochs: Epochs of the trial, unless it is pruned.
        params: Its configuration; :obj:`None`: proposed by the sampler.
        search: Whether it may be pruned.
        anneal: Whether its learning rate is annealed to zero.
        seed: Seed of the order of the data, and of dropout.
    """

    n_epochs: int
    params: dict[str, Any] | None
    search: bool
    anneal: bool
    seed: int


class BaselineTrial:
    """A trial in training, or one that an earlier process finished, whose values are repeated.

    Args:
        trial: The running trial, to which values are reported.
        step: What is trained.
        context: Network, data, direction and device.
        stored: The finished trial.
    """

    def __init__(
        self, trial: optuna.Trial, step: Step, context: Context, stored: FrozenTrial | None
    ) -> None:
        self.trial = trial
        self.stored = stored
        self.best: dict[str, Any] | None = None
        self.is_pruned = False
        self._step = step
        self._sign = context.sign
        self._epoch = 0
        self._network = _Network(trial, step, context) if stored is None else None

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left."""
        if self.stored is not None:
            return self._epoch == len(self.stored.intermediate_values)
        return self.is_pruned or self._epoch == self._step.n_epochs

    def train_epoch(self) -> float:
        """Train an epoch and report its value, or repeat that of the finished trial."""
        self._epoch += 1
        if self.stored is not None:
            value = self.stored.intermediate_values[self._epoch]
        else:
            assert self._network is not None
            value = self._network.train_epoch()
        self.trial.report(value, step=self._epoch)
        return value

    def judge(self, value: float) -> None:
        """Note the weights of a new best, and let the pruner decide.

        A diverged trial of a search is pruned; a final training always continues.

        Args:
            value: The value of the last epoch.
        """
        is_finite = math.isfinite(value)
        if self._network is not None and is_finite and self._improves(value):
            weights = self._network.weights()
            self.best = {"value": value, "epoch": self._epoch, "weights": weights}
        if self._step.search:
            # The pruner stores what it sees, also of a trial that is finished.
            self.is_pruned = not is_finite or self.trial.should_prune()

    def pause(self) -> None:
        """Let another trial train."""
        if self._network is not None:
            self._network.pause()

    def _improves(self, value: float) -> bool:
        return self.best is None or self._sign * value < self._sign * self.best["value"]


class _Network:
    """A network with its own random generators and samplers, which it uses until it is paused.

    Args:
        trial: The trial, which proposes its hyperparameters.
        step: What is trained.
        context: Network, data and device.
    """

    def __init__(self, trial: optuna.Trial, step: Step, context: Context) -> None:
        self._step = step
        self._engine = context.engine
        self._recipe = context.on_device(build_recipe(context.model_fn, trial, context.seed))
        self._device = device_of(self._recipe.model)
        assert self._recipe.optimizer is not None
        self._steps = OptimizerSteps(self._recipe.optimizer)
        self._epochs = train(self._recipe, step.n_epochs, engine=context.engine)
        self._epoch = 0
        self._data = DataState()
        self._paused: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._stack: ExitStack | None = None

    def train_epoch(self) -> float:
        """Train an epoch; returns its monitored value."""
        if self._stack is None:
            self._stack = self._resume()
        if self._step.anneal:
            self._steps.scale(half_cosine(self._epoch, self._step.n_epochs))
        self._data.set_epoch(self._epoch)
        self._epoch += 1
        return float(next(self._epochs).value)

    def weights(self) -> dict[str, Any]:
        """A copy of the weights."""
        copied: dict[str, Any] = copy_tensors(self._recipe.model.state_dict())
        return copied

    def pause(self) -> None:
        """Give random generators and samplers back."""
        if self._stack is not None:
            self._paused = capture_rng(self._device), self._data.capture()
            self._stack.close()
            self._stack = None

    def _resume(self) -> ExitStack:
        self._data = DataState().watch(self._recipe.train_data)
        stack = ExitStack()
        stack.enter_context(intra_op_threads(self._engine.n_threads))
        stack.enter_context(preserved_rng())
        stack.enter_context(self._data)
        if self._paused is None:
            seed_all(self._step.seed)
        else:
            rng, data = self._paused
            restore_rng(rng, self._device)
            self._data.restore(data)
        return stack
