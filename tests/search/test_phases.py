"""What comes next, played through with fabricated segments instead of training."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.segments import segment, trained
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_miha import Plan
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import ROLES, Role
from optuna_miha._search.learning_rate import peak_factor, scale_lr
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._search.plan import race_rungs

MOST_PHASES = 1_000
"""No plan of these tests has as many; a run that reaches it does not end."""


def new_lineage() -> Lineage:
    return Lineage(StudyDirection.MINIMIZE)


def whole(plan: Plan) -> Stretch:
    return Stretch(first_cycle=0, start=0, end=plan.n_epochs)


def allotments(phase: Phase) -> list[int]:
    """The most epochs that each place of a phase may train."""
    if phase.role != "startup":
        return [phase.n_epochs] * phase.size
    rungs = race_rungs(phase.size)
    return [sum(epochs for size, epochs in rungs if b < size) for b in range(phase.size)]


def phases(plan: Plan, stretch: Stretch, lineage: Lineage) -> Iterator[Phase]:
    """The phases that follow each other as long as the caller records what became of them."""
    for _ in range(MOST_PHASES):
        phase = next_phase(plan, stretch, lineage)
        if phase is None:
            return
        yield phase
    raise AssertionError("The run does not end.")


def play(
    plan: Plan,
    stretch: Stretch,
    lineage: Lineage,
    cost: Callable[[], float],
    age: int | None = None,
) -> list[Phase]:
    """Every segment trains as long as it may, to the next ``cost``; ``age`` as in `trained`."""
    seen = []
    for phase in phases(plan, stretch, lineage):
        seen.append(phase)
        for branch, n_epochs in enumerate(allotments(phase)):
            last = phase.role == "startup" and branch > 0
            state = TrialState.PRUNED if last else TrialState.COMPLETE
            trained(lineage, phase, branch, n_epochs, cost=cost(), state=state, age=age)
    return seen


def falling() -> Callable[[], float]:
    """Costs that improve from segment to segment."""
    return (1 / (n + 1) for n in itertools.count()).__next__


def test_default_plan_races_then_cycles_then_finishes() -> None:
    plan = Plan(200, fixing_epochs=10)
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, falling())
    assert [(p.role, p.cycle) for p in seen] == [
        ("startup", 0),
        ("trunk", 0),
        ("branch", 1),
        ("trunk", 1),
        ("branch", 2),
        ("trunk", 2),
        ("branch", 3),
        ("final", 3),
    ]
    # The 6 epochs that would not have paid for another population are annealed as well.
    assert [p.n_epochs for p in seen[1:]] == [10, 4, 10, 4, 10, 4, 86]
    assert lineage.spent == 200


def test_the_trunk_leaves_room_for_a_population() -> None:
    plan = Plan(60, startup=1, fixing_epochs=40)  # 24 epochs are kept for the final phase.
    seen = play(plan, whole(plan), new_lineage(), falling())
    assert [(p.role, p.n_epochs) for p in seen] == [("trunk", 24), ("branch", 4), ("final", 24)]


def test_branches_start_from_the_trunk_and_the_trunk_from_the_fittest_branch() -> None:
    plan = Plan(60, startup=1, fixing_epochs=5, n_cycles=2)
    lineage = new_lineage()
    costs = iter([9.0, 5.0, 4.0, 6.0, 3.0, 2.5, 2.0, 2.2, 1.0, 0.5])
    seen = play(plan, whole(plan), lineage, costs.__next__)
    assert [(p.role, p.parent and p.parent.number) for p in seen] == [
        ("trunk", None),
        ("branch", 0),
        ("trunk", 2),
        ("branch", 4),
        ("trunk", 6),
        ("final", 8),
    ]


def test_classic_plan_has_the_published_phases_and_lengths() -> None:
    plan = Plan.classic(
        runup_epochs=5, n_cycles=2, population_size=3, branch_epochs=4, fixing_epochs=6
    )
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, falling())
    assert [(p.role, p.cycle, p.n_epochs, p.size) for p in seen] == [
        ("trunk", 0, 5, 1),
        ("branch", 1, 4, 3),
        ("trunk", 1, 6, 1),
        ("branch", 2, 4, 3),
        ("trunk", 2, 6, 1),
        ("final", 2, 5, 1),
    ]
    assert lineage.spent == plan.n_epochs == 46


@given(
    m=st.integers(0, 6),
    c=st.integers(0, 4),
    pop=st.integers(1, 4),
    n=st.integers(1, 4),
    k=st.integers(0, 6),
)
def test_classic_plan_spends_its_budget_exactly(m: int, c: int, pop: int, n: int, k: int) -> None:
    assume(m + c > 0)
    plan = Plan.classic(
        runup_epochs=m, n_cycles=c, population_size=pop, branch_epochs=n, fixing_epochs=k
    )
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, falling())
    assert sum(p.role == "branch" for p in seen) == c
    assert [p.n_epochs for p in seen if p.role == "final"] == [m] * (m > 0)
    assert lineage.spent == plan.n_epochs


def test_plain_training_is_a_single_trunk() -> None:
    plan = Plan.no_search(20)
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, falling())
    assert [(p.role, p.cycle, p.n_epochs) for p in seen] == [("trunk", 0, 20)]
    assert lineage.spent == 20


def test_classic_final_training_continues_the_trunk_although_another_was_better() -> None:
    plan = Plan.classic(
        runup_epochs=5, n_cycles=1, population_size=2, branch_epochs=2, fixing_epochs=3
    )
    costs = iter([0.1, 0.5, 0.6, 0.7, 0.8])
    seen = play(plan, whole(plan), new_lineage(), costs.__next__)
    final = seen[-1]
    assert final.role == "final"
    assert final.parent is not None
    assert (final.parent.role, final.parent.cycle) == ("trunk", 1)


def test_annealed_final_training_continues_the_best_network_of_the_run() -> None:
    plan = Plan(60, startup=1, fixing_epochs=3, n_cycles=1)
    costs = iter([0.1, 0.5, 0.6, 0.7, 0.8, 0.9])
    seen = play(plan, whole(plan), new_lineage(), costs.__next__)
    final = seen[-1]
    assert final.role == "final"
    assert final.parent is not None
    assert final.parent.value == 0.1


def test_cycles_without_a_new_best_end_early() -> None:
    plan = Plan(400, startup=1, fixing_epochs=4)
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, itertools.count(1.0).__next__)
    assert [p.cycle for p in seen if p.role == "branch"] == [1, 2, 3]
    assert seen[-1].role == "final"
    assert lineage.spent == 400  # What the cycles left over is annealed.


def test_a_new_best_keeps_the_cycles_going() -> None:
    plan = Plan(400, startup=1, fixing_epochs=4)
    # Segments 0: trunk, 1-3: branches, 4: trunk, ...: the ninth is of the third cycle.
    costs = (0.5 if n == 9 else 1.0 + n for n in itertools.count())
    seen = play(plan, whole(plan), new_lineage(), costs.__next__)
    assert [p.cycle for p in seen if p.role == "branch"] == [1, 2, 3, 4, 5, 6]


def test_a_started_population_is_finished_with_the_same_parent() -> None:
    plan = Plan(100, startup=1, fixing_epochs=5)
    lineage = new_lineage()
    trunk = next_phase(plan, whole(plan), lineage)
    assert trunk is not None
    trained(lineage, trunk, 0, 5, cost=1.0)
    population = next_phase(plan, whole(plan), lineage)
    assert population is not None
    trained(lineage, population, 1, 4, cost=0.1)
    assert next_phase(plan, whole(plan), lineage) == population


def test_a_population_whose_branches_all_fail_leaves_the_trunk_as_it_was() -> None:
    plan = Plan(100, startup=1, fixing_epochs=5)
    lineage = new_lineage()
    trunk = next_phase(plan, whole(plan), lineage)
    assert trunk is not None
    record = trained(lineage, trunk, 0, 5)
    population = next_phase(plan, whole(plan), lineage)
    assert population is not None
    for branch in range(population.size):
        trained(lineage, population, branch, 1, state=TrialState.FAIL)
    following = next_phase(plan, whole(plan), lineage)
    assert following is not None
    assert (following.role, following.cycle, following.parent) == ("trunk", 1, record)


def test_epochs_that_pruning_saves_are_spent_in_more_cycles() -> None:
    plan = Plan(120, startup=1, fixing_epochs=4)
    counts = []
    for n_pruned in (4, 2):
        lineage = new_lineage()
        costs = falling()
        for phase in phases(plan, whole(plan), lineage):
            for branch, n_epochs in enumerate(allotments(phase)):
                pruned = phase.role == "branch" and branch > 0
                state = TrialState.PRUNED if pruned else TrialState.COMPLETE
                n_trained = min(n_epochs, n_pruned) if pruned else n_epochs
                trained(lineage, phase, branch, n_trained, cost=costs(), state=state)
        counts.append(max(s.cycle for s in lineage))
    assert counts[1] > counts[0]


def test_an_extended_run_goes_on_from_its_best_network() -> None:
    plan = Plan(60, startup=1, fixing_epochs=3, n_cycles=1)
    lineage = new_lineage()
    play(plan, whole(plan), lineage, falling())
    best = lineage.best()
    stretch = Stretch(first_cycle=2, start=lineage.spent, end=lineage.spent + 50)
    first = next_phase(plan, stretch, lineage)
    assert first is not None
    assert (first.role, first.cycle, first.parent) == ("trunk", 2, best)
    seen = play(plan, stretch, lineage, falling())
    assert seen[-1].role == "final"
    assert lineage.spent == 110


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of every shape that is accepted."""
    n_epochs = draw(st.integers(5, 150))
    settings: dict[str, Any] = {
        "population_size": draw(st.integers(1, 4)),
        "branch_epochs": draw(st.integers(1, 5)),
        "fixing_epochs": draw(st.integers(0, 12)),
        "startup": draw(st.integers(1, 8)),
        "startup_share": draw(st.sampled_from([0.0, 0.26, 0.9])),
        "final_share": draw(st.sampled_from([0.0, 0.2, 0.4, 0.7])),
        "anneal": draw(st.sampled_from(["cosine", None])),
        "runup_epochs": draw(st.none() | st.integers(0, 10)),
        "n_cycles": draw(st.none() | st.integers(0, 4)),
    }
    try:
        return Plan(n_epochs, **settings)
    except ValueError:
        assume(False)
        raise


