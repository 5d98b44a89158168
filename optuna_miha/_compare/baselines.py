"""Baselines: plain Optuna, or no search, with the same budget of epochs.

A trial is written to the study when it is finished, with all its values and the weights of its
best epoch. A resumed run continues after the stored trials, and trains an interrupted trial again
from the beginning. Every trial depends only on the seed and the previous trials, so that a resumed
run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._search.learning_rate import half_cosine
from optuna_miha._search.space import fit, lr_distribution
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.job import Context
from optuna_miha._training.optimizer_steps import OptimizerSteps
from optuna_miha._training.trainer import train

# Attributes of a trial.
BEST = "compare:best"
CHECKPOINT = "compare:checkpoint"


def _no_pruner(trial_epochs: int) -> BasePruner:
    return NopPruner()


def _median(trial_epochs: int) -> BasePruner:
    return MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, trial_epochs // 4))


def _hyperband(trial_epochs: int) -> BasePruner:
    return HyperbandPruner(min_resource=1, max_resource=trial_epochs, reduction_factor=3)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A method that spends a budget without inheriting weights.

    Args:
        search_fraction: Fraction of the budget for the search. The rest trains the best
            configuration of the search, or else the initial one, from scratch.
        anneal: Whether the learning rate of that final training is annealed to zero.
        rates: If not empty, the initial configuration is trained from scratch at each of these
            multiples of its learning rate instead, for an equal share of the budget.
        sampler: Creates the sampler, given a seed.
        pruner: Creates the pruner, given the number of epochs of a full trial.
    """

    search_fraction: float
    anneal: bool = False
    rates: tuple[float, ...] = ()
    sampler: Callable[[int], BaseSampler] = RandomSampler
    pruner: Callable[[int], BasePruner] = _no_pruner


def _tpe(seed: int) -> BaseSampler:
    # The default of ten random trials would cover all trials of a budget of this size.
    return TPESampler(seed=seed, n_startup_trials=5)


BASELINES: Mapping[str, Baseline] = {
    "tpe-median": Baseline(search_fraction=1, sampler=_tpe, pruner=_median),
    "hyperband": Baseline(search_fraction=1, sampler=_tpe, pruner=_hyperband),
    "random": Baseline(search_fraction=1),
    "tpe-retrain": Baseline(search_fraction=0.5, anneal=True, sampler=_tpe, pruner=_median),
    "no-search": Baseline(search_fraction=0),
    "no-search-cosine": Baseline(search_fraction=0, anneal=True),
    "rates-cosine": Baseline(search_fraction=0, anneal=True, rates=(1 / 3, 1, 3)),
}


def trial_epochs_of(n_epochs: int) -> int:
    """Epochs of a full trial of a search: ``round(sqrt(2 * n_epochs))``.

    The length and the number of trials grow in proportion: the number of full trials is half of
    the number of epochs of each.
    """
    return round(math.sqrt(2 * n_epochs))


@dataclass(frozen=True, kw_only=True)
class _Step:
    """The trial to train next.

    Args:
        n_epochs: Epochs of the trial, unless it is pruned.
        params: Its configuration; :obj:`None`: proposed by the sampler.
        search: Whether it may be pruned.
        anneal: Whether its learning rate is annealed to zero.
    """

    n_epochs: int
    params: dict[str, Any] | None
    search: bool
    anneal: bool


