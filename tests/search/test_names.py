"""Kinds by names, several learning rates, and the order in which kinds are tried."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.problems import SHORT, classifier, run
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

import optuna_miha as miha
from optuna_miha._model.model_fn import offline_trial
from optuna_miha._search.learning_rate import scale_lr
from optuna_miha._search.mutation import describe_rules, mutate
from optuna_miha._search.space import kind_of
from optuna_miha._search.visits import order_of_kinds

LR = FloatDistribution(1e-6, 1.0, log=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lr", "lr"),
        ("lr.head", "lr"),
        ("lr_head", "lr"),
        ("head_lr", "lr"),
        ("LR", "lr"),
        ("learning_rate", "lr"),
        ("learning_rate_backbone", "lr"),
        ("max_lr", "lr"),
        ("lr_decay", "lr_decay"),
        ("lr_warmup_steps", "lr_warmup_steps"),
        ("min_lr", "min_lr"),
        ("lrn", "lrn"),
        ("weight_decay_backbone", "weight_decay"),
        ("wd", "weight_decay"),
        ("dropout_1", "dropout"),
        ("dropout2", "dropout"),
        ("attention_dropout", "dropout"),
        ("momentum", "momentum"),
        ("momentum_decay", "momentum_decay"),
        ("batch_size", "batch_size"),
        ("activation.fc", "activation"),
        ("beta", "beta"),
        ("other.lr", "other"),
    ],
)
def test_kind_follows_from_the_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_learning_rates_are_raised_together() -> None:
    space = {"lr.head": LR, "lr_body": LR, "beta": FloatDistribution(0.0, 1.0)}
    start = {"lr.head": 1e-3, "lr_body": 1e-5, "beta": 0.5}
    mutated = mutate(start, space, "lr", np.random.default_rng(0))
    assert mutated["lr.head"] > 1.2e-3
    assert mutated["lr.head"] / mutated["lr_body"] == pytest.approx(100, rel=1e-3)
    assert mutated["beta"] == 0.5
    scaled = scale_lr(start, space, 3.0)
    assert scaled == {"lr.head": 3e-3, "lr_body": 3e-5, "beta": 0.5}


def test_rules_of_all_parameters_are_listed() -> None:
    space = {
        "lr.a": LR,
        "lr.b": LR,
        "beta": FloatDistribution(0.0, 1.0),
        "mode": CategoricalDistribution(("x", "y")),
        "batch_size": IntDistribution(8, 64),
        "width": IntDistribution(3, 3),
    }
    assert describe_rules(space, ["lr", "beta", "mode"]) == (
        "beta (scaled or shifted), lr.a and lr.b (raised together), mode (another choice), "
        "batch_size and width (fixed)"
    )
    rules = describe_rules(space, ["lr"], upward_lr=False)
    assert rules.startswith("lr.a and lr.b (raised or lowered), ")


def test_unusual_kinds_come_first_and_once() -> None:
    allowed = ["activation", "beta", "lr", "mixup"]

    def order(visit: int) -> list[str]:
        return order_of_kinds(allowed, visit, 1, np.random.default_rng(0))

    assert [order(visit)[0] for visit in range(2)] == ["beta", "mixup"]
    assert all(sorted(order(visit)) == allowed for visit in range(3))
    usual = ["activation", "lr"]
    shuffled = [str(kind) for kind in np.random.default_rng(0).permutation(usual)]
    assert order_of_kinds(usual, 0, 1, np.random.default_rng(0)) == shuffled[::-1]


def test_kind_can_be_said_outright() -> None:
    trial = offline_trial({})
    assert miha.suggest_float(trial, "encoder", 1e-5, 1.0, kind="lr", initial=0.1, log=True) == 0.1
    assert miha.suggest_float(trial, "lr.head", 1e-5, 1.0, kind="lr", initial=0.2) == 0.2
    assert miha.suggest_int(trial, "rank", 1, 9, initial=8) == 8
    assert miha.suggest_categorical(trial, "mode", ["a", "b"], initial="b") == "b"
    assert list(trial.params) == ["lr.encoder", "lr.head", "rank", "mode"]
    assert miha.suggest_float(FixedTrial({"lr_x.lr": 3.0}), "lr", 0, 9, kind="lr_x") == 3.0


def test_wrong_initial_values_and_kinds_are_refused() -> None:
    trial = offline_trial({})
    with pytest.raises(ValueError, match="'beta' must lie between 0 and 1, got 2"):
        miha.suggest_float(trial, "beta", 0, 1, initial=2)
    with pytest.raises(ValueError, match=r"must be one of \['a'\], got 'b'"):
        miha.suggest_categorical(trial, "mode", ["a"], initial="b")
    with pytest.raises(ValueError, match="word without a dot"):
        miha.suggest_int(trial, "rank", 1, 9, kind="a.b")
    assert not trial.params


def many(trial: Any) -> miha.Recipe:
    recipe = classifier(trial)
    trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    for name in ("beta", "gamma", "mixup", "noise"):
        trial.suggest_float(name, 0.0, 1.0)
    return recipe


def test_kinds_to_mutate_that_do_not_exist_are_named(caplog: pytest.LogCaptureFixture) -> None:
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    optuna.logging.enable_propagation()
    plan = miha.Plan(16, mutations=("lr", "learning_rat", "momentum"))  # Momentum may come later.
    run(study, classifier, plan=plan)
    assert "`mutations` names learning_rat, but the kinds of" in caplog.text


def test_run_tries_what_was_asked_for_and_names_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    optuna.logging.enable_propagation()
    with caplog.at_level(logging.INFO, "optuna.miha"):
        result = run(study, many, plan=SHORT)
    assert "Mutations: beta (scaled or shifted), " in caplog.text
    assert "learning_rate (raised)" in caplog.text
    branches = [s for s in result.segments if s.role == "branch" and s.branch > 0]
    assert {s.mutation.split()[0] for s in branches} == {"beta", "gamma"}
    assert result.untried == ("lr", "mixup", "noise")
    last = result.describe().splitlines()[-1]
    assert last == "never tried: lr, mixup, noise; about 120 epochs in all would suffice"
