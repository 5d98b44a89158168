"""What an expert does by hand, at equal epochs: annealed trainings of a few configurations.

Every method selects by the validation value of single epochs, as optuna_miha does.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import optuna
from _annealed import Config, Shape, Training
from _selection import examined

from optuna_miha._compare.baselines import shares_of
from optuna_miha._model.model_fn import ModelFn
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._results.comparison import Run
from optuna_miha._training.compute import intra_op_threads

Search: TypeAlias = Callable[[ModelFn, int, int], Sequence[Training]]
"""From task, budget and seed to the trainings, whose epochs are the budget together."""

RATES = (1e-3, 3e-3, 1e-2)
RECIPE = Config(lr=1e-2, weight_decay=0.3, activation="gelu", average=3.0)


def _drawn(n_configs: int) -> Iterator[Config]:
    """Draw configurations of annealed trainings, the same in every run."""
    rng = random.Random(0)
    for _ in range(n_configs):
        optimizer = rng.choice(["adamw", "adamw", "adamw", "sgd"])
        lowest, highest = (1e-2, 0.5) if optimizer == "sgd" else (1e-3, 0.1)
        yield Config(
            optimizer=optimizer,
            lr=lowest * (highest / lowest) ** rng.random(),
            weight_decay=1e-3 * 500 ** rng.random() / (100 if optimizer == "sgd" else 1),
            activation=rng.choice(["relu", "gelu", "silu", "tanh"]),
            dropout=rng.choice([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
            average=rng.choice([1.0, 3.0]),
        )


BOUND = (
    *(replace(RECIPE, lr=lr) for lr in (3e-3, 1e-2, 3e-2)),
    *(replace(RECIPE, lr=lr, weight_decay=0.01) for lr in (3e-3, 1e-2, 3e-2)),
    *(replace(RECIPE, dropout=dropout) for dropout in (0.0, 0.3)),
    *_drawn(24),
)
"""Configurations around the recipe, and random ones, for the bound of a search among them."""

STARTUP = (
    Config(optimizer="adam", lr=1e-3, weight_decay=0.0),
    Config(optimizer="sgd", lr=0.09, weight_decay=1e-3, activation="gelu"),
    Config(lr=4e-3, activation="gelu"),
    Config(optimizer="adam", lr=3e-3, weight_decay=0.0, activation="relu"),
    Config(optimizer="adam", lr=3e-3, weight_decay=0.0, activation="silu", dropout=0.1),
    Config(lr=3e-3, activation="gelu", dropout=0.3),
    Config(optimizer="adam", lr=3e-3, weight_decay=0.0, activation="tanh"),
    Config(optimizer="adam", lr=3e-3, weight_decay=0.0),
)
"""The initial configuration of a task of real origin, and the portfolio of optuna_miha 0.1."""


def run_expert(model_fn: ModelFn, *, n_epochs: int, seed: int, method: str, search: Search) -> Run:
    """Train as ``search`` does, and test the network with the lowest validation value.

    Args:
        model_fn: The task.
        n_epochs: The budget of all trainings together.
        seed: Seed of the initial weights, of the data order and of the search.
        method: Name of the method.
        search: The method.
    """
    started = time.perf_counter()
    with preserved_rng(), intra_op_threads(1):
        seed_all(seed)
        trainings = search(model_fn, n_epochs, seed)
    best = min(trainings, key=lambda training: training.value)
    test = None if best.best is None else examined(model_fn, best.best, seed)
    return Run(
        method=method,
        seed=seed,
        n_epochs=n_epochs,
        epochs=sum(training.n_epochs for training in trainings),
        seconds=time.perf_counter() - started,
        value=best.value if best.best is not None else math.nan,
        test=test,
        curve=(),
        trial_epochs=None,
    )


def run_bound(model_fn: ModelFn, *, n_epochs: int, seed: int, method: str) -> Run:
    """Train each of :data:`BOUND` for the *whole* budget: what a search that costs nothing finds.

    The test metrics are those of the network with the lowest validation value. ``oracle`` is the
    lowest test loss among the best epochs of all trainings, as if the validation data had no
    noise.

    Args:
        model_fn: The task.
        n_epochs: The budget of each training.
        seed: As in :func:`run_expert`.
        method: Name of the method.
    """
    trainings: list[Training] = []

    def search(model_fn: ModelFn, n_epochs: int, seed: int) -> Sequence[Training]:
        for config in BOUND:
            trainings.append(Training(model_fn, config, seed))
            trainings[-1].train(n_epochs, "recipe")
        return trainings

    run = run_expert(model_fn, n_epochs=n_epochs, seed=seed, method=method, search=search)
    found = [examined(model_fn, t.best, seed)["loss"] for t in trainings if t.best is not None]
    return replace(run, test={**run.test, "oracle": min(found)} if run.test else None)


def one_after_another(
    model_fn: ModelFn, n_epochs: int, seed: int, *, configs: Sequence[Config], shape: Shape
) -> list[Training]:
    """Train each configuration for an equal share of the budget."""
    trainings = []
    for config, share in zip(configs, shares_of(n_epochs, len(configs)), strict=True):
        training = Training(model_fn, config, seed)
        training.train(share, shape)
        trainings.append(training)
    return trainings


def narrow_tpe(
    model_fn: ModelFn, n_epochs: int, seed: int, *, search_fraction: float
) -> list[Training]:
    """TPE over rate, weight decay, dropout and activation of AdamW, each trial annealed.

    The number and the length of the trials grow in proportion: five trials of 12 epochs for 60
    epochs of search, ten of 20 for 200.

    Args:
        model_fn: The task.
        n_epochs: The budget.
        seed: Seed of the weights and of TPE.
        search_fraction: Fraction of the budget for the search. The rest trains its best
            configuration from scratch.
    """
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=True)
    )
    study.enqueue_trial({"lr": 3e-3, "weight_decay": 0.01, "dropout": 0.1, "activation": "gelu"})
    n_search = round(search_fraction * n_epochs)
    trainings = []

    def train(config: Config, share: int) -> Training:
        training = Training(model_fn, config, seed)
        training.train(share, "recipe")
        trainings.append(training)
        return training

    for share in shares_of(n_search, max(2, round(math.sqrt(n_search / 2)))):
        trial = study.ask()
        config = Config(
            lr=trial.suggest_float("lr", 1e-3, 3e-2, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-3, 0.5, log=True),
            dropout=trial.suggest_float("dropout", 0.0, 0.4),
            activation=trial.suggest_categorical("activation", ["relu", "gelu"]),
        )
        value = train(config, share).value
        study.tell(trial, value if math.isfinite(value) else 1e9)
    if n_search < n_epochs:
        best = min(trainings, key=lambda training: training.value)
        train(best.config, n_epochs - n_search)
    return trainings


def resumed_halving(
    model_fn: ModelFn, n_epochs: int, seed: int, *, configs: Sequence[Config] = STARTUP
) -> list[Training]:
    """Successive halving of the start-up race's configurations, whose survivors continue.

    Each of the rungs (8, 4, 2 and 1 survivors) takes a quarter of the budget. The last one is
    annealed to zero. With one worker, this is ASHA without its asynchronous promotions.
    """
    survivors = [Training(model_fn, config, seed) for config in configs]
    everyone = survivors
    for rung in shares_of(n_epochs, 1 + round(math.log2(len(configs)))):
        shape: Shape = "constant" if len(survivors) > 1 else "cosine"
        for training, share in zip(survivors, shares_of(rung, len(survivors)), strict=True):
            training.train(share, shape)
        survivors = sorted(survivors, key=lambda training: training.last)
        survivors = survivors[: max(1, len(survivors) // 2)]
    return everyone


def _grid(config: Config, rates: Sequence[float], shape: Shape) -> Search:
    configs = [replace(config, lr=rate) for rate in rates]
    return partial(one_after_another, configs=configs, shape=shape)


_ADAMW, _SOAP = Config(lr=1e-2), Config(optimizer="soap", lr=1e-2)

SEARCHES: dict[str, tuple[str, Search]] = {
    "adamw-3": (
        "AdamW at 1e-3, 3e-3 and 1e-2, a third of the budget each, warm-up and cosine",
        _grid(_ADAMW, RATES, "warm-up"),
    ),
    "soap-3": ("the same with SOAP", _grid(_SOAP, RATES, "warm-up")),
    "onecycle": ("AdamW at 1e-2, OneCycle", _grid(_ADAMW, [1e-2], "one-cycle")),
    "recipe": (
        "AdamW at 1e-2, weight decay 0.3, GELU, one cycle, average over 3 epochs",
        _grid(RECIPE, [1e-2], "recipe"),
    ),
    "recipe-3": (
        "the same at 3e-3, 1e-2 and 3e-2, a third of the budget each",
        _grid(RECIPE, [3e-3, 1e-2, 3e-2], "recipe"),
    ),
    "portfolio-3": (
        "three configurations of the portfolio, a third of the budget each, one cycle",
        partial(one_after_another, configs=[STARTUP[1], STARTUP[2], STARTUP[5]], shape="recipe"),
    ),
    "tpe-narrow": (
        "TPE in a narrow space, each trial annealed",
        partial(narrow_tpe, search_fraction=1.0),
    ),
    "tpe-narrow-retrain": (
        "the same for half of the budget, then training of its best configuration",
        partial(narrow_tpe, search_fraction=0.5),
    ),
    "asha-resumed": (
        "successive halving of the start-up race's configurations, survivors continue",
        resumed_halving,
    ),
}
"""Description and search of each method, by name."""
