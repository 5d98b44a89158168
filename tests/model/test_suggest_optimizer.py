"""Suggested optimizers: class, learning rate, weight decay and momentum."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.networks import choices_of, first_trial
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial
from torch import nn, optim

import optuna_miha as miha
from optuna_miha._search.space import OFFERED_OPTIMIZERS

PARAMETERS = list(nn.Linear(4, 3).parameters())


def test_initial_optimizer_is_adam_with_its_default_rate() -> None:
    trial = first_trial()
    optimizer = miha.suggest_optimizer(trial, PARAMETERS)
    assert trial.params == {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}
    assert type(optimizer) is optim.Adam
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert choices_of(trial, "optimizer") == OFFERED_OPTIMIZERS
    lr = trial.distributions["lr"]
    assert lr == FloatDistribution(1e-5, 3.0, log=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", {"lr": 1e-3}),
        ("sgd", {"lr": 0.03, "momentum": 0.9}),
        ("adadelta", {"lr": 1.0}),
        ("rmsprop", {"lr": 1e-3}),
    ],
)
def test_initial_name_sets_the_default_rate_of_the_class(
    name: str, expected: dict[str, Any]
) -> None:
    trial = first_trial()
    optimizer = miha.suggest_optimizer(trial, PARAMETERS, initial=name)
    assert trial.params == {"optimizer": name, "weight_decay": 0.0} | expected
    assert type(optimizer).__name__.lower() == name


def test_momentum_is_suggested_for_sgd() -> None:
    trial = FixedTrial({"optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-3, "momentum": 0.4})
    optimizer = miha.suggest_optimizer(trial, PARAMETERS)
    group = optimizer.param_groups[0]
    assert type(optimizer) is optim.SGD
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 1e-3, 0.4)
    assert trial.distributions["momentum"] == FloatDistribution(0.0, 0.99)


def test_initial_optimizer_sets_the_initial_values() -> None:
    trial = first_trial()
    initial = optim.SGD(PARAMETERS, lr=7.0, momentum=0.25, weight_decay=0.3)
    optimizer = miha.suggest_optimizer(trial, PARAMETERS, initial=initial)
    expected = {"optimizer": "sgd", "lr": 7.0, "weight_decay": 0.3, "momentum": 0.25}
    assert trial.params == expected
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (7.0, 0.3, 0.25)
    assert trial.distributions["lr"].high == 7.0
    assert choices_of(trial, "weight_decay")[-1] == 0.3


@pytest.mark.parametrize(
    ("initial", "settings"),
    [
        (optim.Adam(PARAMETERS, betas=(0.5, 0.9)), {"betas": (0.5, 0.9)}),
        (optim.AdamW(PARAMETERS, eps=1e-4), {"eps": 1e-4}),
        (optim.Adam(PARAMETERS, amsgrad=True), {"amsgrad": True}),
        (optim.SGD(PARAMETERS, lr=0.1, momentum=0.9, nesterov=True), {"nesterov": True}),
        (optim.RMSprop(PARAMETERS, alpha=0.9, momentum=0.5), {"alpha": 0.9, "momentum": 0.5}),
    ],
    ids=["betas", "eps", "amsgrad", "nesterov", "rmsprop"],
)
def test_other_settings_of_the_initial_optimizer_are_kept(
    initial: optim.Optimizer, settings: dict[str, Any]
) -> None:
    optimizer = miha.suggest_optimizer(first_trial(), PARAMETERS, initial=initial)
    assert type(optimizer) is type(initial)
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in settings} == settings


def test_initial_optimizer_is_added_to_the_choices() -> None:
    trial = first_trial()
    optimizer = miha.suggest_optimizer(
        trial, PARAMETERS, initial="nadam", choices=["adam"], lr=(0.1, 0.2)
    )
    assert choices_of(trial, "optimizer") == ("nadam", "adam")
    assert type(optimizer) is optim.NAdam
    assert trial.distributions["lr"] == FloatDistribution(1e-3, 0.2, log=True)


def test_initial_weight_decay_is_added_to_the_choices() -> None:
    trial = first_trial()
    miha.suggest_optimizer(trial, PARAMETERS, weight_decay=[1e-2, 1e-4])
    assert choices_of(trial, "weight_decay") == (0.0, 1e-4, 1e-2)


def test_param_groups_keep_their_settings() -> None:
    weight, bias = nn.Linear(4, 3).parameters()
    groups = [{"params": [weight], "lr": 0.5}, {"params": [bias]}]
    optimizer = miha.suggest_optimizer(first_trial(), groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1e-3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initial": "adamm"}, ValueError, r"one of .*'adam'.*got 'adamm'"),
        ({"choices": ["adam", "lion"]}, ValueError, r"one of .*'adam'.*got 'lion'"),
        ({"lr": (1.0, 0.1)}, ValueError, r"`lr` must be two positive.*\(1.0, 0.1\)"),
        ({"lr": (0.0, 0.1)}, ValueError, r"`lr` must be two positive.*\(0.0, 0.1\)"),
        (
            {"initial": optim.LBFGS(PARAMETERS)},
            TypeError,
            r"one of torch's.*got LBFGS.*suggest_float",
        ),
    ],
)
def test_invalid_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        miha.suggest_optimizer(first_trial(), PARAMETERS, **arguments)
