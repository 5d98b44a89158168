"""Constraints of samplers and of ``Trial.set_constraint``: feasible trials come first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
import torch
from helpers.problems import SHORT, classifier, explicit, history, new_study, run
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

import optuna_miha as miha


class Noting(TPESampler):
    """Keeps the numbers of the trials that it processed before their start and after their end."""

    def __init__(self, **settings: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(seed=0, n_startup_trials=2, **settings)
        self.before: list[int] = []
        self.after: list[tuple[int, TrialState, Sequence[float] | None]] = []

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.before.append(trial.number)
        super().before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.after.append((trial.number, state, values))
        super().after_trial(study, trial, state, values)


def constrained(trial: Any) -> miha.Recipe:
    """SGD, which would win the start-up race, and Adadelta are infeasible."""
    recipe = explicit(trial)
    trial.set_constraint(
        "Adam only", -1.0 if trial.params["optimizer"] in ("adam", "adamw") else 1.0
    )
    return recipe


@pytest.mark.slow
def test_every_trial_reaches_the_sampler_before_its_start_and_after_its_end() -> None:
    sampler = Noting()
    study = new_study(sampler=sampler)
    run(study, explicit)
    assert {t.state for t in study.trials} >= {TrialState.COMPLETE, TrialState.PRUNED}
    assert sorted(sampler.before) == list(range(len(study.trials)))
    assert sorted(sampler.after) == [(t.number, t.state, t.values) for t in study.trials]


@pytest.mark.slow
def test_the_constraints_of_a_sampler_are_stored_in_every_trial() -> None:
    sampler = Noting(constraints_func=lambda trial: (trial.params["batch_size"] - 20,))
    study = new_study(sampler=sampler)
    result = run(study, explicit)
    assert all(t.constraints == {"0": t.params["batch_size"] - 20} for t in study.trials)
    assert [s.violation for s in result.segments] == [
        max(0, s.params["batch_size"] - 20) for s in result.segments
    ]
    assert result.trial.number == study.best_trial.number


@pytest.mark.slow
def test_a_feasible_trial_becomes_trunk_and_result_before_a_better_infeasible_one() -> None:
    study = new_study()
    result = run(study, constrained)
    complete = [s for s in result.segments if s.value is not None]
    assert any(s.violation and s.value < result.value for s in complete), "nothing to decide"
    assert result.trial.constraints == {"Adam only": -1.0}
    assert result.trial.number == study.best_trial.number
    numbers = {s.number: s for s in complete}
    for trunk in (s for s in complete if s.role == "trunk" and s.parent is not None):
        parent = numbers[trunk.parent]
        siblings = [s for s in complete if (s.role, s.cycle) == (parent.role, parent.cycle)]
        assert not parent.violation or all(s.violation for s in siblings)
    members = list(result.library.segments)
    assert members
    assert not any(s.violation for s in members)


@pytest.mark.slow
def test_feasible_branches_are_not_pruned_for_infeasible_ones() -> None:
    result = run(new_study(), constrained)
    first = [s for s in result.segments if s.role == "branch" and s.cycle == 1]
    assert any(s.violation for s in result.segments if s.cycle == 0)
    assert all(s.state == TrialState.COMPLETE for s in first)


def slow_is_feasible(trial: Any) -> miha.Recipe:
    """The rates that learn something are infeasible."""
    recipe = classifier(trial)
    lr = trial.suggest_float("lr", 1e-7, 1.0, log=True)
    recipe.optimizer = torch.optim.Adam(recipe.model.parameters(), lr=lr)
    return recipe


def excess(trial: Any) -> float:
    return float(trial.params["lr"]) - 1e-5


@pytest.mark.parametrize(
    ("way", "anneal"), [("set_constraint", "cosine"), ("constraints_func", "rounds")]
)
def test_a_feasible_sibling_is_not_cut_for_an_infeasible_one(way: str, anneal: Any) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = slow_is_feasible(trial)
        if way == "set_constraint":
            trial.set_constraint("slow", excess(trial))
        return recipe

    sampler = miha.MihaSampler(seed=0)
    if way == "constraints_func":  # What training gave is known when it is called.
        sampler = Noting(
            constraints_func=lambda t: (excess(t) + 0 * t.user_attrs["miha:trained"],)
        )
    plan = miha.Plan(60, anneal=anneal, startup=4, startup_share=0.5, fixing_epochs=2)
    study = new_study(sampler=sampler)
    result = run(study, model_fn, plan=plan, initial_params={"lr": 1e-6})
    race = [s for s in result.segments if s.role == "startup"]
    assert any(s.violation for s in race), "nothing to decide"
    cut = [s for s in race if s.state == TrialState.PRUNED]
    assert cut
    assert all(s.violation for s in cut)
    assert result.trial.number == study.best_trial.number
    assert result.params["lr"] <= 1e-5
    if isinstance(sampler, Noting):
        assert sorted(sampler.after) == [(t.number, t.state, t.values) for t in study.trials]


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 7, 9])
def test_an_interrupted_run_with_constraints_ends_as_an_undisturbed_one(n: int) -> None:
    whole = run(new_study(), constrained)

    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.number == n:
            raise KeyboardInterrupt

    study = new_study()
    with pytest.raises(KeyboardInterrupt):
        run(study, constrained, callbacks=[stop])
    assert history(run(study, constrained)) == history(whole)


@pytest.mark.slow
def test_a_result_that_violates_constraints_is_warned_of(log: pytest.LogCaptureFixture) -> None:
    def never(trial: Any) -> miha.Recipe:
        trial.set_constraint("impossible", 2.0)
        return explicit(trial)

    result = run(new_study(), never, plan=SHORT)
    assert "violates constraints" in log.text
    assert result.trial.constraints == {"impossible": 2.0}