@given(plan=plans(), n_more=st.integers(1, 60), data=st.data())
def test_the_budget_is_never_exceeded_and_the_run_ends(
    plan: Plan, n_more: int, data: st.DataObject
) -> None:
    lineage = new_lineage()
    stretch = whole(plan)
    play_at_random(plan, stretch, lineage, data)
    if lineage.spent == 0:  # The only network failed at once.
        return
    cycle = max(s.cycle for s in lineage) + 1
    more = Stretch(first_cycle=cycle, start=lineage.spent, end=stretch.end + n_more)
    play_at_random(plan, more, lineage, data)


def play_at_random(plan: Plan, stretch: Stretch, lineage: Lineage, data: st.DataObject) -> None:
    """Segments are pruned, fail, or end early; checks what holds at every step."""
    rng = data.draw(st.randoms(use_true_random=False))
    for phase in phases(plan, stretch, lineage):
        assert phase.cycle >= stretch.first_cycle
        asked = allotments(phase)
        assert lineage.spent + sum(asked) <= stretch.end
        assert all(n_epochs >= 1 for n_epochs in asked)
        assert phase.parent is None or phase.parent.value is not None
        if phase.role not in ("restart", "final"):
            reserve = plan.reserve(stretch.end - stretch.start)
            assert lineage.spent + sum(asked) <= stretch.end - reserve
        for branch, n_epochs in enumerate(asked):
            assert branch not in lineage.group(phase.role, phase.cycle)
            state = rng.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
            # A network that cannot even be built trains nothing.
            least = 0 if state == TrialState.FAIL and lineage.best() is not None else 1
            n_trained = rng.randint(least, n_epochs)
            birth = 0 if phase.parent is None else phase.parent.end
            age = birth + rng.randint(0, n_trained)
            trained(lineage, phase, branch, n_trained, cost=rng.random(), state=state, age=age)
        assert lineage.spent <= stretch.end


