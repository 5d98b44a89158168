"""Exactly what is promised is public, and all of it is explained."""

from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
from typing import Any

import pytest
from optuna.exceptions import OptunaError

import optuna_miha
from optuna_miha import exceptions, fitness

PUBLIC = [
    "AverageWeights",
    "Comparison",
    "ContextTrainer",
    "Crossover",
    "Curve",
    "EarlyStopping",
    "Ensemble",
    "EpochReport",
    "EpochResult",
    "Fitness",
    "MLflowCallback",
    "MihaSampler",
    "Plan",
    "Recipe",
    "Replay",
    "Result",
    "Schedule",
    "Segment",
    "SlopePruner",
    "StepOutput",
    "TensorBoardCallback",
    "Trainer",
    "TrainerContext",
    "UniformCrossover",
    "WeightsAndBiasesCallback",
    "compare",
    "create_storage",
    "exceptions",
    "fitness",
    "fixed",
    "integrations",
    "load_result",
    "optimize",
    "plain_objective",
    "replay",
    "suggest_activations",
    "suggest_batch_size",
    "suggest_categorical",
    "suggest_dropout",
    "suggest_float",
    "suggest_int",
    "suggest_label_smoothing",
    "suggest_loss",
    "suggest_optimizer",
    "visualization",
]


def test_all_is_sorted_and_is_what_is_promised() -> None:
    assert optuna_miha.__all__ == sorted(optuna_miha.__all__)
    assert optuna_miha.__all__ == PUBLIC


def test_the_package_shows_no_other_name() -> None:
    assert {name for name in vars(optuna_miha) if not name.startswith("_")} == set(PUBLIC)


def test_version_is_that_of_the_distribution() -> None:
    assert optuna_miha.__version__ == importlib.metadata.version("optuna-miha")


def test_every_module_without_an_underscore_is_public() -> None:
    modules = {module.name for module in pkgutil.iter_modules(optuna_miha.__path__)}
    assert {name for name in modules if not name.startswith("_")} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    member = getattr(optuna_miha, name)
    assert (member.__doc__ or "").strip()


CLASSES = [c for n in PUBLIC if inspect.isclass(c := getattr(optuna_miha, n))]
METHODS = [
    pytest.param(method, id=f"{cls.__name__}.{name}")
    for cls in CLASSES
    for name, method in vars(cls).items()
    if not name.startswith("_")
    and (inspect.isroutine(method) or isinstance(method, (property, classmethod)))
]


@pytest.mark.parametrize("method", METHODS)
def test_every_public_method_is_documented(method: Any) -> None:
    assert (method.__doc__ or "").strip()


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isroutine(getattr(optuna_miha, n))])
def test_every_argument_of_a_public_function_is_documented(name: str) -> None:
    function = getattr(optuna_miha, name)
    for argument in inspect.signature(function).parameters:
        assert f"{argument}:" in function.__doc__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_argument_of_a_public_class_is_documented(cls: type) -> None:
    if getattr(cls, "_is_protocol", False):
        return
    documented = cls.__doc__ or ""
    for argument in inspect.signature(cls).parameters:
        assert f"{argument}:" in documented


def test_every_error_is_an_error_of_the_package_and_of_optuna() -> None:
    errors = [e for e in vars(exceptions).values() if inspect.isclass(e)]
    ours = [e for e in errors if e.__module__ == exceptions.__name__]
    assert exceptions.MihaError in ours
    for error in ours:
        assert issubclass(error, exceptions.MihaError)
        assert issubclass(error, OptunaError)
        assert error.__doc__


def test_every_fitness_is_documented() -> None:
    functions = [f for f in vars(fitness).values() if inspect.isfunction(f)]
    assert {f.__name__ for f in functions} >= {"last_value", "slope", "classic", "power_law"}
    assert all(f.__doc__ for f in functions)
