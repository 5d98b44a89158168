"""Branches that equal the control have no effect."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers.problems import classifier, explicit, new_study, run
from helpers.segments import segment
from optuna.study import StudyDirection

import optuna_miha as miha
from optuna_miha._history.lineage import Lineage
from optuna_miha._results.summary import cycles_of
from optuna_miha._search.control import is_without_effect
from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha.visualization import plot_lineage, plot_mutation_gains


def small_activations(trial: Any) -> miha.Recipe:
    """A network whose activations stay far below 6, so that ReLU and ReLU6 are the same."""
    recipe = classifier(trial)
    miha.suggest_activations(trial, recipe.model, choices=["relu", "relu6"])
    return recipe


def test_a_mutation_that_changed_nothing_is_reported_and_is_not_a_gain() -> None:
    study = new_study()
    plan = miha.Plan(
        30, startup=1, population_size=2, fixing_epochs=3, restarts=False, anneal="cosine"
    )
    result = run(study, small_activations, plan=plan, device="cpu")
    [cycle] = [c for c in cycles_of(Lineage(study.direction, result.segments)) if c.number == 1]
    assert cycle.change == "the control"
    assert cycle.n_without_effect == cycle.n_branches - 1 == 1
    figure = plot_mutation_gains(study)
    assert any("0 won of 1, 1 without effect" in text for text in figure.layout.yaxis.ticktext)
    assert not [trace for trace in figure.data if trace.marker.symbol == "circle-open"]
    assert any("no effect" in str(trace.hovertext) for trace in plot_lineage(study).data)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"scores": (1.0,)}, True),  # It was pruned.
        ({"scores": (1.0, math.nextafter(0.5, 1))}, False),
        ({"train_losses": (0.9, 0.8)}, False),  # The validation metric is the same by chance.
        ({"scores": (), "train_losses": ()}, False),
        ({"mutation": NO_CHANGE}, False),
        ({"cycle": 2}, False),
        ({"role": "restart"}, False),
    ],
)
def test_a_branch_has_no_effect_if_all_its_values_are_the_controls(
    changes: dict[str, Any], expected: bool
) -> None:
    common = {"role": "branch", "cycle": 1, "train_losses": (0.9, 0.7)}
    control = segment(0, mutation=NO_CHANGE, **common)
    branch = segment(1, **{**common, "branch": 1, "mutation": "x", **changes})
    lineage = Lineage(StudyDirection.MINIMIZE, [control, branch])
    assert is_without_effect(lineage, branch) == expected


def test_adam_and_adamw_without_weight_decay_train_the_same_network() -> None:
    params = {"lr": 0.01, "batch_size": 16, "weight_decay": 0.0, "activation.2": "relu"}
    same, changed = (
        miha.replay(
            [
                {"from_epoch": 0, "to_epoch": 2, "optimizer": "adam", **params},
                {"from_epoch": 2, "to_epoch": 4, "optimizer": second, **params},
            ],
            explicit,
            device="cpu",
        )
        for second in ("adam", "adamw")
    )
    assert same.results == changed.results