@given(plan=plans(), seed=st.integers(0, 1000))
def test_the_next_phase_does_not_depend_on_the_order_of_the_record(plan: Plan, seed: int) -> None:
    lineage = new_lineage()
    costs = iter(((seed * 7919 + n * 104729) % 1009) / 1009 + n * 1e-9 for n in itertools.count())
    for phase in itertools.islice(phases(plan, whole(plan), lineage), 6):
        shuffled = Lineage(StudyDirection.MINIMIZE, reversed(list(lineage)))
        assert next_phase(plan, whole(plan), shuffled) == phase
        for branch, n_epochs in enumerate(allotments(phase)):
            trained(lineage, phase, branch, n_epochs, cost=next(costs))


def test_a_run_in_which_no_network_can_be_built_ends() -> None:
    plan = Plan(100, startup=1, fixing_epochs=3)
    lineage = new_lineage()
    for phase in phases(plan, whole(plan), lineage):
        for branch in range(phase.size):
            trained(lineage, phase, branch, 0, state=TrialState.FAIL)


def test_nothing_follows_a_final_phase_that_ended_early() -> None:
    plan = Plan(400, startup=1, fixing_epochs=4)
    lineage = new_lineage()
    costs = itertools.count(1.0)
    for phase in phases(plan, whole(plan), lineage):
        if phase.role == "final":
            trained(lineage, phase, 0, 5, cost=0.1)  # An own trainer may stop when it likes.
            break
        for branch, n_epochs in enumerate(allotments(phase)):
            trained(lineage, phase, branch, n_epochs, cost=next(costs))
    assert next_phase(plan, whole(plan), lineage) is None


