"""Suggested values that nothing takes, or that the user's code changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.problems import SHORT, classifier, explicit, new_study, run
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import optuna_miha as miha
from optuna_miha.exceptions import NotInForceError

NO_AVERAGE = miha.Plan(
    40, startup=1, fixing_epochs=3, restarts=False, ema_decay=0, anneal="cosine"
)


def optimizer_with(change: Callable[[Any], None]) -> Any:
    """A ``model_fn`` that changes the groups of the suggested optimizer."""

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        for group in recipe.optimizer.param_groups:
            change(group)
        return recipe

    return model_fn


def ignored(suggest: Callable[[Any, miha.Recipe], object], **changes: Any) -> Any:
    """A ``model_fn`` that does not use what is suggested."""

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        suggest(trial, recipe)
        return replace(recipe, **{name: make(recipe) for name, make in changes.items()})

    return model_fn


def adam(recipe: miha.Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(recipe.model.parameters())


def half_dropout(trial: Any, recipe: miha.Recipe) -> None:
    miha.suggest_dropout(trial, recipe.model)
    recipe.model[3].p = 0.5


REFUSED: dict[str, tuple[Any, str]] = {
    "rate": (optimizer_with(lambda g: g.update(lr=0.5)), r"'lr' = 0\.001 .* has 0\.5 in"),
    "decay": (
        optimizer_with(lambda g: g.update(weight_decay=0.3)),
        r"'weight_decay' = 0\.0 .* 0\.3",
    ),
    "optimizer not passed": (
        ignored(lambda t, r: miha.suggest_optimizer(t, r.model.parameters(), initial="sgd")),
        "'optimizer' = 'sgd' .* class Adam: pass the optimizer",
    ),
    "adam for adamw": (
        ignored(
            lambda t, r: miha.suggest_optimizer(t, r.model.parameters(), initial="adamw"),
            optimizer=adam,
        ),
        "'optimizer' = 'adamw' .* class Adam",
    ),
    "batch size": (ignored(lambda t, r: miha.suggest_batch_size(t)), "'batch_size' = 32 .*=16"),
    "dropout of another network": (
        ignored(lambda t, r: miha.suggest_dropout(t, nn.Sequential(nn.Dropout(0.4)))),
        r"'dropout\.0' = 0\.4 .* without this module",
    ),
    "dropout changed": (ignored(half_dropout), r"'dropout\.3' = 0\.1 .* rate of 0\.5"),
    "label smoothing": (
        ignored(lambda t, r: miha.suggest_label_smoothing(t)),
        r"'label_smoothing' = 0\.3 .*=0\.0",
    ),
    "loss": (
        ignored(lambda t, r: miha.suggest_loss(t, initial=nn.CrossEntropyLoss())),
        "'loss' = 'multi_margin' .* has a CrossEntropyLoss",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_suggested_value_that_nothing_takes_is_refused_before_the_first_trial(kind: str) -> None:
    model_fn, message = REFUSED[kind]
    study = new_study()
    with pytest.raises(NotInForceError, match=message):
        run(study, model_fn, plan=SHORT)
    assert study.user_attrs == {} and study.trials == []


def one_group_of_its_own(trial: Any) -> miha.Recipe:
    recipe = classifier(trial)
    first, *others = recipe.model.parameters()
    groups = [{"params": [first], "weight_decay": 0.7}, {"params": others}]
    optimizer = miha.suggest_optimizer(trial, groups)
    optimizer.param_groups[0]["lr"] *= 10
    return replace(recipe, optimizer=optimizer)


def rebuilt(trial: Any) -> miha.Recipe:
    recipe = explicit(trial)
    assert recipe.optimizer is not None
    values = {k: recipe.optimizer.defaults.get(k) for k in ("lr", "weight_decay", "momentum")}
    values = {key: value for key, value in values.items() if value is not None}
    recipe.optimizer = type(recipe.optimizer)(recipe.model.parameters(), **values)
    return recipe


def derived(change: Callable[[nn.Module], nn.Module]) -> Any:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        miha.suggest_activations(trial, recipe.model)
        miha.suggest_dropout(trial, recipe.model)
        return replace(recipe, model=change(recipe.model))

    return model_fn


ACCEPTED: dict[str, Any] = {
    "a group of its own": one_group_of_its_own,
    "an optimizer from the suggested settings": rebuilt,
    "a wrapped network": derived(lambda model: nn.Sequential(model)),
    "other names": derived(lambda model: nn.ModuleList([nn.Sequential(*model)])[0]),
    "a copied network": derived(copy.deepcopy),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_values_in_force_in_another_way_are_accepted(kind: str) -> None:
    run(new_study(), ACCEPTED[kind], plan=NO_AVERAGE)


class Net(nn.Module):
    """A network that uses its dropout rate in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if self.how == "module":
            x = self.drop(x)
        elif self.how == "function":
            x = nn.functional.dropout(x, self.drop.p, self.training)
        return self.b(x)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["module", "function", "unused"])
