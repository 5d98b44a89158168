"""Suggested activations of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.networks import choices_of, first_trial, mlp
from helpers.problems import SHORT, blobs, classifier, new_study, run
from optuna.trial import FixedTrial
from torch import nn

import optuna_miha as miha
from optuna_miha._search.space import OFFERED_ACTIVATIONS


def test_initial_activation_is_that_of_the_layer() -> None:
    trial, model = first_trial(), mlp()
    modules = list(model)
    miha.suggest_activations(trial, model)
    assert trial.params == {"activation.1": "relu", "activation.4": "tanh"}
    assert list(model) == modules
    assert set(choices_of(trial, "activation.1")) == set(OFFERED_ACTIVATIONS)


def test_chosen_activation_replaces_the_module() -> None:
    model = mlp()
    miha.suggest_activations(FixedTrial({"activation.1": "gelu", "activation.4": "tanh"}), model)
    assert isinstance(model[1], nn.GELU)
    assert isinstance(model[4], nn.Tanh)
    assert isinstance(model[6], nn.Sigmoid)


def test_output_activation_can_be_included() -> None:
    trial = first_trial({"activation.6": "hardsigmoid"})
    model = mlp()
    miha.suggest_activations(trial, model, include_output=True)
    assert trial.params.keys() == {"activation.1", "activation.4", "activation.6"}
    assert isinstance(model[6], nn.Hardsigmoid)


def test_module_is_kept_if_its_own_activation_is_chosen() -> None:
    trial = first_trial()
    model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
    configured = model[1]
    miha.suggest_activations(trial, model)
    assert trial.params == {"activation.1": "leaky_relu"}
    assert model[1] is configured
    assert model[1].negative_slope == 0.2


def test_initial_name_applies_to_every_layer() -> None:
    trial, model = first_trial(), mlp()
    miha.suggest_activations(trial, model, initial="silu")
    assert trial.params == {"activation.1": "silu", "activation.4": "silu"}
    assert isinstance(model[1], nn.SiLU) and isinstance(model[4], nn.SiLU)


def test_current_activation_is_added_to_the_choices() -> None:
    trial = first_trial()
    miha.suggest_activations(trial, mlp(), choices=["relu", "gelu"])
    assert choices_of(trial, "activation.1") == ("relu", "gelu")
    assert choices_of(trial, "activation.4") == ("tanh", "relu", "gelu")
    assert trial.params["activation.4"] == "tanh"


@pytest.mark.parametrize("arguments", [{"choices": ["relu", "sofmax"]}, {"initial": "sofmax"}])
def test_unknown_name_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*'relu'.*got 'sofmax'"):
        miha.suggest_activations(first_trial(), mlp(), **arguments)


class WithoutActivations(nn.Linear):
    """A network without activation modules; the hint is logged once per class name."""


def test_network_without_activation_modules_logs_one_hint(
    log: pytest.LogCaptureFixture,
) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        x, y = blobs(40)
        model = WithoutActivations(4, 3)
        miha.suggest_activations(trial, model)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return miha.Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            train_data=(x[:30], y[:30]),
            valid_data=(x[30:], y[30:]),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        )

    run(new_study(), model_fn, plan=SHORT, initial_params={"lr": 1e-3})
    hints = [
        r for r in log.records if "no activation module in WithoutActivations:" in r.getMessage()
    ]
    assert len(hints) == 1


class AlsoWithoutActivations(nn.Linear):
    """The same under another name, for another test."""


def test_default_search_space_logs_no_hint(
    log: pytest.LogCaptureFixture,
) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        return miha.Recipe(
            model=AlsoWithoutActivations(4, 3),
            loss_fn=recipe.loss_fn,
            train_data=recipe.train_data,
            valid_data=recipe.valid_data,
        )

    run(new_study(), model_fn, plan=SHORT)
    assert "no activation module" not in log.text