def rising() -> Callable[[], float]:
    """Costs that only get worse: the first segment stays the best."""
    return itertools.count(1.0).__next__


def test_a_network_that_overfits_early_is_trained_anew_until_the_budget_is_spent() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8)
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, rising(), age=8)
    # One cycle shows that the trunk is past its best: 28 epochs.
    assert [p.role for p in seen[:3]] == ["trunk", "branch", "trunk"]
    restarts = seen[3:]
    assert {p.role for p in restarts} == {"restart"}
    assert {p.parent for p in restarts} == {None}
    assert [p.n_epochs for p in restarts] == [12, 12, 12, 12, 12, 12]
    assert [p.cycle for p in restarts] == [2, 3, 4, 5, 6, 7]
    assert lineage.spent == 100


def test_the_last_restart_takes_what_is_too_short_for_another() -> None:
    plan = Plan(109, startup=1, fixing_epochs=8)
    lineage = new_lineage()
    seen = play(plan, whole(plan), lineage, rising(), age=8)
    assert [p.n_epochs for p in seen[3:]] == [12, 12, 12, 12, 12, 21]
    assert lineage.spent == 109


def test_a_network_that_learns_for_long_is_annealed_in_place_of_restarts() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8)
    seen = play(plan, whole(plan), new_lineage(), rising(), age=40)
    assert "restart" not in {p.role for p in seen}
    assert seen[-1].role == "final"
    assert seen[-1].parent is not None


def test_restarts_can_be_switched_off_and_need_annealing() -> None:
    for plan in (
        Plan(100, startup=1, fixing_epochs=8, restarts=False),
        Plan(100, startup=1, fixing_epochs=8, anneal=None),
    ):
        seen = play(plan, whole(plan), new_lineage(), rising(), age=8)
        assert "restart" not in {p.role for p in seen}


def test_restarts_get_longer_with_the_best_and_the_rest_is_annealed() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8)
    lineage = new_lineage()
    costs = itertools.count(1.0)
    lengths = []
    for phase in phases(plan, whole(plan), lineage):
        if phase.role == "restart":  # A new best, at three quarters of its way.
            lengths.append(phase.n_epochs)
            age = 3 * phase.n_epochs // 4 + 4
            trained(lineage, phase, 0, phase.n_epochs, cost=1 / (1 + len(lengths)), age=age)
            continue
        for branch, n_epochs in enumerate(allotments(phase)):
            trained(lineage, phase, branch, n_epochs, cost=next(costs), age=8)
    assert lengths == [12, 20, 40]
    assert lineage.spent == 100


def test_restarts_that_cannot_begin_end() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8)
    lineage = new_lineage()
    n_restarts = 0
    for phase in phases(plan, whole(plan), lineage):
        fails = phase.role == "restart"
        n_restarts += fails
        for branch, n_epochs in enumerate(allotments(phase)):
            if fails:
                trained(lineage, phase, branch, 0, state=TrialState.FAIL)
            else:
                trained(lineage, phase, branch, n_epochs, age=8)
    assert n_restarts == 3
    assert [s.role for s in lineage][-1] == "final"


