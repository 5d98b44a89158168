"""How plain Optuna, and no search at all, spend the same budget of epochs.

A trial is written to the study once it is over, with all its values and the weights of its best
epoch: an interrupted run goes on from the trials that it holds, and the interrupted one is trained
again from its beginning. Every trial depends on the seed and the trials before it alone, so that
a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._search.learning_rate import half_cosine
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.job import Context
from optuna_miha._training.trainer import rate_setter, train

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
    """A way to spend a budget without inheriting weights.

    Args:
        searched: Share of the budget for trials that search. What is left trains the best
            configuration that they found, or else the initial one, from scratch.
        anneal: Whether the learning rate of that last training falls to zero.
        sampler: Proposes configurations, given a seed.
        pruner: Cuts trials, given their full number of epochs.
    """

    searched: float
    anneal: bool = False
    sampler: Callable[[int], BaseSampler] = RandomSampler
    pruner: Callable[[int], BasePruner] = _no_pruner


def _tpe(seed: int) -> BaseSampler:
    # By default its first ten trials are random: all of them, on a budget of this size.
    return TPESampler(seed=seed, n_startup_trials=5)


BASELINES: Mapping[str, Baseline] = {
    "tpe-median": Baseline(searched=1, sampler=_tpe, pruner=_median),
    "hyperband": Baseline(searched=1, sampler=_tpe, pruner=_hyperband),
    "random": Baseline(searched=1),
    "tpe-retrain": Baseline(searched=0.5, anneal=True, sampler=_tpe, pruner=_median),
    "no-search": Baseline(searched=0),
    "no-search-cosine": Baseline(searched=0, anneal=True),
}


def trial_epochs_of(n_epochs: int) -> int:
    """Epochs of a full trial of a search: ``round(sqrt(2 * n_epochs))``.

    Trials get longer and more numerous in proportion: half as many full ones as each has epochs.
    """
    return round(math.sqrt(2 * n_epochs))


@dataclass(frozen=True, kw_only=True)
class _Step:
    """The trial to train next.

    Args:
        n_epochs: Its epochs, unless it is pruned.
        params: Its configuration; :obj:`None`: up to the sampler.
        search: Whether it may be pruned.
        anneal: Whether its learning rate falls to zero.
    """

    n_epochs: int
    params: dict[str, Any] | None
    search: bool
    anneal: bool


class BaselineRun:
    """One run of a baseline, in a study of its own.

    Args:
        study: Where its trials are kept.
        baseline: How it spends the budget.
        context: Seed, validation loss, direction and device, as of a run of ``optimize``.
        initial_params: The first configuration of a search, and the only one without.
        n_epochs: The budget.
        store: Where the best weights are kept.
    """

    def __init__(
        self,
        study: optuna.Study,
        baseline: Baseline,
        *,
        context: Context,
        initial_params: dict[str, Any],
        n_epochs: int,
        store: CheckpointStore,
    ) -> None:
        self._study = study
        self._baseline = baseline
        self._context = context
        self._initial_params = initial_params
        self._n_epochs = n_epochs
        self._trial_epochs = trial_epochs_of(n_epochs)
        self._store = store
        self._trials = trials_of(study)
        self._mirror = self._mirrored()

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials that are over."""
        return self._trials

    def train(self, on_epoch: Callable[[], None]) -> None:
        """Train until the budget is spent.

        Args:
            on_epoch: Called after every epoch.
        """
        while (step := self._next_step()) is not None:
            self._train_trial(step, on_epoch)

    def best(self) -> FrozenTrial | None:
        """The trial with the best epoch, pruned ones included; the earliest where they tie."""
        able = [trial for trial in self._trials if trial.user_attrs[BEST] is not None]
        return min(able, key=self._cost, default=None)

    def best_weights(self) -> dict[str, Any] | None:
        """The weights of that epoch."""
        best = self.best()
        if best is None:
            return None
        weights: dict[str, Any] = self._store.load(best.user_attrs[CHECKPOINT])["weights"]
        return weights

    def _cost(self, trial: FrozenTrial) -> float:
        return self._context.sign * float(trial.user_attrs[BEST]["value"])

    def _mirrored(self) -> optuna.Study:
        """The same study in memory, where the present trial may begin, and vanish, unseen."""
        with warnings_only():
            mirror = optuna.create_study(
                study_name=self._study.study_name,  # By which Hyperband forms its brackets.
                direction=self._study.direction,
                sampler=RandomSampler(),  # Replaced before every trial.
                pruner=self._baseline.pruner(self._trial_epochs),
            )
        mirror.add_trials(self._trials)
        # Hyperband knows its brackets only after the first question, and its sampler would see
        # the trials of all of them until then.
        mirror.pruner.prune(mirror, create_trial(state=TrialState.RUNNING))
        return mirror

    def _next_step(self) -> _Step | None:
        """A pure function of the trials so far; :obj:`None` when the budget is spent."""
        spent = sum(len(trial.intermediate_values) for trial in self._trials)
        to_search = math.floor(self._baseline.searched * self._n_epochs) - spent
        if to_search > 0:
            params = None if self._trials else self._initial_params
            n_epochs = min(self._trial_epochs, to_search)
            return _Step(n_epochs=n_epochs, params=params, search=True, anneal=False)
        rest = self._n_epochs - spent
        if rest <= 0:
            return None
        best = self.best()
        params = self._initial_params if best is None else best.params
        return _Step(n_epochs=rest, params=params, search=False, anneal=self._baseline.anneal)

    def _train_trial(self, step: _Step, on_epoch: Callable[[], None]) -> None:
        number = len(self._trials)
        # No random state passes from trial to trial, where an interruption would lose it.
        stream = np.random.SeedSequence([self._context.seed, number])
        self._mirror.sampler = self._baseline.sampler(int(stream.generate_state(1)[0]))
        if step.params is not None:
            self._mirror.enqueue_trial(step.params)
        trial = self._mirror.ask()
        best, is_pruned = self._train_network(trial, step, on_epoch)

        before = self.best()
        found = None if best is None else {"value": best["value"], "epoch": best["epoch"]}
        trial.set_user_attr(BEST, found)
        is_better = best is not None and (
            before is None or self._context.sign * best["value"] < self._cost(before)
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
        if is_better and before is not None:
            self._store.remove(before.user_attrs[CHECKPOINT])

    def _train_network(
        self, trial: optuna.Trial, step: _Step, on_epoch: Callable[[], None]
    ) -> tuple[Any, bool]:
        """Train one trial; returns its best epoch, if one was finite, and whether it was cut."""
        context = self._context
        recipe = context.on_device(build_recipe(context.model_fn, trial, context.seed))
        assert recipe.optimizer is not None
        set_rate = rate_setter(recipe.optimizer)
        best: dict[str, Any] | None = None
        with intra_op_threads(context.engine.n_threads), preserved_rng():
            seed_all(context.seed)
            epochs = train(recipe, step.n_epochs, engine=context.engine)
            for epoch in range(1, step.n_epochs + 1):
                if step.anneal:
                    set_rate(half_cosine(epoch - 1, step.n_epochs))
                value = next(epochs).value
                trial.report(value, step=epoch)
                on_epoch()
                if math.isfinite(value) and (
                    best is None or context.sign * value < context.sign * best["value"]
                ):
                    weights = copy_tensors(recipe.model.state_dict())
                    best = {"value": value, "epoch": epoch, "weights": weights}
                # A diverged trial is cut; training that has no successor goes on regardless.
                if step.search and (not math.isfinite(value) or trial.should_prune()):
                    return best, True
        return best, False


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a baseline's run, without those that somebody else added."""
    return [trial for trial in study.get_trials() if BEST in trial.user_attrs]
