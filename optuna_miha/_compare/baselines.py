"""Baselines: plain Optuna, or no search, with the same budget of epochs.

A trial is written to the study when it is finished, with all its values and the weights of its
best epoch. A resumed run repeats the decisions of the interrupted one: it takes the values of
stored trials instead of training them, and trains interrupted trials again from the beginning.
Every trial depends only on the seed and on what the other trials had reported when it began, so
that a resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._compare.baseline_trial import BaselineTrial, Step
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._search.space import fit, lr_distribution
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.context import Context

# Attributes of a trial.
BEST = "compare:best"
CHECKPOINT = "compare:checkpoint"
NUMBER = "compare:number"  # The order in which trials begin; they are stored as they end.

_RATE_FACTOR = 3.0
"""Largest factor by which the learning rates of a method differ from the initial one."""


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
            configurations of the search, one for each worker, or else the initial one, from
            scratch.
        anneal: Whether the learning rate of that final training is annealed to zero.
        n_rates: If positive, the initial configuration is trained from scratch at this number of
            learning rates instead, or at the next multiple of the number of workers.
        sampler: Creates the sampler, given a seed and the number of workers.
        pruner: Creates the pruner, given the number of epochs of a full trial.
    """

    search_fraction: float
    anneal: bool = False
    n_rates: int = 0
    sampler: Callable[[int, int], BaseSampler] = lambda seed, n_workers: RandomSampler(seed)
    pruner: Callable[[int], BasePruner] = _no_pruner


