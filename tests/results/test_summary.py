"""Descriptions name the segments that the run continued, and the one that is the result."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.problems import blobs, new_study, run
from helpers.segments import segment
from optuna.study import StudyDirection
from torch import nn

import optuna_miha as miha
from optuna_miha._history.lineage import Lineage
from optuna_miha._results.summary import cycles_of, final_line, race_line, sentences


def population(*more: Any) -> Lineage:
    """A trunk, and two branches of cycle 1, of which number 2 is the fittest."""
    common: dict[str, Any] = {"role": "branch", "cycle": 1, "parent": 0, "birth": 2}
    one = segment(1, branch=0, fitness=-0.4, mutation="one", **common)
    two = segment(2, branch=1, fitness=-0.3, mutation="two", **common)
    return Lineage(StudyDirection.MINIMIZE, [segment(0), one, two, *more])


def test_a_cycle_names_the_branch_that_the_final_phase_continues() -> None:
    lineage = population()
    assert [cycle.change for cycle in cycles_of(lineage)] == ["two"]
    lineage = population(segment(3, role="final", cycle=1, parent=1, birth=4))
    assert [cycle.change for cycle in cycles_of(lineage)] == ["one"]
    line = "final phase of 2 epochs: continues the end of the trunk, trial 1 (0.5 -> 0.5)"
    assert final_line(lineage) == line


def test_the_start_of_a_final_phase_is_named_if_it_is_not_the_end_of_the_trunk() -> None:
    trunk = segment(3, cycle=1, parent=2, birth=4)
    lineage = population(trunk, segment(4, role="final", cycle=1, parent=3, birth=6))
    assert "continues the end of the trunk, trial 3" in str(final_line(lineage))
    lineage = population(trunk, segment(4, role="final", cycle=1, parent=1, birth=4))
    assert [cycle.change for cycle in cycles_of(lineage)] == ["two"]
    line = "continues trial 1 (branch of cycle 1), which was the best so far (0.5 -> 0.5)."
    assert sentences(lineage, lineage[4])[-1].endswith(line)
    assert [cycle.is_continued for cycle in cycles_of(lineage)] == [True]


@pytest.mark.parametrize(
    ("value", "direction", "end"),
    [
        (0.6, StudyDirection.MINIMIZE, "trial 0"),
        (
            0.4,
            StudyDirection.MINIMIZE,
            "extrapolated better than trial 1, whose best epoch has 0.4",
        ),
        (0.6, StudyDirection.MAXIMIZE, "at its end better than trial 1, whose best epoch has 0.6"),
    ],
)
def test_the_line_of_the_race_says_why_a_candidate_with_a_better_value_lost(
    value: float, direction: StudyDirection, end: str
) -> None:
    place: dict[str, Any] = {"role": "startup", "by_step": True}
    first = segment(0, **place, fitness=-0.2, mutation="no change")
    second = segment(1, **place, branch=1, fitness=-0.3, value=value, mutation="lr")
    line = race_line(Lineage(direction, [first, second]))
    assert str(line).startswith("start-up race of 2: the initial configuration (0.5, trial 0")
    assert str(line).endswith(f"{end})")


def overfitting(trial: Any) -> miha.Recipe:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return miha.Recipe(
        model=model.append(nn.Linear(64, 3)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=blobs(30),
        valid_data=blobs(60, seed=1),
        batch_size=8,
    )


@pytest.mark.slow
def test_a_restart_that_is_the_result_is_named() -> None:
    study = new_study(seed=1)
    result = run(study, overfitting, plan=miha.Plan(120, startup=3, anneal="cosine"), device="cpu")
    [restart] = result.lineage
    assert restart.role == "restart"
    start = f"{sum(s.role == 'restart' for s in result.segments)} restarts from"
    [line] = [t for t in result.describe().splitlines() if t.startswith(start)]
    assert line.endswith(
        f"the best with {restart.mutation} ({restart.value:.4g}, trial {restart.number})"
    )
    assert f"in trial {restart.number} (restart)" in result.describe()
    assert result.trial.number == study.best_trial.number == restart.number