@given(plan=plans(), seed=st.integers(0, 1000))
def test_a_run_with_restarts_spends_its_budget_and_no_more(plan: Plan, seed: int) -> None:
    lineage = new_lineage()
    rng = random.Random(seed)
    for phase in phases(plan, whole(plan), lineage):
        for branch, n_epochs in enumerate(allotments(phase)):
            birth = 0 if phase.parent is None else phase.parent.end
            age = birth + rng.randint(1, n_epochs) if n_epochs else birth
            trained(lineage, phase, branch, n_epochs, cost=rng.random(), age=age)
    assert lineage.spent <= plan.n_epochs
    if plan.anneal is not None and plan.prune is False:
        assert lineage.spent == plan.n_epochs


def test_a_race_keeps_to_a_budget_that_was_lowered() -> None:
    plan = Plan(200)
    stretch = Stretch(first_cycle=0, start=0, end=30)
    lineage = new_lineage()
    play(plan, stretch, lineage, falling())
    assert lineage.spent <= 30


def test_a_branch_recorded_before_an_interruption_is_not_the_parent_of_its_siblings() -> None:
    plan = Plan(60, startup=1, fixing_epochs=0)
    root = segment(0, role="final", trained=10, value=1.0)
    lineage = Lineage(StudyDirection.MINIMIZE, [root])
    stretch = Stretch(first_cycle=1, start=10, end=70)
    population = next_phase(plan, stretch, lineage)
    assert population is not None
    assert (population.role, population.parent) == ("branch", root)
    trained(lineage, population, 0, 4, cost=0.1)
    assert next_phase(plan, stretch, lineage) == population


def test_what_is_annealed_begins_at_a_raised_rate() -> None:
    lineage = Lineage(StudyDirection.MINIMIZE)
    assert {role: peak_factor(Plan(90), lineage, role) for role in ROLES} == {
        "startup": 1,
        "branch": 1,
        "trunk": 1,
        "restart": 2,
        "final": 3,
    }
    assert {peak_factor(Plan(90, anneal=None), lineage, role) for role in ROLES} == {1}


@pytest.mark.parametrize("role", ["trunk", "restart"])
def test_nothing_is_raised_after_training_diverged(role: Role) -> None:
    diverged = {"scores": (1.0, math.nan), "value": None, "state": TrialState.FAIL}
    alone = segment(5, role=role, **diverged)
    lineage = Lineage(StudyDirection.MINIMIZE, [segment(4), alone])
    assert (
        peak_factor(Plan(90), lineage, "final") == peak_factor(Plan(90), lineage, "restart") == 1
    )
    assert peak_factor(Plan(90), lineage, "final", 3) == 3, "It was raised, before that happened."
    # A change may be too much for a branch; a raised rate, for a final phase.
    for harmless in (segment(5, role="branch", **diverged), segment(5, role="final", **diverged)):
        lineage = Lineage(StudyDirection.MINIMIZE, [segment(4), harmless])
        assert peak_factor(Plan(90), lineage, "final") == 3


@given(lr=st.floats(1e-5, 1.0), factor=st.floats(0.01, 10.0))
def test_a_rate_that_is_multiplied_comes_back_when_divided(lr: float, factor: float) -> None:
    rates = {"lr": FloatDistribution(1e-8, 1e2, log=True)}
    there = scale_lr({"lr": lr, "width": 3}, rates, factor)
    assert there == {"lr": pytest.approx(factor * lr, rel=1e-3), "width": 3}
    assert scale_lr(there, rates, 1 / factor)["lr"] == pytest.approx(lr, rel=2e-3)


def test_a_multiplied_rate_stays_in_its_range() -> None:
    rates = {"lr": FloatDistribution(1e-4, 1e-2, log=True)}
    assert scale_lr({"lr": 5e-3}, rates, 3) == {"lr": 1e-2}
    assert scale_lr({"lr": 2e-4}, rates, 1 / 3) == {"lr": 1e-4}


def test_a_rate_that_is_no_range_of_numbers_stays_as_it_is() -> None:
    choices = {"lr": CategoricalDistribution([0.1, 0.3])}
    assert scale_lr({"lr": 0.1}, choices, 3) == {"lr": 0.1}
    assert scale_lr({"width": 3}, {}, 3) == {"width": 3}