def _tpe(seed: int, n_workers: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The default of ten random trials would cover all trials of a budget of this size.
        return TPESampler(seed=seed, n_startup_trials=5, constant_liar=n_workers > 1)


BASELINES: Mapping[str, Baseline] = {
    "tpe-median": Baseline(search_fraction=1, sampler=_tpe, pruner=_median),
    "hyperband": Baseline(search_fraction=1, sampler=_tpe, pruner=_hyperband),
    "random": Baseline(search_fraction=1),
    "tpe-retrain": Baseline(search_fraction=0.5, anneal=True, sampler=_tpe, pruner=_median),
    "no-search": Baseline(search_fraction=0),
    "no-search-cosine": Baseline(search_fraction=0, anneal=True),
    "rates-cosine": Baseline(search_fraction=0, anneal=True, n_rates=3),
}


def trial_epochs_of(n_epochs: int, n_workers: int) -> int:
    """Epochs of a full trial of a search: ``round(sqrt(2 * n_epochs))``.

    The length and the number of trials grow in proportion: the number of full trials is half of
    the number of epochs of each. No trial is longer than the epochs of one worker.
    """
    return min(round(math.sqrt(2 * n_epochs)), max(shares_of(n_epochs, n_workers)))


def shares_of(n_epochs: int, n_workers: int) -> list[int]:
    """The epochs of each worker; they differ by one at most."""
    each, rest = divmod(n_epochs, n_workers)
    return [each + (worker < rest) for worker in range(n_workers)]


class BaselineRun:
    """One run of a baseline, in a separate study.

    Several workers are simulated: they are equally fast, so that all train one epoch, then all
    train the next one. A worker whose trial ended begins another one at once, with what the
    others have reported by then. All networks train in this process.

    Args:
        study: The study in which the trials are stored.
        baseline: The baseline.
        context: Seed, validation loss, direction and device, as for a run of ``optimize``.
        initial_params: The first configuration of a search, or the only one without a search.
        distributions: The distributions of its parameters.
        n_epochs: The budget, in epochs.
        n_workers: Number of workers that share it.
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
        n_workers: int,
        store: CheckpointStore,
    ) -> None:
        self._study = study
        self._baseline = baseline
        self._context = context
        self._initial_params = initial_params
        self._lr = lr_distribution(distributions)
        self._n_epochs = n_epochs
        self._n_workers = n_workers
        self._trial_epochs = trial_epochs_of(n_epochs, n_workers)
        self._store = store
        self._stored = {
            trial.user_attrs.get(NUMBER, index): trial  # Earlier versions had one worker.
            for index, trial in enumerate(trials_of(study))
        }
        self._trials: list[FrozenTrial] = []
        self._values: list[float] = []
        self._mirror = self._create_mirror()

    @property
    def values(self) -> list[float]:
        """The monitored value of every epoch, in the order in which they ended."""
        return self._values

    def train(self, on_epoch: Callable[[], None]) -> None:
        """Train until the budget is spent.

        Args:
            on_epoch: Called after every epoch.
        """
        to_search = math.floor(self._baseline.search_fraction * self._n_epochs)
        self._run_workers(to_search, self._search_step, on_epoch)
        self._run_workers(self._n_epochs - to_search, self._final_step, on_epoch)

    def best(self) -> FrozenTrial | None:
        """The trial with the best epoch, including pruned trials; the earliest in case of ties."""
        return next(iter(self._ranked()), None)

    def best_weights(self) -> dict[str, Any] | None:
        """The weights of the best epoch."""
        best = self.best()
        if best is None:
            return None
        return self._store.load_weights(best.user_attrs[CHECKPOINT])

    def _ranked(self) -> list[FrozenTrial]:
        """The finished trials with a finite value, the best first."""
        candidates = [trial for trial in self._trials if trial.user_attrs[BEST] is not None]
        return sorted(candidates, key=self._cost)

    def _cost(self, trial: FrozenTrial) -> float:
        return self._context.sign * float(trial.user_attrs[BEST]["value"])

    def _create_mirror(self) -> optuna.Study:
        """Create a study in memory, so that unfinished trials never appear in the storage."""
        with warnings_only():
            mirror = optuna.create_study(
                study_name=self._study.study_name,  # Hyperband assigns brackets by this name.
                direction=self._study.direction,
                sampler=RandomSampler(),  # Replaced before every trial.
                pruner=self._baseline.pruner(self._trial_epochs),
            )
        # Hyperband creates its brackets in the first call. Without them, the sampler would use
        # the trials of all brackets.
        mirror.pruner.prune(mirror, create_trial(state=TrialState.RUNNING))
        return mirror

    def _run_workers(
        self,
        n_epochs: int,
        next_step: Callable[[int, int, int], Step],
        on_epoch: Callable[[], None],
    ) -> None:
        """Let all workers train until they have spent ``n_epochs`` together.

        Args:
            n_epochs: The epochs of all workers.
            next_step: What a worker trains next, given its index, the number of trials that it
                has begun, and its remaining epochs.
            on_epoch: Called after every epoch.
        """
        left = shares_of(n_epochs, self._n_workers)
        n_begun = [0] * self._n_workers
        busy: dict[int, BaselineTrial] = {}
        try:
            while any(left):
                for worker in range(self._n_workers):
                    if left[worker] and worker not in busy:
                        step = next_step(worker, n_begun[worker], left[worker])
                        busy[worker] = self._begin(step)
                        n_begun[worker] += 1
                for worker, trial in sorted(busy.items()):
                    value = trial.train_epoch()
                    left[worker] -= 1
                    self._values.append(value)
                    if trial.stored is None:
                        on_epoch()
                    trial.judge(value)
                    if trial.is_over or self._n_workers > 1:
                        trial.pause()
                for worker, trial in sorted(busy.items()):
                    if trial.is_over:
                        self._end(busy.pop(worker))
        finally:
            for trial in busy.values():
                trial.pause()

    def _search_step(self, worker: int, n_begun: int, n_left: int) -> Step:
        is_first = worker == 0 and n_begun == 0
        return Step(
            n_epochs=min(self._trial_epochs, n_left),
            params=self._initial_params if is_first else None,
            search=True,
            anneal=False,
            seed=self._context.seed,
        )

    def _final_step(self, worker: int, n_begun: int, n_left: int) -> Step:
        ranked, params, n_epochs = self._ranked(), self._initial_params, n_left
        if self._baseline.n_rates and self._lr is not None:
            n_each = math.ceil(self._baseline.n_rates / self._n_workers)
            index = n_begun * self._n_workers + worker
            exponent = 2 * index / (n_each * self._n_workers - 1) - 1
            lr = fit(self._lr, _RATE_FACTOR**exponent * params["lr"])
            params, n_epochs = {**params, "lr": lr}, math.ceil(n_left / (n_each - n_begun))
        elif ranked:
            params = ranked[min(worker, len(ranked) - 1)].params
        # Workers that train the same configuration have different orders of the data.
        stream = np.random.SeedSequence([self._context.seed, worker])
        return Step(
            n_epochs=n_epochs,
            params=params,
            search=False,
            anneal=self._baseline.anneal,
            seed=self._context.seed if worker == 0 else int(stream.generate_state(1)[0]),
        )

    def _begin(self, step: Step) -> BaselineTrial:
        number = len(self._mirror.get_trials(deepcopy=False))
        stored = self._stored.get(number)
        # Each trial has its own random stream, so that an interruption loses no random state.
        stream = np.random.SeedSequence([self._context.seed, number])
        seed = int(stream.generate_state(1)[0])
        self._mirror.sampler = self._baseline.sampler(seed, self._n_workers)
        params = step.params if stored is None else stored.params
        if params is not None:
            self._mirror.enqueue_trial(params)
        trial = self._mirror.ask(None if stored is None else stored.distributions)
        return BaselineTrial(trial, step, self._context, stored)

    def _end(self, finished: BaselineTrial) -> None:
        """Store a trial that ended, and its weights if they are the best so far."""
        trial, best, stored = finished.trial, finished.best, finished.stored
        if stored is not None:
            self._mirror.tell(trial, stored.value, state=stored.state)
            self._trials.append(stored)
            return
        previous = self.best()
        best_epoch = None if best is None else {"value": best["value"], "epoch": best["epoch"]}
        trial.set_user_attr(BEST, best_epoch)
        trial.set_user_attr(NUMBER, trial.number)
        is_better = best is not None and (
            previous is None or self._context.sign * best["value"] < self._cost(previous)
        )
        if best is not None and is_better:
            name = f"trial-{trial.number:05d}"
            reference = self._store.save({"weights": best["weights"]}, name)
            trial.set_user_attr(CHECKPOINT, reference)
        if finished.is_pruned:
            frozen = self._mirror.tell(trial, state=TrialState.PRUNED)
        elif best is None:
            frozen = self._mirror.tell(trial, state=TrialState.FAIL)
        else:
            frozen = self._mirror.tell(trial, best["value"])
        self._study.add_trial(frozen)
        self._trials.append(frozen)
        if is_better and previous is not None:
            self._store.remove(previous.user_attrs[CHECKPOINT])


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a baseline's run, without trials that were added by other means."""
    return [trial for trial in study.get_trials() if BEST in trial.user_attrs]
