"""Population based training by Syne Tune's scheduler, with the training code of optuna_miha.

Syne Tune's `PopulationBasedTraining` makes every decision: which member is replaced, by which
other one, and with which hyperparameters. This module takes the place of its backend: the members
train one epoch each in turn, as workers of equal speed would, and epochs are counted as for every
other method.

Reference:
    M. Jaderberg et al., *Population Based Training of Neural Networks*, 2017.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from _selection import Selected, tested
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._model.model_fn import ModelFn, build_initial
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._results.comparison import Run
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.state import State

POPULATION = 4
"""Syne Tune's default. Small budgets do not allow more."""

_STEPS = 10
"""Approximate number of times that a member is considered for replacement; the interval is at
least 2 epochs. Syne Tune considers a newly replaced member again after its first epoch."""


@dataclass(kw_only=True)
class _Member:
    """A member of the population.

    Args:
        trial: The Syne Tune trial of this member.
        state: State of the training; :obj:`None` before the first epoch.
        age: Epochs of the trial, including those of the trial that it was cloned from.
        diverged: Whether its last value was NaN; it then waits for replacement.
    """

    trial: Any
    state: State | None = None
    age: int = 0
    diverged: bool = False


def run_pbt(
    model_fn: ModelFn,
    *,
    n_epochs: int,
    seed: int,
    numbers_only: bool = False,
    method: str = "pbt",
    population: int = POPULATION,
) -> Run:
    """Train a population and test the weights with the best validation value of any member.

    The initial configuration is one member; the others are drawn from the search space. A
    replaced member inherits weights and optimizer state.

    Args:
        model_fn: The task.
        n_epochs: The budget of all members together.
        seed: Seed of the initial weights, of the data order and of Syne Tune.
        numbers_only: Whether to search only numerical hyperparameters, as the paper does.
            Syne Tune redraws categorical ones at every replacement.
        method: Name of the method in the returned run.
        population: Number of members.
    """
    started = time.perf_counter()
    with preserved_rng():
        # Syne Tune's random search draws from NumPy's global generator.
        seed_all(seed)
        selected = search_pbt(
            model_fn, n_epochs, seed, numbers_only=numbers_only, population=population
        )
    return Run(
        method=method,
        seed=seed,
        n_epochs=n_epochs,
        epochs=n_epochs,
        seconds=time.perf_counter() - started,
        value=selected.value,
        test=tested(model_fn, selected, seed),
        curve=tuple(selected.curve),
        trial_epochs=None,
    )


def search_pbt(
    model_fn: ModelFn,
    n_epochs: int,
    seed: int,
    *,
    numbers_only: bool = False,
    trainer: Any = None,
    sign: int = 1,
    initial_params: Mapping[str, Any] | None = None,
    population: int = POPULATION,
) -> Selected:
    """Train a population, and select the weights with the best validation value of any member.

    Args:
        model_fn: The task.
        n_epochs: The budget of all members together.
        seed: The seed.
        numbers_only: Whether to search only numerical hyperparameters.
        trainer: A training loop, as for :func:`optuna_miha.optimize`.
        sign: -1 to maximize the values of the loop.
        initial_params: Initial values by parameter name.
        population: Number of members.
    """
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.scheduler import SchedulerDecision
    from syne_tune.optimizer.schedulers.pbt import PopulationBasedTraining

    initial = build_initial(model_fn, seed)
    space, start = _space(model_fn, seed)
    start |= initial_params or {}
    if numbers_only:
        space = {k: d for k, d in space.items() if not isinstance(d, CategoricalDistribution)}
    scheduler = PopulationBasedTraining(
        config_space={name: _domain(distribution) for name, distribution in space.items()},
        metric="value",
        time_attr="epoch",
        max_t=n_epochs + 1,  # The budget ends the run, not the age of a member.
        do_minimize=True,
        random_seed=seed,
        population_size=population,
        perturbation_interval=max(2, round(n_epochs / population / _STEPS)),
        searcher_kwargs={"points_to_evaluate": [{name: start[name] for name in space}]},
    )
    context = Context(
        model_fn=model_fn,
        valid_loss_fn=initial.recipe.valid_loss_fn or initial.recipe.loss_fn,
        trainer=trainer,
        sign=sign,
        seed=seed,
        devices=(torch.device("cpu"),),
        ema_decay=0.0,
    )
    members: list[_Member] = []
    n_trials = 0

    def join() -> _Member:
        """Start the trial that Syne Tune suggests, from the checkpoint of its donor if any."""
        nonlocal n_trials
        suggestion = scheduler.suggest()
        trial = Trial(n_trials, suggestion.config, datetime.now())
        n_trials += 1
        scheduler.on_trial_add(trial)
        donor = suggestion.checkpoint_trial_id
        if donor is None:
            return _Member(trial=trial)
        source = next(member for member in members if member.trial.trial_id == donor)
        return _Member(trial=trial, state=source.state, age=source.age)

    members.extend(join() for _ in range(population))
    value, params, weights, curve = math.inf, dict(start), None, []
    for spent in range(n_epochs):
        index = spent % population
        member = members[index]
        config = {**start, **member.trial.config}
        member.age += 1
        score = math.inf
        if not member.diverged:  # A diverged member does not train, but its epoch counts.
            outcome = run_job(context, Job(params=config, state=member.state, n_epochs=1))
            if outcome.exception is not None:
                raise outcome.exception
            member.diverged = outcome.state is None
            if outcome.state is not None:
                member.state, score = outcome.state, sign * outcome.results[-1].value
        if score < value:
            value, params = score, config
            weights = member.state["model"] if member.state is not None else None
            curve.append((spent + 1, score))
        decision = scheduler.on_trial_result(member.trial, {"epoch": member.age, "value": score})
        if decision == SchedulerDecision.STOP:
            members[index] = join()
    return Selected(
        value=sign * value if weights is not None else math.nan,
        params=params,
        weights=weights,
        curve=curve,
    )


def _space(model_fn: ModelFn, seed: int) -> tuple[dict[str, BaseDistribution], dict[str, Any]]:
    """All parameters that ``model_fn`` may suggest, and their initial values.

    Conditional parameters, such as the momentum of SGD, are found by trying every choice of every
    categorical parameter.
    """
    initial = build_initial(model_fn, seed)
    space, start = dict(initial.distributions), dict(initial.params)
    for name, distribution in initial.distributions.items():
        if not isinstance(distribution, CategoricalDistribution):
            continue
        for choice in distribution.choices:
            other = build_initial(model_fn, seed, {name: choice})
            for found, its in other.distributions.items():
                space.setdefault(found, its)
                start.setdefault(found, other.params[found])
    return space, start


def _domain(distribution: BaseDistribution) -> Any:
    """Convert a distribution to a domain of Syne Tune.

    Raises:
        TypeError: If the distribution is not one of Optuna's.
    """
    from syne_tune import config_space

    if isinstance(distribution, CategoricalDistribution):
        return config_space.choice(list(distribution.choices))
    if isinstance(distribution, FloatDistribution):
        draw = config_space.loguniform if distribution.log else config_space.uniform
        return draw(distribution.low, distribution.high)
    if isinstance(distribution, IntDistribution):
        draw = config_space.lograndint if distribution.log else config_space.randint
        return draw(distribution.low, distribution.high)
    raise TypeError(f"A distribution must be one of Optuna's, got {distribution!r}.")