class BaselineRun:
    """One run of a baseline, in a separate study.

    Args:
        study: The study in which the trials are stored.
        baseline: The baseline.
        context: Seed, validation loss, direction and device, as for a run of ``optimize``.
        initial_params: The first configuration of a search, or the only one without a search.
        distributions: The distributions of its parameters.
        n_epochs: The budget, in epochs.
        store: The store of the best weights.
    """

    def __init__(
        self,
        study: optuna.Study,
        baseline: Baseline,
        *,
        context: Context,
        initial_params: dict[str, Any],
        distributions: Mapping[str, BaseDistribution],
        n_epochs: int,
        store: CheckpointStore,
    ) -> None:
        self._study = study
        self._baseline = baseline
        self._context = context
        self._initial_params = initial_params
        self._lr = lr_distribution(distributions)
        self._n_epochs = n_epochs
        self._trial_epochs = trial_epochs_of(n_epochs)
        self._store = store
        self._trials = trials_of(study)
        self._mirror = self._create_mirror()

    @property
    def trials(self) -> list[FrozenTrial]:
        """The finished trials."""
        return self._trials

    def train(self, on_epoch: Callable[[], None]) -> None:
        """Train until the budget is spent.

        Args:
            on_epoch: Called after every epoch.
        """
        while (step := self._next_step()) is not None:
            self._train_trial(step, on_epoch)

    def best(self) -> FrozenTrial | None:
        """The trial with the best epoch, including pruned trials; the earliest in case of ties."""
        candidates = [trial for trial in self._trials if trial.user_attrs[BEST] is not None]
        return min(candidates, key=self._cost, default=None)

    def best_weights(self) -> dict[str, Any] | None:
        """The weights of the best epoch."""
        best = self.best()
        if best is None:
            return None
        return self._store.load_weights(best.user_attrs[CHECKPOINT])

    def _cost(self, trial: FrozenTrial) -> float:
        return self._context.sign * float(trial.user_attrs[BEST]["value"])

    def _create_mirror(self) -> optuna.Study:
        """Copy the study to memory, so that unfinished trials never appear in the storage."""
        with warnings_only():
            mirror = optuna.create_study(
                study_name=self._study.study_name,  # Hyperband assigns brackets by this name.
                direction=self._study.direction,
                sampler=RandomSampler(),  # Replaced before every trial.
                pruner=self._baseline.pruner(self._trial_epochs),
            )
        mirror.add_trials(self._trials)
        # Hyperband creates its brackets in the first call. Without them, the sampler would use
        # the trials of all brackets.
        mirror.pruner.prune(mirror, create_trial(state=TrialState.RUNNING))
        return mirror

    def _next_step(self) -> _Step | None:
        """The next trial, given the trials so far; :obj:`None` if the budget is spent."""
        spent = sum(len(trial.intermediate_values) for trial in self._trials)
        to_search = math.floor(self._baseline.search_fraction * self._n_epochs) - spent
        if to_search > 0:
            params = None if self._trials else self._initial_params
            n_epochs = min(self._trial_epochs, to_search)
            return _Step(n_epochs=n_epochs, params=params, search=True, anneal=False)
        rest = self._n_epochs - spent
        if rest <= 0:
            return None
        if self._baseline.rates and self._lr is not None:
            remaining = self._baseline.rates[len(self._trials) :]
            lr = fit(self._lr, remaining[0] * self._initial_params["lr"])
            params, n_epochs = {**self._initial_params, "lr": lr}, math.ceil(rest / len(remaining))
            return _Step(n_epochs=n_epochs, params=params, search=False, anneal=True)
        best = self.best()
        params = self._initial_params if best is None else best.params
        return _Step(n_epochs=rest, params=params, search=False, anneal=self._baseline.anneal)

    def _train_trial(self, step: _Step, on_epoch: Callable[[], None]) -> None:
        number = len(self._trials)
        # Each trial has its own random stream, so that an interruption loses no random state.
        stream = np.random.SeedSequence([self._context.seed, number])
        self._mirror.sampler = self._baseline.sampler(int(stream.generate_state(1)[0]))
        if step.params is not None:
            self._mirror.enqueue_trial(step.params)
        trial = self._mirror.ask()
        best, is_pruned = self._train_network(trial, step, on_epoch)

        previous = self.best()
        best_epoch = None if best is None else {"value": best["value"], "epoch": best["epoch"]}
        trial.set_user_attr(BEST, best_epoch)
        is_better = best is not None and (
            previous is None or self._context.sign * best["value"] < self._cost(previous)
        )
        if is_better:
            reference = self._store.save({"weights": best["weights"]}, f"trial-{number:05d}")
            trial.set_user_attr(CHECKPOINT, reference)
        if is_pruned:
            frozen = self._mirror.tell(trial, state=TrialState.PRUNED)
        elif best is None:
            frozen = self._mirror.tell(trial, state=TrialState.FAIL)
        else:
            frozen = self._mirror.tell(trial, best["value"])
        self._study.add_trial(frozen)
        self._trials.append(frozen)
        if is_better and previous is not None:
            self._store.remove(previous.user_attrs[CHECKPOINT])

    def _train_network(
        self, trial: optuna.Trial, step: _Step, on_epoch: Callable[[], None]
    ) -> tuple[Any, bool]:
        """Train one trial; returns its best epoch, if any is finite, and whether it was pruned."""
        context = self._context
        recipe = context.on_device(build_recipe(context.model_fn, trial, context.seed))
        assert recipe.optimizer is not None
        steps = OptimizerSteps(recipe.optimizer)
        best: dict[str, Any] | None = None
        data = DataState().watch(recipe.train_data)
        with intra_op_threads(context.engine.n_threads), preserved_rng(), data:
            seed_all(context.seed)
            epochs = train(recipe, step.n_epochs, engine=context.engine)
            for epoch in range(1, step.n_epochs + 1):
                if step.anneal:
                    steps.scale(half_cosine(epoch - 1, step.n_epochs))
                data.set_epoch(epoch - 1)
                value = next(epochs).value
                trial.report(value, step=epoch)
                on_epoch()
                if math.isfinite(value) and (
                    best is None or context.sign * value < context.sign * best["value"]
                ):
                    weights = copy_tensors(recipe.model.state_dict())
                    best = {"value": value, "epoch": epoch, "weights": weights}
                # A diverged trial of the search is pruned; the final training always continues.
                if step.search and (not math.isfinite(value) or trial.should_prune()):
                    return best, True
        return best, False


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a baseline's run, without trials that were added by other means."""
    return [trial for trial in study.get_trials() if BEST in trial.user_attrs]
