"""Steps on throw-away networks, before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import CPU
from helpers.problems import SHORT, blobs, classifier, new_study, run
from torch import nn

import optuna_miha as miha
from optuna_miha._model.rng import capture_rng
from optuna_miha.exceptions import InheritanceError


def with_model(model: Any, **changes: Any) -> Any:
    """A ``model_fn`` of another network, which a function of the trial builds."""
    return lambda trial: replace(classifier(trial), model=model(trial), **changes)


def refused(model_fn: Any, error: type[Exception], text: str, **settings: Any) -> None:
    study = new_study()
    with pytest.raises(error, match=text):
        run(study, model_fn, **({"plan": SHORT} | settings))
    assert study.trials == []
    assert study.user_attrs == {}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_network_that_a_forward_pass_makes_copyable_is_refused() -> None:
    def model(trial: Any) -> nn.Module:
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))

    refused(with_model(model), TypeError, "must be copyable by `copy.deepcopy`")


@pytest.mark.parametrize("own_trainer", [False, True])
@pytest.mark.parametrize("kind", ["int", "categorical"])
def test_width_that_is_a_parameter_is_refused(kind: str, own_trainer: bool) -> None:
    def model(trial: Any) -> nn.Module:
        trial.suggest_float("lr", 1e-4, 1e-1)
        width = (
            trial.suggest_int("width", 8, 32)
            if kind == "int"
            else trial.suggest_categorical("width", [8, 16])
        )
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        raise AssertionError("trained")

    text = "shape is .* 'width' changes from"
    refused(with_model(model), InheritanceError, text, trainer=trainer if own_trainer else None)


@pytest.mark.parametrize(
    "plan", [replace(SHORT, mutations=("lr",)), miha.Plan.no_search(24)], ids=["lr", "no search"]
)
def test_width_that_does_not_mutate_is_accepted(plan: miha.Plan) -> None:
    def model(trial: Any) -> nn.Module:
        trial.suggest_float("lr", 1e-4, 1e-1)
        return nn.Linear(4, 3, bias=trial.suggest_categorical("bias", [True, False]))

    run(new_study(), with_model(model), plan=plan)


class Picky(nn.Module):
    """A loss that fails for some values of a parameter."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.mode == "bad":
            raise ArithmeticError("no such mode")
        return nn.functional.cross_entropy(output, target)


def picky(trial: Any) -> miha.Recipe:
    recipe = classifier(trial)
    lr = trial.suggest_float("lr", 1e-4, 1e-1)
    recipe.optimizer = torch.optim.Adam(recipe.model.parameters(), lr=lr)
    return replace(
        recipe,
        loss_fn=Picky(trial.suggest_categorical("mode", ["good", "bad"])),
        valid_loss_fn=nn.CrossEntropyLoss(),
    )


def test_value_that_breaks_the_training_is_refused_by_name() -> None:
    text = "'mode' changes from 'good' to 'bad', it raises ArithmeticError: no such mode"
    refused(picky, ValueError, text)


def test_value_that_breaks_the_training_is_accepted_if_caught() -> None:
    result = run(new_study(), picky, plan=SHORT, catch=(ArithmeticError,))
    assert result.params["mode"] == "good"


def test_combination_that_model_fn_refuses_is_left_to_the_run() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        a, b = (trial.suggest_categorical(name, [0, 1]) for name in "ab")
        if a and b:
            raise optuna.TrialPruned
        return recipe

    run(new_study(), model_fn, plan=SHORT)


class Growing(nn.Linear):
    """A network that registers a buffer in its first forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "seen"):
            self.register_buffer("seen", x.detach().mean(0))
        return super().forward(x)


def test_network_whose_state_dict_grows_is_refused() -> None:
    model_fn = with_model(lambda trial: Growing(4, 3))
    refused(model_fn, InheritanceError, "'seen'.*the branch lacks it")


def test_steps_leave_generators_and_data_as_they_were() -> None:
    x, y = blobs(60)
    seen: list[Any] = []

    class Once(Exception):
        """Ends the run when training begins."""

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        raise Once

    def model_fn(trial: Any) -> miha.Recipe:
        seen.append(trial)
        return replace(classifier(trial), train_data=(x, y))

    before, data = capture_rng(CPU), x.clone()
    with pytest.raises(Once):
        run(new_study(), model_fn, plan=SHORT, trainer=trainer)
    assert same(before, capture_rng(CPU))
    assert torch.equal(x, data)
    assert len(seen) < 10
