"""Optuna's pruners decide in an interrupted run as they do in an undisturbed one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
import pytest
from helpers.equality import same
from helpers.problems import explicit, history, new_study, run, weights
from helpers.segments import segment
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.trial import TrialState, create_trial

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._run.pruner_view import PrunerView, is_stateless
from optuna_miha._search.phases import Phase
from optuna_miha._study.sibling import Sibling

pytestmark = pytest.mark.slow


def make_pruner(name: str) -> BasePruner:
    """A pruner that stops some of the branches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruners: dict[str, BasePruner] = {
            "median": MedianPruner(n_startup_trials=1),
            "percentile": PercentilePruner(30.0, n_startup_trials=2),
            "patient": PatientPruner(MedianPruner(n_startup_trials=1), patience=0),
            "patient slope": PatientPruner(miha.SlopePruner(), patience=0),
            "threshold": ThresholdPruner(upper=0.35, n_warmup_steps=8),
            "wilcoxon": WilcoxonPruner(p_threshold=0.3),
        }
        return pruners[name]


class StopAtBranch:
    """A callback that ends the run when the first branch of a population is finished."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        cycle = trial.user_attrs[attributes.CYCLE]
        if trial.user_attrs[attributes.ROLE] == "branch" and cycle not in self.seen:
            self.seen.add(cycle)
            raise KeyboardInterrupt


def stopping_in_training(n: int) -> Any:
    """A ``model_fn`` whose n-th loss ends the run."""
    n_left = n

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        loss_fn = recipe.loss_fn

        def loss(output: Any, target: Any) -> Any:
            nonlocal n_left
            n_left -= 1
            if n_left == 0:
                raise KeyboardInterrupt
            return loss_fn(output, target)

        recipe.loss_fn, recipe.valid_loss_fn = loss, loss_fn
        return recipe

    return model_fn


def new(name: str, *, with_trials: bool) -> optuna.Study:
    """A study, possibly with trials of the user's own that report at the steps of the run."""
    seed = 3 if "slope" in name else 0  # With some of its branches pruned.
    study = new_study(seed=seed, pruner=make_pruner(name))
    for value in (0.3, 0.31) if with_trials else ():
        reports = dict.fromkeys(range(1, 40), 0.44)
        study.add_trial(create_trial(value=value, intermediate_values=reports))
    return study


@pytest.mark.filterwarnings("ignore:.*WilcoxonPruner")
@pytest.mark.parametrize(
    ("name", "with_trials"),
    [
        ("median", False),
        ("median", True),
        pytest.param("percentile", False, marks=pytest.mark.long),
        pytest.param("patient", False, marks=pytest.mark.long),
        ("patient slope", True),
        ("threshold", True),
        ("wilcoxon", True),
    ],
)
def test_stateless_pruners_decide_alike_after_any_interruption(
    name: str, with_trials: bool
) -> None:
    whole = run(new(name, with_trials=with_trials), explicit)
    states = {s.state for s in whole.segments if s.role == "branch"}
    assert (TrialState.PRUNED in states) == with_trials
    study, stop = new(name, with_trials=with_trials), StopAtBranch()
    for _ in range(2):
        for settings in ({"callbacks": [stop]}, {"model_fn": stopping_in_training(10)}):
            with pytest.raises(KeyboardInterrupt):
                run(study, **({"model_fn": explicit} | settings))
    resumed = run(study, explicit)
    assert any(t.state == TrialState.FAIL for t in study.trials)
    assert history(resumed) == history(whole)
    assert same(weights(resumed), weights(whole))


def test_a_pruner_sees_finished_siblings_as_they_were_at_the_rung() -> None:
    parent = segment(0, scores=(0.9, 0.8))
    phase = Phase(role="branch", cycle=1, parent=parent, n_epochs=4, size=5)
    common: dict[str, Any] = {"role": "branch", "cycle": 1, "parent": 0, "birth": 2}
    ends = {
        0: segment(5, branch=0, scores=(0.7, 0.6, 0.5, 0.4), trained=4, **common),
        1: segment(
            6, branch=1, scores=(0.7,), trained=1, state=TrialState.PRUNED, value=None, **common
        ),
        2: segment(
            7, branch=2, scores=(0.7, 0.6, 0.5), state=TrialState.FAIL, value=None, **common
        ),
        3: segment(
            8, branch=3, scores=(0.7, math.nan), state=TrialState.FAIL, value=None, **common
        ),
    }
    lineage = Lineage(optuna.study.StudyDirection.MINIMIZE, [parent, *ends.values()])
    siblings = [Sibling(branch, parent, segment=s) for branch, s in ends.items()]
    seen: list[Any] = []

    class Looking(BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            seen[:] = [trial, *study.get_trials()]
            return True

    study = optuna.create_study(pruner=Looking())
    assert PrunerView(study, lineage, phase, siblings, age=2).is_hopeless(siblings[0])
    trial, trunk, *others = seen
    assert trial == others[0]
    assert (trunk.number, trunk.state) == (0, TrialState.COMPLETE)
    states = [TrialState.RUNNING, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL]
    assert [t.state for t in others] == states
    assert [max(t.intermediate_values) for t in others] == [4, 3, 4, 4]
    assert trial.intermediate_values == {2: 0.8, 3: 0.7, 4: 0.6}


def test_pruners_that_may_store_something_see_the_study_itself() -> None:
    class Own(MedianPruner):
        pass

    assert not is_stateless(SuccessiveHalvingPruner())
    assert not is_stateless(Own())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        assert not is_stateless(PatientPruner(SuccessiveHalvingPruner(), patience=1))
        assert is_stateless(PatientPruner(None, patience=1))
    assert is_stateless(NopPruner())
