"""The methods of the quality benchmark, each with the same budget of epochs.

A variant of the default plan is one entry at the end of this file, ``rounds-...``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import optuna
from _expert import BOUND, SEARCHES, run_bound, run_expert
from _pbt import run_pbt
from _selection import examined
from _soup import soup_of
from torch import nn

import optuna_miha as miha
from optuna_miha._model.model_fn import ModelFn
from optuna_miha._results.comparison import Run

Role: TypeAlias = Literal["ours", "other", "expert", "variant", "part"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The arguments of one run.

    Args:
        task: Name of the task. It is part of the study's name, by which Hyperband assigns trials
            to brackets.
        model_fn: The task with the data of this seed.
        n_epochs: The budget.
        seed: Seed of data, initial weights and proposals.
    """

    task: str
    model_fn: ModelFn
    n_epochs: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method to compare.

    Args:
        name: Name on the command line and in tables.
        role: ``"ours"``, the default plan; ``"other"``, a method to compare with; ``"expert"``,
            one that is by default run on the tasks of real origin only; ``"variant"``, the plan of
            cycles with one change; or ``"part"``, the default plan with one change, run only if
            it is named.
        description: One line.
        run: Does a run.
    """

    name: str
    role: Role
    description: str
    run: Callable[[Setting], Run]


def _compare(setting: Setting, *, method: str) -> Run:
    """Run a method of :func:`optuna_miha.compare`."""
    comparison = miha.compare(
        setting.model_fn,
        n_epochs=setting.n_epochs,
        methods=[method],
        seeds=[setting.seed],
        name=f"{setting.task}-{setting.n_epochs}",
        device="cpu",
        show_progress_bar=False,
    )
    return comparison.runs[0]


def smoothed(model_fn: ModelFn) -> ModelFn:
    """Validate a classifier with one additional sample of unknown class.

    Of two networks that classify all of a few samples correctly, the more confident one has the
    lower cross-entropy, even if it is wrong elsewhere.
    """

    def smoothed(trial: Any) -> miha.Recipe:
        recipe = model_fn(trial)
        if isinstance(recipe.loss_fn, nn.CrossEntropyLoss):
            assert isinstance(recipe.valid_data, tuple)
            share = 1 / (len(recipe.valid_data[0]) + 1)
            recipe.valid_loss_fn = nn.CrossEntropyLoss(label_smoothing=share)
        return recipe

    return smoothed


def _with_losses(model_fn: ModelFn) -> ModelFn:
    """Let the training loss mutate if torch has other losses for the same targets."""

    def with_losses(trial: Any) -> miha.Recipe:
        recipe = model_fn(trial)
        initial = recipe.loss_fn
        if initial is nn.functional.mse_loss:
            initial = nn.MSELoss()
        if isinstance(initial, nn.Module):
            recipe.loss_fn = miha.suggest_loss(trial, initial=initial)
        return recipe

    return with_losses


def _per_neuron(model_fn: ModelFn) -> ModelFn:
    """Suggest one activation per group of neurons."""
    return partial(model_fn, per="neuron")


def _optimize(
    setting: Setting,
    *,
    method: str,
    plan: Mapping[str, Any],
    options: Mapping[str, Any],
    task: Callable[[ModelFn], ModelFn] | None = None,
    combined: Callable[[miha.Result], tuple[nn.Module, float]] | None = None,
) -> Run:
    """Run :func:`optuna_miha.optimize` with the given arguments."""
    model_fn = setting.model_fn if task is None else task(setting.model_fn)
    started = time.perf_counter()
    study = optuna.create_study(
        study_name=f"{setting.task}-{setting.n_epochs}-{method}-{setting.seed}",
        sampler=miha.MihaSampler(seed=setting.seed),
        pruner=miha.SlopePruner(),
    )
    result = miha.optimize(
        study,
        model_fn,
        plan=miha.Plan(setting.n_epochs, **{"anneal": "cosine", **plan}),
        keep="final" if combined is None else "trunk",
        device="cpu",
        show_progress_bar=False,
        **options,
    )
    network, value = (result.model, result.value) if combined is None else combined(result)
    return Run(
        method=method,
        seed=setting.seed,
        n_epochs=setting.n_epochs,
        epochs=result.n_epochs_trained,
        seconds=time.perf_counter() - started,
        value=value,
        test=examined(setting.model_fn, network, setting.seed),
        curve=(),
        trial_epochs=None,
    )


def _ensemble(result: miha.Result) -> tuple[nn.Module, float]:
    """The ensemble of the run and its validation value."""
    ensemble = result.ensemble()
    return ensemble, ensemble.value


def _pbt(setting: Setting, *, method: str, numbers_only: bool) -> Run:
    return run_pbt(
        setting.model_fn,
        n_epochs=setting.n_epochs,
        seed=setting.seed,
        numbers_only=numbers_only,
        method=method,
    )


def _expert(setting: Setting, *, method: str) -> Run:
    _, search = SEARCHES[method]
    return run_expert(
        setting.model_fn,
        n_epochs=setting.n_epochs,
        seed=setting.seed,
        method=method,
        search=search,
    )


def _bound(setting: Setting) -> Run:
    return run_bound(
        setting.model_fn, n_epochs=setting.n_epochs, seed=setting.seed, method="bound"
    )


def _of_compare(name: str, description: str, role: Role = "other") -> Method:
    run = partial(_compare, method=name)
    return Method(name=name, role=role, description=description, run=run)


def _of_pbt(name: str, description: str, *, numbers_only: bool = False) -> Method:
    run = partial(_pbt, method=name, numbers_only=numbers_only)
    return Method(name=name, role="other", description=description, run=run)


def _of_expert(name: str) -> Method:
    description, _ = SEARCHES[name]
    run = partial(_expert, method=name)
    role: Role = "other" if name == "adamw-3" else "expert"
    return Method(name=name, role=role, description=description, run=run)


def _variant(
    name: str,
    description: str,
    plan: Mapping[str, Any] | None = None,
    *,
    task: Callable[[ModelFn], ModelFn] | None = None,
    combined: Callable[[miha.Result], tuple[nn.Module, float]] | None = None,
    **options: Any,
) -> Method:
    """Define a variant of the plan of cycles, on which these ablations were measured.

    Args:
        name: Name, ``miha-...``.
        description: One line.
        plan: Arguments of :class:`optuna_miha.Plan` besides the budget.
        task: Changes what may mutate, or the validation loss. The test loss stays.
        combined: Combines the networks of the run into one; returns it with its validation
            value.
        **options: Arguments of :func:`optuna_miha.optimize`.
    """
    run = partial(
        _optimize, method=name, plan=plan or {}, options=options, task=task, combined=combined
    )
    return Method(name=name, role="variant", description=description, run=run)


def _part(
    name: str,
    description: str,
    plan: Mapping[str, Any] | None = None,
    **change: Any,
) -> Method:
    """Define the default plan with one change, ``rounds-...``; see :func:`_variant`."""
    changed = {"anneal": "rounds", **(plan or {})}
    return replace(_variant(name, description, changed, **change), role="part")


_METHODS = [
    _of_compare("miha", "this package, default plan", role="ours"),
    _of_compare(
        "miha-classic", "the published loop with its errors fixed, selecting on validation data"
    ),
    _of_compare("no-search", "initial configuration, no search"),
    _of_compare("no-search-cosine", "initial configuration, no search, cosine annealing to zero"),
    _of_compare("tpe-median", "Optuna: TPE, median pruner"),
    _of_compare("hyperband", "Optuna: TPE, Hyperband"),
    _of_compare("random", "Optuna: random search, no pruning"),
    _of_compare(
        "tpe-retrain", "TPE for half of the epochs, then training of its best configuration"
    ),
    _of_pbt("pbt", "Syne Tune: population based training, 4 members"),
    _of_pbt("pbt-numbers", "the same, numerical parameters only", numbers_only=True),
    *(_of_expert(name) for name in SEARCHES),
    Method(
        name="bound",
        role="expert",
        description=f"{len(BOUND)} configurations, the whole budget for each",
        run=_bound,
    ),
    _variant("miha-no-cycles", "race, run-up and final phase only", {"n_cycles": 0}),
    _variant("miha-no-race", "no start-up race", {"startup": 1}),
    _variant("miha-no-ema", "no averaging of weights", {"ema_decay": 0.0}),
    _variant("miha-no-anneal", "final phase at a constant learning rate", {"anneal": None}),
    _variant("miha-no-control", "no control, every branch is mutated", {"control": False}),
    _variant("miha-no-restarts", "no restarts where networks overfit", {"restarts": False}),
    _variant("miha-no-prune", "no pruning of branches", {"prune": False}),
    _variant("miha-population-5", "5 branches instead of 3", {"population_size": 5}),
    _variant(
        "miha-crossover",
        "5 branches, one of them a child of two",
        {"population_size": 5},
        crossover=miha.UniformCrossover(),
    ),
    _variant(
        "miha-average",
        "5 branches, the best two averaged",
        {"population_size": 5},
        crossover=miha.AverageWeights(),
    ),
    _variant("miha-smoothed", "validation by a smoothed cross-entropy", task=smoothed),
    _variant("miha-slope-fitness", "fitness is the slope of a branch", fitness=miha.fitness.slope),
    _variant("miha-losses", "the training loss mutates as well", task=_with_losses),
    _variant("miha-neurons", "four groups of neurons per activation", task=_per_neuron),
    _variant("miha-ensemble", "ensemble of the run's networks", combined=_ensemble),
    _variant("miha-soup", "greedy soup of the run's networks", combined=soup_of),
    _part("rounds-no-race", "no race, the initial configuration is the trunk", {"startup": 1}),
    _part("rounds-no-mutation", "the only heir keeps the parameters", {"population_size": 1}),
    _part("rounds-no-control", "no control, every heir is mutated", {"control": False}),
    _part("rounds-no-restarts", "no restarts where networks overfit", {"restarts": False}),
    _part("rounds-no-prune", "no network is cut", {"prune": False}),
    _part("rounds-no-ema", "no averaging of weights", {"ema_decay": 0.0}),
    _part("rounds-population-3", "3 heirs instead of 2", {"population_size": 3}),
    _part("rounds-ensemble", "ensemble of the run's networks", combined=_ensemble),
    _part("rounds-smoothed", "validation by a smoothed cross-entropy", task=smoothed),
    _part("rounds-soup", "greedy soup of the run's networks", combined=soup_of),
]

METHODS = {method.name: method for method in _METHODS}
"""All methods by name, in the order of the tables."""
