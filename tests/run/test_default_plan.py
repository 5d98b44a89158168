"""Runs with the default plan: an annealed race and rounds of heirs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import optuna
import pytest
import torch
from helpers.problems import (
    After,
    blobs,
    classifier,
    explicit,
    history,
    new_study,
    run,
    weights,
)

import optuna_miha as miha

PLAN = miha.Plan(40)


@pytest.mark.slow
def test_an_interrupted_run_and_a_replay_give_the_model_of_the_whole_run() -> None:
    whole = run(new_study(), explicit, plan=PLAN)
    assert whole.n_epochs_trained == 40
    roles = [(s.role, s.cycle, s.branch) for s in whole.segments]
    assert sorted(roles) == [("branch", 1, b) for b in range(2)] + [
        ("startup", 0, b) for b in range(3)
    ]
    study = new_study()
    run(study, explicit, plan=PLAN, callbacks=[After(4, study.stop)])
    assert len(study.trials) < len(whole.segments) + 1
    resumed = run(study, explicit, plan=PLAN)
    assert history(resumed) == history(whole)
    replayed = miha.replay(whole.schedule, explicit)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
        assert torch.equal(value, replayed.model.state_dict()[name]), name


def test_heirs_continue_from_the_best_weights_and_one_trains_to_the_end() -> None:
    study = new_study()
    result = run(study, explicit, plan=PLAN)
    heirs = [s for s in result.segments if s.role == "branch"]
    parent = next(s for s in result.segments if s.number == heirs[0].parent)
    assert {s.parent for s in heirs} == {parent.number}
    assert study.trials[heirs[0].number].intermediate_values[parent.end] == parent.value
    assert sorted(s.state.name for s in heirs) == ["COMPLETE", "PRUNED"]


def test_the_control_of_a_round_is_named_and_compared_at_the_epoch_of_the_cut() -> None:
    result = run(new_study(), explicit, plan=PLAN)
    control, other = sorted((s for s in result.segments if s.cycle == 1), key=lambda s: s.branch)
    [parent] = (s for s in result.segments if s.number == control.parent)
    assert control.params["lr"] == pytest.approx(1.5 * parent.params["lr"])
    assert control.mutation == "no change"
    [line] = (t for t in result.describe().splitlines() if t.startswith("round 1: "))
    at_cut = other.scores[control.trained - 1]
    text = f"the control {control.scores[-1]:.4g} against {at_cut:.4g} when it was pruned"
    assert text in line if control.state.name == "PRUNED" else ": the control (" in line


@pytest.mark.parametrize(("n_steps", "raced"), [(32, 72), (31, 32)])
def test_a_race_keeps_a_large_batch_size_if_an_epoch_has_enough_steps(
    n_steps: int, raced: int
) -> None:
    def model_fn(trial: object) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.batch_size, recipe.train_data = 72, blobs(72 * n_steps)
        return recipe

    result = run(new_study(), model_fn, plan=miha.Plan(20))
    race = [s.params["batch_size"] for s in result.segments if s.role == "startup"]
    assert race == [72, *[raced] * (len(race) - 1)]
    assert len(race) > 1


def test_an_enqueued_trial_takes_the_place_of_a_mutation() -> None:
    study = new_study()
    study.enqueue_trial({"lr": 0.02})
    result = run(study, explicit, plan=PLAN)
    assert result.n_epochs_trained == 40
    [own] = [s for s in result.segments if s.role == "branch" and s.branch == 1]
    assert own.params["lr"] == 0.02


def test_an_enqueued_trial_differs_from_the_control_by_its_own_values_only() -> None:
    study = new_study()
    study.enqueue_trial({"batch_size": 32})
    result = run(study, explicit, plan=PLAN)
    control, own = sorted((s for s in result.segments if s.cycle == 1), key=lambda s: s.branch)
    assert own.params == control.params | {"batch_size": 32}
    assert own.mutation == f"batch_size {control.params['batch_size']} -> 32"


def test_a_sampler_that_wraps_the_own_one_gets_the_same_heirs() -> None:
    def model_fn(trial: optuna.Trial) -> miha.Recipe:
        trial.suggest_float("fixed", 0, 1)
        return explicit(trial)

    plan = miha.Plan(48, n_workers=3, restarts=False)
    result = run(new_study(), model_fn, plan=plan)
    study = new_study()
    study.sampler = optuna.samplers.PartialFixedSampler({"fixed": 0.5}, study.sampler)
    wrapped = run(study, model_fn, plan=plan)
    own, others = (
        {s.branch: s.params | {"fixed": 0.5} for s in r.segments if s.role == "branch"}
        for r in (result, wrapped)
    )
    assert own == others
    assert own.keys() == {0, 1, 2}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_candidates_of_a_race_are_trainings_of_their_own(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    def model_fn(trial: optuna.Trial) -> miha.Recipe:
        recipe = classifier(trial)
        # Three times this rate, the peak, is that of another candidate.
        lr = miha.suggest_float(trial, "lr", 1e-4, 1.0, initial=0.01, log=True)
        recipe.optimizer = optimizer(recipe.model.parameters(), lr=lr)
        return recipe

    result = run(new_study(), model_fn, plan=PLAN)
    race = [s.params["lr"] for s in result.segments if s.role == "startup"]
    assert len(set(race)) == len(race) == 3


def test_a_trainer_with_a_batch_size_needs_no_data() -> None:
    def model_fn(trial: optuna.Trial) -> miha.Recipe:
        model = torch.nn.Linear(4, 3)
        optimizer = miha.suggest_optimizer(trial, model.parameters())
        batch_size = miha.suggest_batch_size(trial)
        return miha.Recipe(model=model, optimizer=optimizer, batch_size=batch_size)

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        x, y = blobs(60)
        for _ in range(n_epochs):
            recipe.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(recipe.model(x), y)
            loss.backward()
            recipe.optimizer.step()
            yield miha.EpochResult(value=loss.item())

    assert run(new_study(), model_fn, plan=PLAN, trainer=trainer).n_epochs_trained == 40


def test_a_budget_that_is_too_small_for_heirs_is_one_training_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="optuna.miha"):
        result = run(new_study(), explicit, plan=miha.Plan(3))
    assert [(s.role, s.trained) for s in result.segments] == [("startup", 3)]
    assert "too small for heirs" in caplog.text


def test_an_extension_by_too_few_epochs_for_a_round_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    run(study, explicit, plan=PLAN)
    with caplog.at_level(logging.INFO, logger="optuna.miha"):
        assert run(study, explicit, plan=miha.Plan(43)).n_epochs_trained == 40
        assert "Unspent: 3 of 43 epochs" in caplog.text
        assert run(study, explicit, plan=miha.Plan(44)).n_epochs_trained == 44


@pytest.mark.parametrize(("direction", "winner"), [("minimize", "steep"), ("maximize", "level")])
def test_losses_of_a_race_are_extrapolated_and_values_to_maximize_are_not(
    direction: str, winner: str
) -> None:
    sign = 1 if direction == "minimize" else -1

    def model_fn(trial: optuna.Trial) -> miha.Recipe:
        recipe = explicit(trial)
        curve = trial.suggest_categorical("curve", ["level", "steep"])
        recipe.model.register_buffer("is_steep", torch.tensor(curve == "steep"))
        return recipe

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        for epoch in range(n_epochs):
            recipe.optimizer.step()
            # At the end of its training, the steep one is still a little worse.
            value = 0.11 + 0.9 * 0.7**epoch if recipe.model.is_steep else 0.1
            yield miha.EpochResult(value=value if sign > 0 else 1 - value)

    study = optuna.create_study(direction=direction, sampler=miha.MihaSampler(seed=0))
    plan = miha.Plan(
        40, startup=2, prune=False, population_size=1, restarts=False, mutations=("curve",)
    )
    result = run(study, model_fn, plan=plan, trainer=trainer)
    race = {s.params["curve"]: s for s in result.segments if s.role == "startup"}
    assert race.keys() == {"level", "steep"}
    assert sign * race["level"].scores[-1] < sign * race["steep"].scores[-1]
    [heir] = (s for s in result.segments if s.role == "branch")
    assert heir.parent == race[winner].number
