"""Suggested optimizers: class, learning rate, weight decay and momentum."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from helpers.networks import choices_of, first_trial
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial
from torch import Tensor, nn, optim

import optuna_miha as miha
from optuna_miha._model.suggest_optimizer import suggest_around
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


def test_soap_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r"'soap' needs .* `pip install pytorch-optimizer`"):
        miha.suggest_optimizer(first_trial(), PARAMETERS, choices=["adam", "soap"])


def test_momentum_is_suggested_for_sgd() -> None:
    trial = FixedTrial({"optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-3, "momentum": 0.4})
    optimizer = miha.suggest_optimizer(trial, PARAMETERS)
    group = optimizer.param_groups[0]
    assert type(optimizer) is optim.SGD
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 1e-3, 0.4)
    assert trial.distributions["momentum"] == FloatDistribution(0.0, 0.99)


def test_initial_optimizer_sets_the_initial_values() -> None:
    trial = first_trial()
    initial = optim.SGD(PARAMETERS, lr=7.0, momentum=0.25, weight_decay=0.7)
    optimizer = miha.suggest_optimizer(trial, PARAMETERS, initial=initial)
    expected = {"optimizer": "sgd", "lr": 7.0, "weight_decay": 0.7, "momentum": 0.25}
    assert trial.params == expected
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (7.0, 0.7, 0.25)
    assert trial.distributions["lr"].high == 7.0
    assert choices_of(trial, "weight_decay")[-1] == 0.7


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


def groups_of(*settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2))], **own} for own in settings]


def fixed(name: str = "adam", **values: float) -> FixedTrial:
    params = {"optimizer": name, "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.5}
    return FixedTrial({**params, **values})


def values_of(optimizer: optim.Optimizer, name: str) -> list[Any]:
    return [group[name] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_learning_rates_of_all_groups_are_scaled_by_that_of_the_first(name: str) -> None:
    trial = first_trial()
    groups = groups_of({"lr": 1e-4}, {"lr": 1e-3}, {"lr": torch.tensor(2e-3)})
    optimizer = miha.suggest_optimizer(trial, groups)
    assert trial.params["lr"] == 1e-4
    assert values_of(optimizer, "lr") == [1e-4, 1e-3, pytest.approx(2e-3)]
    changed = miha.suggest_optimizer(fixed(name, lr=5e-3), groups)
    assert values_of(changed, "lr") == pytest.approx([5e-3, 5e-2, 0.1])
    assert [group["lr"] for group in groups] == [1e-4, 1e-3, torch.tensor(2e-3)]


def test_learning_rate_of_one_group_keeps_its_ratio_to_the_suggested_one() -> None:
    groups = groups_of({"lr": 2e-3}, {})
    initial = optim.Adam(groups_of({"lr": 2e-3}, {}), lr=4e-3)
    for trial, expected in ((first_trial(), [2e-3, 4e-3]), (fixed(lr=0.4), [0.2, 0.4])):
        optimizer = miha.suggest_optimizer(trial, groups, initial=initial, lr=(1e-3, 1.0))
        assert values_of(optimizer, "lr") == pytest.approx(expected)


def test_settings_of_a_group_are_kept_and_the_others_get_the_suggested_ones() -> None:
    own = {"weight_decay": 0.25, "betas": (0.5, 0.6), "eps": 1e-3, "amsgrad": True}
    optimizer = miha.suggest_optimizer(fixed(weight_decay=0.1), groups_of(own, {}))
    assert {key: optimizer.param_groups[0][key] for key in own} == own
    assert values_of(optimizer, "weight_decay") == [0.25, 0.1]
    sgd = miha.suggest_optimizer(fixed("sgd", momentum=0.9), groups_of({"momentum": 0.1}, {}))
    assert values_of(sgd, "momentum") == [0.1, 0.9]


@pytest.mark.parametrize("name", ["weight_decay", "momentum"])
def test_suggested_value_that_no_group_takes_is_refused(name: str) -> None:
    groups = groups_of({name: 0.1}, {name: 0.0})
    with pytest.raises(ValueError, match=rf"{name}.*all of 2 groups.*leave it out"):
        miha.suggest_optimizer(first_trial(), groups)


@pytest.mark.parametrize("name", ["adam", "adadelta", "sgd"])
@pytest.mark.parametrize(
    "choice", [{"foreach": True}, {"foreach": False}, {"fused": False}, {"maximize": True}]
)
def test_sign_and_implementation_hold_for_every_class(name: str, choice: dict[str, bool]) -> None:
    initial = optim.Adam(PARAMETERS, **choice)  # type: ignore[arg-type]
    optimizer = miha.suggest_optimizer(fixed(name), PARAMETERS, initial=initial)
    for key, value in choice.items():
        assert optimizer.param_groups[0].get(key, value) == value
    if "maximize" not in choice:
        assert not optimizer.param_groups[0].get("fused")


def test_implementation_that_a_group_chooses_is_kept() -> None:
    optimizer = miha.suggest_optimizer(first_trial(), groups_of({"foreach": True}, {}))
    assert not any(values_of(optimizer, "fused"))


def test_changed_setting_of_the_initial_group_counts() -> None:
    initial = optim.Adam(PARAMETERS)
    initial.param_groups[0]["betas"] = (0.5, 0.6)
    optimizer = miha.suggest_optimizer(first_trial(), PARAMETERS, initial=initial)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_initial_optimizer_with_hooks_or_a_scheduler_is_refused() -> None:
    hooked, scheduled = optim.Adam(PARAMETERS), optim.Adam(PARAMETERS)
    hooked.register_step_pre_hook(lambda *_: None)
    optim.lr_scheduler.StepLR(scheduled, 5)
    for initial, message in ((hooked, "hooks.*register them"), (scheduled, "scheduler")):
        with pytest.raises(ValueError, match=message):
            miha.suggest_optimizer(first_trial(), PARAMETERS, initial=initial)


def test_own_optimizer_is_adjusted_in_place() -> None:
    optimizer = optim.SGD(PARAMETERS, lr=torch.tensor(0.1), momentum=0.9, nesterov=True)
    trial = fixed("sgd", lr=0.5, weight_decay=0.1, momentum=0.0)
    assert suggest_around(trial, optimizer) is optimizer
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.1, 0.0, False)
    assert isinstance(group["lr"], Tensor)
    assert float(group["lr"]) == 0.5
    assert group["fused"]
    assert type(suggest_around(fixed("adam"), optimizer)) is optim.Adam


def test_class_of_an_optimizer_with_hooks_or_attributes_is_kept() -> None:
    plain, hooked, marked = (optim.Adam(PARAMETERS) for _ in range(3))
    calls: list[int] = []
    hooked.register_step_pre_hook(lambda *_: calls.append(1))
    marked.clip = 1.0  # type: ignore[attr-defined]
    for optimizer, expected in (
        (plain, OFFERED_OPTIMIZERS),
        (hooked, ("adam",)),
        (marked, ("adam",)),
    ):
        trial = first_trial()
        assert suggest_around(trial, optimizer) is optimizer
        assert choices_of(trial, "optimizer") == expected
    hooked.step()
    assert calls == [1]


def test_learning_rates_of_an_optimizer_of_another_class_are_scaled() -> None:
    shared = torch.tensor(0.1)
    optimizer = optim.RMSprop(groups_of({}, {}, {"lr": 0.2}), lr=shared)
    suggest_around(FixedTrial({"lr": 0.2}), optimizer)
    assert values_of(optimizer, "lr") == pytest.approx([0.2, 0.2, 0.4])
    assert float(shared) == pytest.approx(0.1)


def test_optimizer_without_a_learning_rate_or_with_a_scheduler_is_refused() -> None:
    optimizer = optim.SGD(groups_of({"lr": 0.0}, {"lr": 0.0}))
    with pytest.raises(ValueError, match=r"positive learning rate.*\[0.0, 0.0\].*set one"):
        suggest_around(first_trial(), optimizer)
    scheduled = optim.SGD(PARAMETERS, lr=0.1)
    optim.lr_scheduler.StepLR(scheduled, 5)
    with pytest.raises(ValueError, match=r"scheduler.*SGD.*leave it out"):
        suggest_around(first_trial(), scheduled)
