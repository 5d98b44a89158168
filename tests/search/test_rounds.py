"""The phases of annealed rounds, simulated with artificial segments instead of training."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers.segments import add_segment
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_miha import Plan
from optuna_miha._history.lineage import Lineage
from optuna_miha._search.learning_rate import Course, peak_factor
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._search.plan import MIN_EPOCHS
from optuna_miha._search.rounds import is_overfitted


def lengths(phase: Phase) -> list[int]:
    """The epochs of each sibling if the lowest branch indices survive."""
    if len(phase.rungs) < 2:
        return [phase.n_epochs] * phase.size
    return [phase.n_epochs if b < phase.n_left else phase.rungs[0] for b in range(phase.size)]


def simulate(
    plan: Plan,
    stretch: Stretch,
    lineage: Lineage,
    cost: Callable[[], float],
    best_share: float = 1.0,
) -> list[Phase]:
    """Add segments with successive costs, the best epoch at a share of them; return the phases."""
    seen = []
    while (phase := next_phase(plan, stretch, lineage)) is not None:
        assert len(seen) < 100, "The run does not end."
        seen.append(phase)
        birth = 0 if phase.parent is None else phase.parent.end
        for branch, n_epochs in enumerate(lengths(phase)):
            is_pruned = len(phase.rungs) > 1 and branch >= phase.n_left
            add_segment(
                lineage,
                phase,
                branch,
                n_epochs,
                cost=cost(),
                state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
                age=birth + max(1, round(best_share * n_epochs)),
            )
    return seen


def falling() -> Callable[[], float]:
    return (1 / (n + 1) for n in itertools.count()).__next__


def run_of(plan: Plan) -> tuple[Lineage, list[Phase]]:
    lineage = Lineage(StudyDirection.MINIMIZE)
    stretch = Stretch(first_cycle=0, start=0, end=plan.n_epochs)
    return lineage, simulate(plan, stretch, lineage, falling())


def test_a_race_is_followed_by_rounds_whose_siblings_share_the_budget() -> None:
    lineage, seen = run_of(Plan(200))
    assert [(p.role, p.cycle, p.size) for p in seen] == [
        ("startup", 0, 3),
        ("branch", 1, 2),
        ("branch", 2, 2),
    ]
    assert all(p.by_step and sum(p.rungs) == p.n_epochs for p in seen)
    assert sum(s.trained for s in lineage if s.role == "startup") <= 100
    assert lineage.spent == 200
    assert seen[2].parent is lineage.group("branch", 1)[0]


def test_the_heirs_of_a_round_are_compared_after_a_seventh_of_it() -> None:
    _, seen = run_of(Plan(160, n_cycles=1))
    first, rest = seen[-1].rungs
    assert first / (first + rest) == pytest.approx(1 / 7, abs=0.01)


@given(n_epochs=st.integers(1, 300), size=st.integers(1, 5), startup=st.integers(1, 6))
def test_every_epoch_of_the_budget_is_trained(n_epochs: int, size: int, startup: int) -> None:
    lineage, _ = run_of(Plan(n_epochs, population_size=size, startup=startup))
    assert lineage.spent == n_epochs


@pytest.mark.parametrize("n_epochs", [1, 3, 7])
def test_a_budget_without_room_for_heirs_is_one_annealed_training(n_epochs: int) -> None:
    _, seen = run_of(Plan(n_epochs))
    assert [(p.role, p.size, p.n_epochs) for p in seen] == [("startup", 1, n_epochs)]


def test_without_pruning_all_siblings_train_to_the_end() -> None:
    lineage, seen = run_of(Plan(60, prune=False))
    assert all(len(p.rungs) == 1 for p in seen)
    assert 60 - 4 < lineage.spent <= 60


def test_where_a_network_overfits_the_rest_is_spent_on_restarts() -> None:
    lineage = Lineage(StudyDirection.MINIMIZE)
    plan = Plan(200)
    stretch = Stretch(first_cycle=0, start=0, end=200)
    rising = itertools.count(1.0).__next__
    seen = simulate(plan, stretch, lineage, rising, best_share=0.4)
    age = lineage.best().checkpoint["best_epoch"]  # type: ignore[union-attr, index]
    restarts = seen[1:]
    assert len(restarts) > 1 and {p.role for p in restarts} == {"restart"}
    assert all(p.by_step and p.n_epochs >= 1.5 * age for p in restarts)
    assert lineage.spent == 200


def test_a_plan_without_restarts_continues_with_rounds() -> None:
    lineage = Lineage(StudyDirection.MINIMIZE)
    stretch = Stretch(first_cycle=0, start=0, end=200)
    rising = itertools.count(1.0).__next__
    seen = simulate(Plan(200, restarts=False), stretch, lineage, rising, best_share=0.4)
    assert {p.role for p in seen} == {"startup", "branch"}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, False),
        ({"loss": (3.0, 2.0, 1.0, 1.5)}, True),
        ({"loss": (3.0, None, 2.0, 1.0)}, False),
        ({"loss": (None,) * 4}, False),
    ],
)
def test_the_loss_beside_an_accuracy_shows_overfitting(
    losses: dict[str, tuple[float | None, ...]], expected: bool
) -> None:
    lineage = Lineage(StudyDirection.MAXIMIZE)
    phase = Phase(role="startup", cycle=0, parent=None, n_epochs=4, by_step=True)
    segment = add_segment(lineage, phase, 0, 4, cost=-0.5, age=1)
    assert is_overfitted(lineage, replace(segment, metrics=losses)) == expected


def test_an_extension_continues_the_best_with_rounds_only() -> None:
    plan = Plan(60)
    lineage, _ = run_of(plan)
    best = lineage.best()
    extension = Stretch(first_cycle=2, start=60, end=100)
    seen = simulate(plan, extension, lineage, falling())
    assert [p.role for p in seen] == ["branch"]
    assert seen[0].parent is best and lineage.spent == 100


def test_the_next_phase_does_not_depend_on_the_order_of_segments() -> None:
    plan, stretch = Plan(200), Stretch(first_cycle=0, start=0, end=200)
    lineage, _ = run_of(plan)
    whole = list(lineage)
    for n in range(len(whole) + 1):
        part = whole[:n]
        expected = next_phase(plan, stretch, Lineage(StudyDirection.MINIMIZE, part))
        random.Random(n).shuffle(part)
        assert next_phase(plan, stretch, Lineage(StudyDirection.MINIMIZE, part)) == expected


def critical_path(phases: list[Phase], n_workers: int) -> int:
    """Epochs that follow each other if every worker takes the next sibling."""
    total = 0
    for phase in phases:
        for alive, n_epochs in zip(
            (phase.size, phase.n_left), phase.rungs or (phase.n_epochs,), strict=False
        ):
            total += math.ceil(alive / n_workers) * n_epochs
    return total


@pytest.mark.parametrize("best_share", [1.0, 0.3])
@given(n_workers=st.integers(2, 16), path=st.integers(8, 200))
def test_a_wide_plan_keeps_all_workers_busy(best_share: float, n_workers: int, path: int) -> None:
    plan = Plan(n_workers * path, n_workers=n_workers)
    lineage = Lineage(StudyDirection.MINIMIZE)
    stretch = Stretch(first_cycle=0, start=0, end=plan.n_epochs)
    seen = simulate(plan, stretch, lineage, falling(), best_share)
    assert all(phase.size % n_workers == 0 for phase in seen)
    assert critical_path(seen, n_workers) <= path
    assert plan.n_epochs - lineage.spent < MIN_EPOCHS * n_workers


@pytest.mark.parametrize("best_share", [1.0, 0.3])
@pytest.mark.parametrize("n_workers", [2, 3, 4, 8])
def test_a_wide_phase_that_is_interrupted_is_completed(n_workers: int, best_share: float) -> None:
    plan = Plan(60 * n_workers, n_workers=n_workers)
    lineage, stretch = (
        Lineage(StudyDirection.MINIMIZE),
        Stretch(first_cycle=0, start=0, end=60 * n_workers),
    )
    seen = simulate(plan, stretch, lineage, falling(), best_share)
    for phase in seen:
        earlier = [s for s in lineage if s.cycle < phase.cycle]
        siblings = [s for s in lineage if s.cycle == phase.cycle]
        for missing in range(phase.size):
            part = [*earlier, *(s for s in siblings if s.branch != missing)]
            assert next_phase(plan, stretch, Lineage(StudyDirection.MINIMIZE, part)) == phase


def test_a_short_extension_of_a_wide_plan_trains_what_it_suffices_for() -> None:
    plan, lineage = Plan(96, n_workers=4), Lineage(StudyDirection.MINIMIZE)
    cost = falling()
    simulate(plan, Stretch(first_cycle=0, start=0, end=96), lineage, cost)
    spent, last = lineage.spent, max(s.cycle for s in lineage)
    extension = Stretch(first_cycle=last + 1, start=spent, end=spent + 10)
    [phase] = simulate(plan, extension, lineage, cost)
    assert (phase.size, phase.n_epochs) == (2, 5)
    assert lineage.spent == spent + 10


def test_restarts_of_several_workers_run_at_the_same_time() -> None:
    plan = Plan(240, n_workers=4)
    lineage = Lineage(StudyDirection.MINIMIZE)
    stretch = Stretch(first_cycle=0, start=0, end=240)
    seen = simulate(plan, stretch, lineage, falling(), best_share=0.3)
    restarts = [phase for phase in seen if phase.role == "restart"]
    assert restarts
    assert {phase.size for phase in restarts} == {4}
    assert len({phase.cycle for phase in restarts}) == len(restarts)


def test_the_rate_of_heirs_is_raised_once_and_not_after_a_divergence() -> None:
    plan, lineage = Plan(60), Lineage(StudyDirection.MINIMIZE)
    assert peak_factor(plan, lineage, "startup", cycle=0) == 1.0
    assert peak_factor(plan, lineage, "branch", cycle=1) == 1.5
    phase = Phase(role="branch", cycle=1, parent=None, n_epochs=2, by_step=True)
    add_segment(lineage, phase, 0, 2, cost=float("inf"), state=TrialState.FAIL)
    # Siblings do not depend on each other: a resumed run may create them one by one.
    assert peak_factor(plan, lineage, "branch", cycle=1) == 1.5
    assert peak_factor(plan, lineage, "branch", cycle=2) == 1.0


@pytest.mark.parametrize(("is_fresh", "initial", "rise"), [(True, 0.04, 0.3), (False, 0.25, 0.25)])
def test_a_course_rises_to_its_peak_and_falls_to_zero(
    is_fresh: bool, initial: float, rise: float
) -> None:
    course = Course(n_epochs=20, is_fresh=is_fresh)
    factors = [course.factor(n / 10) for n in range(201)]
    top = round(200 * rise)
    assert factors[0] == pytest.approx(initial) and factors[top] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.0, abs=1e-12)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert Course(n_epochs=20, begin=7, is_fresh=is_fresh).factor(1.5) == course.factor(8.5)