def test_dropout_rate_that_the_network_does_not_use(how: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        return replace(classifier(trial), model=Net(how))

    def suggesting(trial: Any) -> miha.Recipe:
        recipe = model_fn(trial)
        miha.suggest_dropout(trial, recipe.model)
        return recipe

    result = run(new_study(), model_fn, plan=SHORT)
    assert ("dropout.drop" in result.params) == (how != "unused")
    if how == "unused":
        with pytest.raises(NotInForceError, match=r"dropout rate must be used .* 'dropout\.drop'"):
            run(new_study(), suggesting, plan=SHORT)
    else:
        run(new_study(), suggesting, plan=SHORT)


def trainer(change: Callable[[torch.optim.Optimizer], Any]) -> Any:
    """A trainer that changes the optimizer, or attaches a scheduler that it steps."""

    def train(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        scheduler = change(recipe.optimizer)
        inputs, targets = recipe.train_data
        for _ in range(n_epochs):
            recipe.optimizer.zero_grad()
            loss = recipe.loss_fn(recipe.model(inputs), targets)
            loss.backward()
            recipe.optimizer.step()
            if scheduler is not None:
                scheduler.step()
            yield miha.EpochResult(value=loss.item())

    return train


def with_sgd(trial: Any) -> miha.Recipe:
    recipe = classifier(trial)
    optimizer = miha.suggest_optimizer(trial, recipe.model.parameters(), choices=("sgd",))
    return replace(recipe, optimizer=optimizer)


def one_cycle(optimizer: torch.optim.Optimizer, **settings: Any) -> Any:
    return OneCycleLR(optimizer, max_lr=0.1, total_steps=1000, **settings)


def set_groups(**values: float) -> Callable[[torch.optim.Optimizer], None]:
    def change(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group.update(values)

    return change


SCHEDULERS: dict[str, Any] = {
    "warm-up": lambda optimizer: LambdaLR(optimizer, lambda step: step / 10),
    "one cycle": lambda optimizer: one_cycle(optimizer, cycle_momentum=False),
    "by hand": set_groups(lr=1e-5),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedule_of_a_trainer_is_accepted(kind: str) -> None:
    run(new_study(), with_sgd, plan=SHORT, trainer=trainer(SCHEDULERS[kind]))


CHANGES: dict[str, tuple[Any, str]] = {
    "cycled momentum": (one_cycle, r"'momentum' = 0\.9 .* 0\.95 .*cycle_momentum=False"),
    "weight decay": (set_groups(weight_decay=0.2), r"'weight_decay' = 0\.0 .* 0\.2"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_setting_that_a_trainer_changes_is_refused_at_the_first_step(kind: str) -> None:
    change, message = CHANGES[kind]
    study = new_study()
    with pytest.raises(NotInForceError, match=message):
        run(study, with_sgd, plan=SHORT, trainer=trainer(change))
    assert [t.intermediate_values for t in study.trials] == [{}]


def test_rate_is_not_suggested_for_rprop() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        return replace(recipe, optimizer=torch.optim.Rprop(recipe.model.parameters()))

    result = run(new_study(), model_fn, plan=SHORT)
    assert "lr" not in result.params and "batch_size" in result.params
