"""The order of phases, simulated with artificial segments instead of training."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.segments import add_segment, segment
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
from optuna_miha._search.startup_race import race_rungs

MAX_PHASES = 1_000
"""More phases than any plan of these tests has. A run that reaches this number does not end."""


def new_lineage() -> Lineage:
    return Lineage(StudyDirection.MINIMIZE)


def whole_run(plan: Plan) -> Stretch:
    return Stretch(first_cycle=0, start=0, end=plan.n_epochs)


def max_epochs(phase: Phase) -> list[int]:
    """The maximum number of epochs of each segment of a phase."""
    if phase.role != "startup":
        return [phase.n_epochs] * phase.size
    rungs = race_rungs(phase.size)
    return [sum(epochs for size, epochs in rungs if b < size) for b in range(phase.size)]


def phases(plan: Plan, stretch: Stretch, lineage: Lineage) -> Iterator[Phase]:
    """The phases of a run, for which the caller adds segments to ``lineage``."""
    for _ in range(MAX_PHASES):
        phase = next_phase(plan, stretch, lineage)
        if phase is None:
            return
        yield phase
    raise AssertionError("The run does not end.")


def simulate(
    plan: Plan,
    stretch: Stretch,
    lineage: Lineage,
    cost: Callable[[], float],
    age: int | None = None,
) -> list[Phase]:
    """Add segments with the maximum number of epochs and successive costs; return the phases.

    ``age`` is passed to :func:`add_segment`.
    """
    seen = []
    for phase in phases(plan, stretch, lineage):
        seen.append(phase)
        for branch, n_epochs in enumerate(max_epochs(phase)):
            is_pruned = phase.role == "startup" and branch > 0
            state = TrialState.PRUNED if is_pruned else TrialState.COMPLETE
            add_segment(lineage, phase, branch, n_epochs, cost=cost(), state=state, age=age)
    return seen


def falling() -> Callable[[], float]:
    """Costs that decrease from segment to segment."""
    return (1 / (n + 1) for n in itertools.count()).__next__


def test_the_default_plan_has_a_race_then_cycles_then_a_final_phase() -> None:
    plan = Plan(200, fixing_epochs=10, anneal="cosine")
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, falling())
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
    # The 6 epochs that do not suffice for another population are part of the final phase.
    assert [p.n_epochs for p in seen[1:]] == [10, 4, 10, 4, 10, 4, 86]
    assert lineage.spent == 200


def test_the_trunk_leaves_room_for_a_population() -> None:
    plan = Plan(
        60, startup=1, fixing_epochs=40, anneal="cosine"
    )  # 24 epochs are reserved for the final phase.
    seen = simulate(plan, whole_run(plan), new_lineage(), falling())
    assert [(p.role, p.n_epochs) for p in seen] == [("trunk", 24), ("branch", 4), ("final", 24)]


def test_branches_start_from_the_trunk_and_the_trunk_from_the_fittest_branch() -> None:
    plan = Plan(60, startup=1, fixing_epochs=5, n_cycles=2, anneal="cosine")
    lineage = new_lineage()
    costs = iter([9.0, 5.0, 4.0, 6.0, 3.0, 2.5, 2.0, 2.2, 1.0, 0.5])
    seen = simulate(plan, whole_run(plan), lineage, costs.__next__)
    assert [(p.role, p.parent and p.parent.number) for p in seen] == [
        ("trunk", None),
        ("branch", 0),
        ("trunk", 2),
        ("branch", 4),
        ("trunk", 6),
        ("final", 8),
    ]


def test_the_classic_plan_has_the_published_phases_and_lengths() -> None:
    plan = Plan.classic(
        runup_epochs=5, n_cycles=2, population_size=3, branch_epochs=4, fixing_epochs=6
    )
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, falling())
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
def test_the_classic_plan_spends_its_budget_exactly(
    m: int, c: int, pop: int, n: int, k: int
) -> None:
    assume(m + c > 0)
    plan = Plan.classic(
        runup_epochs=m, n_cycles=c, population_size=pop, branch_epochs=n, fixing_epochs=k
    )
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, falling())
    assert sum(p.role == "branch" for p in seen) == c
    assert [p.n_epochs for p in seen if p.role == "final"] == [m] * (m > 0)
    assert lineage.spent == plan.n_epochs


def test_plain_training_is_a_single_trunk() -> None:
    plan = Plan.no_search(20)
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, falling())
    assert [(p.role, p.cycle, p.n_epochs) for p in seen] == [("trunk", 0, 20)]
    assert lineage.spent == 20


def test_the_classic_plan_trains_all_its_cycles_without_a_new_best() -> None:
    plan = Plan.classic(
        runup_epochs=2, n_cycles=30, population_size=2, branch_epochs=1, fixing_epochs=1
    )
    rising = itertools.count(1.0)
    seen = simulate(plan, whole_run(plan), new_lineage(), rising.__next__)
    assert [phase.cycle for phase in seen if phase.role == "branch"] == list(range(1, 31))
    assert seen[-1].n_epochs == 2


def test_the_final_phase_of_the_classic_plan_continues_the_trunk_even_if_it_is_not_the_best() -> (
    None
):
    plan = Plan.classic(
        runup_epochs=5, n_cycles=1, population_size=2, branch_epochs=2, fixing_epochs=3
    )
    costs = iter([0.1, 0.5, 0.6, 0.7, 0.8])
    seen = simulate(plan, whole_run(plan), new_lineage(), costs.__next__)
    final = seen[-1]
    assert final.role == "final"
    assert final.parent is not None
    assert (final.parent.role, final.parent.cycle) == ("trunk", 1)


def test_an_annealed_final_phase_continues_the_best_segment() -> None:
    plan = Plan(60, startup=1, fixing_epochs=3, n_cycles=1, anneal="cosine")
    costs = iter([0.1, 0.5, 0.6, 0.7, 0.8, 0.9])
    seen = simulate(plan, whole_run(plan), new_lineage(), costs.__next__)
    final = seen[-1]
    assert final.role == "final"
    assert final.parent is not None
    assert final.parent.value == 0.1


def test_cycles_end_early_without_a_new_best() -> None:
    plan = Plan(400, startup=1, fixing_epochs=4, anneal="cosine")
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, itertools.count(1.0).__next__)
    assert [p.cycle for p in seen if p.role == "branch"] == [1, 2, 3]
    assert seen[-1].role == "final"
    assert lineage.spent == 400  # The final phase uses the epochs that the cycles did not use.


def test_cycles_continue_after_a_new_best() -> None:
    plan = Plan(400, startup=1, fixing_epochs=4, anneal="cosine")
    # Segment 0 is the trunk, 1 to 3 are branches, 4 is the trunk; 9 belongs to the third cycle.
    costs = (0.5 if n == 9 else 1.0 + n for n in itertools.count())
    seen = simulate(plan, whole_run(plan), new_lineage(), costs.__next__)
    assert [p.cycle for p in seen if p.role == "branch"] == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_population_continues_with_the_same_parent() -> None:
    plan = Plan(100, startup=1, fixing_epochs=5, anneal="cosine")
    lineage = new_lineage()
    trunk = next_phase(plan, whole_run(plan), lineage)
    assert trunk is not None
    add_segment(lineage, trunk, 0, 5, cost=1.0)
    population = next_phase(plan, whole_run(plan), lineage)
    assert population is not None
    add_segment(lineage, population, 1, 4, cost=0.1)
    assert next_phase(plan, whole_run(plan), lineage) == population


def test_the_trunk_continues_from_its_last_segment_if_all_branches_fail() -> None:
    plan = Plan(100, startup=1, fixing_epochs=5, anneal="cosine")
    lineage = new_lineage()
    trunk = next_phase(plan, whole_run(plan), lineage)
    assert trunk is not None
    trunk_segment = add_segment(lineage, trunk, 0, 5)
    population = next_phase(plan, whole_run(plan), lineage)
    assert population is not None
    for branch in range(population.size):
        add_segment(lineage, population, branch, 1, state=TrialState.FAIL)
    following = next_phase(plan, whole_run(plan), lineage)
    assert following is not None
    assert (following.role, following.cycle, following.parent) == ("trunk", 1, trunk_segment)


def test_epochs_saved_by_pruning_allow_more_cycles() -> None:
    plan = Plan(120, startup=1, fixing_epochs=4, anneal="cosine")
    counts = []
    for n_pruned in (4, 2):
        lineage = new_lineage()
        costs = falling()
        for phase in phases(plan, whole_run(plan), lineage):
            for branch, n_epochs in enumerate(max_epochs(phase)):
                pruned = phase.role == "branch" and branch > 0
                state = TrialState.PRUNED if pruned else TrialState.COMPLETE
                n_trained = min(n_epochs, n_pruned) if pruned else n_epochs
                add_segment(lineage, phase, branch, n_trained, cost=costs(), state=state)
        counts.append(max(s.cycle for s in lineage))
    assert counts[1] > counts[0]


def test_an_extended_run_continues_the_best_segment() -> None:
    plan = Plan(60, startup=1, fixing_epochs=3, n_cycles=1, anneal="cosine")
    lineage = new_lineage()
    simulate(plan, whole_run(plan), lineage, falling())
    best = lineage.best()
    stretch = Stretch(first_cycle=2, start=lineage.spent, end=lineage.spent + 50)
    first = next_phase(plan, stretch, lineage)
    assert first is not None
    assert (first.role, first.cycle, first.parent) == ("trunk", 2, best)
    seen = simulate(plan, stretch, lineage, falling())
    assert seen[-1].role == "final"
    assert lineage.spent == 110


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Valid plans."""
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


@pytest.mark.slow
@given(plan=plans(), n_more=st.integers(1, 60), data=st.data())
def test_the_budget_is_never_exceeded_and_the_run_ends(
    plan: Plan, n_more: int, data: st.DataObject
) -> None:
    lineage = new_lineage()
    stretch = whole_run(plan)
    simulate_randomly(plan, stretch, lineage, data)
    if lineage.spent == 0:  # The only network failed before its first epoch.
        return
    cycle = max(s.cycle for s in lineage) + 1
    more = Stretch(first_cycle=cycle, start=lineage.spent, end=stretch.end + n_more)
    simulate_randomly(plan, more, lineage, data)


def simulate_randomly(plan: Plan, stretch: Stretch, lineage: Lineage, data: st.DataObject) -> None:
    """Add segments that are pruned, fail or end early, and check the invariants of each phase."""
    rng = data.draw(st.randoms(use_true_random=False))
    for phase in phases(plan, stretch, lineage):
        assert phase.cycle >= stretch.first_cycle
        requested = max_epochs(phase)
        assert lineage.spent + sum(requested) <= stretch.end
        assert all(n_epochs >= 1 for n_epochs in requested)
        assert phase.parent is None or phase.parent.value is not None
        if phase.role not in ("restart", "final"):
            reserve = plan.reserve(stretch.end - stretch.start)
            assert lineage.spent + sum(requested) <= stretch.end - reserve
        for branch, n_epochs in enumerate(requested):
            assert branch not in lineage.group(phase.role, phase.cycle)
            state = rng.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
            # A network that cannot be built does not train.
            minimum = 0 if state == TrialState.FAIL and lineage.best() is not None else 1
            n_trained = rng.randint(minimum, n_epochs)
            birth = 0 if phase.parent is None else phase.parent.end
            age = birth + rng.randint(0, n_trained)
            add_segment(lineage, phase, branch, n_trained, cost=rng.random(), state=state, age=age)
        assert lineage.spent <= stretch.end


@given(plan=plans(), seed=st.integers(0, 1000))
def test_the_next_phase_does_not_depend_on_the_order_of_segments(plan: Plan, seed: int) -> None:
    lineage = new_lineage()
    costs = iter(((seed * 7919 + n * 104729) % 1009) / 1009 + n * 1e-9 for n in itertools.count())
    for phase in itertools.islice(phases(plan, whole_run(plan), lineage), 6):
        shuffled = Lineage(StudyDirection.MINIMIZE, reversed(list(lineage)))
        assert next_phase(plan, whole_run(plan), shuffled) == phase
        for branch, n_epochs in enumerate(max_epochs(phase)):
            add_segment(lineage, phase, branch, n_epochs, cost=next(costs))


def test_a_run_in_which_no_network_can_be_built_ends() -> None:
    plan = Plan(100, startup=1, fixing_epochs=3, anneal="cosine")
    lineage = new_lineage()
    for phase in phases(plan, whole_run(plan), lineage):
        for branch in range(phase.size):
            add_segment(lineage, phase, branch, 0, state=TrialState.FAIL)


def test_a_run_ends_with_a_final_phase_that_stopped_early() -> None:
    plan = Plan(400, startup=1, fixing_epochs=4, anneal="cosine")
    lineage = new_lineage()
    costs = itertools.count(1.0)
    for phase in phases(plan, whole_run(plan), lineage):
        if phase.role == "final":
            add_segment(lineage, phase, 0, 5, cost=0.1)  # A custom trainer may stop early.
            break
        for branch, n_epochs in enumerate(max_epochs(phase)):
            add_segment(lineage, phase, branch, n_epochs, cost=next(costs))
    assert next_phase(plan, whole_run(plan), lineage) is None


def rising() -> Callable[[], float]:
    """Costs that increase from segment to segment, so that the first one stays the best."""
    return itertools.count(1.0).__next__


def test_a_network_that_overfits_early_is_restarted_until_the_budget_is_spent() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8, anneal="cosine")
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, rising(), age=8)
    # One cycle without a new best, 28 epochs in total, precedes the restarts.
    assert [p.role for p in seen[:3]] == ["trunk", "branch", "trunk"]
    restarts = seen[3:]
    assert {p.role for p in restarts} == {"restart"}
    assert {p.parent for p in restarts} == {None}
    assert [p.n_epochs for p in restarts] == [12, 12, 12, 12, 12, 12]
    assert [p.cycle for p in restarts] == [2, 3, 4, 5, 6, 7]
    assert lineage.spent == 100


def test_the_last_restart_takes_the_rest_of_the_budget() -> None:
    plan = Plan(109, startup=1, fixing_epochs=8, anneal="cosine")
    lineage = new_lineage()
    seen = simulate(plan, whole_run(plan), lineage, rising(), age=8)
    assert [p.n_epochs for p in seen[3:]] == [12, 12, 12, 12, 12, 21]
    assert lineage.spent == 109


def test_a_network_that_improves_for_long_is_annealed_instead_of_restarted() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8, anneal="cosine")
    seen = simulate(plan, whole_run(plan), new_lineage(), rising(), age=40)
    assert "restart" not in {p.role for p in seen}
    assert seen[-1].role == "final"
    assert seen[-1].parent is not None


def test_there_are_no_restarts_if_they_are_switched_off_or_without_annealing() -> None:
    for plan in (
        Plan(100, startup=1, fixing_epochs=8, restarts=False, anneal="cosine"),
        Plan(100, startup=1, fixing_epochs=8, anneal=None),
    ):
        seen = simulate(plan, whole_run(plan), new_lineage(), rising(), age=8)
        assert "restart" not in {p.role for p in seen}


def test_restarts_get_longer_when_the_best_network_gets_older() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8, anneal="cosine")
    lineage = new_lineage()
    costs = itertools.count(1.0)
    lengths = []
    for phase in phases(plan, whole_run(plan), lineage):
        if phase.role == "restart":  # A new best after three quarters of its epochs.
            lengths.append(phase.n_epochs)
            age = 3 * phase.n_epochs // 4 + 4
            add_segment(lineage, phase, 0, phase.n_epochs, cost=1 / (1 + len(lengths)), age=age)
            continue
        for branch, n_epochs in enumerate(max_epochs(phase)):
            add_segment(lineage, phase, branch, n_epochs, cost=next(costs), age=8)
    assert lengths == [12, 20, 40]
    assert lineage.spent == 100


def test_restarts_end_after_three_that_fail_before_training() -> None:
    plan = Plan(100, startup=1, fixing_epochs=8, anneal="cosine")
    lineage = new_lineage()
    n_restarts = 0
    for phase in phases(plan, whole_run(plan), lineage):
        fails = phase.role == "restart"
        n_restarts += fails
        for branch, n_epochs in enumerate(max_epochs(phase)):
            if fails:
                add_segment(lineage, phase, branch, 0, state=TrialState.FAIL)
            else:
                add_segment(lineage, phase, branch, n_epochs, age=8)
    assert n_restarts == 3
    assert [s.role for s in lineage][-1] == "final"


@given(plan=plans(), seed=st.integers(0, 1000))
def test_a_run_with_restarts_does_not_exceed_its_budget(plan: Plan, seed: int) -> None:
    lineage = new_lineage()
    rng = random.Random(seed)
    for phase in phases(plan, whole_run(plan), lineage):
        for branch, n_epochs in enumerate(max_epochs(phase)):
            birth = 0 if phase.parent is None else phase.parent.end
            age = birth + rng.randint(1, n_epochs) if n_epochs else birth
            add_segment(lineage, phase, branch, n_epochs, cost=rng.random(), age=age)
    assert lineage.spent <= plan.n_epochs
    if plan.anneal is not None and plan.prune is False:
        assert lineage.spent == plan.n_epochs


def test_a_race_does_not_exceed_a_budget_that_was_lowered() -> None:
    plan = Plan(200, anneal="cosine")
    stretch = Stretch(first_cycle=0, start=0, end=30)
    lineage = new_lineage()
    simulate(plan, stretch, lineage, falling())
    assert lineage.spent <= 30


def test_a_branch_from_before_an_interruption_is_not_the_parent_of_its_siblings() -> None:
    plan = Plan(60, startup=1, fixing_epochs=0, anneal="cosine")
    root = segment(0, role="final", trained=10, value=1.0)
    lineage = Lineage(StudyDirection.MINIMIZE, [root])
    stretch = Stretch(first_cycle=1, start=10, end=70)
    population = next_phase(plan, stretch, lineage)
    assert population is not None
    assert (population.role, population.parent) == ("branch", root)
    add_segment(lineage, population, 0, 4, cost=0.1)
    assert next_phase(plan, stretch, lineage) == population


def test_the_peak_rate_is_raised_in_restarts_and_the_final_phase() -> None:
    lineage = Lineage(StudyDirection.MINIMIZE)
    assert {
        role: peak_factor(Plan(90, anneal="cosine"), lineage, role, cycle=9) for role in ROLES
    } == {
        "startup": 1,
        "branch": 1,
        "trunk": 1,
        "restart": 2,
        "final": 3,
    }
    assert {peak_factor(Plan(90, anneal=None), lineage, role, cycle=9) for role in ROLES} == {1}


@pytest.mark.parametrize("role", ["trunk", "restart"])
def test_the_peak_rate_is_not_raised_after_the_trunk_or_a_restart_diverged(role: Role) -> None:
    diverged = {"scores": (1.0, math.nan), "value": None, "state": TrialState.FAIL}
    lineage = Lineage(StudyDirection.MINIMIZE, [segment(4), segment(5, role=role, **diverged)])
    assert (
        peak_factor(Plan(90, anneal="cosine"), lineage, "final", cycle=9)
        == peak_factor(Plan(90, anneal="cosine"), lineage, "restart", cycle=9)
        == 1
    )
    assert peak_factor(Plan(90, anneal="cosine"), lineage, "final", cycle=9, before=3) == 3, (
        "Raised before training diverged."
    )
    # A branch may diverge because of its mutation, a final phase because of the raised rate.
    for harmless in (segment(5, role="branch", **diverged), segment(5, role="final", **diverged)):
        lineage = Lineage(StudyDirection.MINIMIZE, [segment(4), harmless])
        assert peak_factor(Plan(90, anneal="cosine"), lineage, "final", cycle=9) == 3


@given(lr=st.floats(1e-5, 1.0), factor=st.floats(0.01, 10.0))
def test_scaling_a_rate_is_reversible(lr: float, factor: float) -> None:
    rates = {"lr": FloatDistribution(1e-8, 1e2, log=True)}
    scaled = scale_lr({"lr": lr, "width": 3}, rates, factor)
    assert scaled == {"lr": pytest.approx(factor * lr, rel=1e-3), "width": 3}
    assert scale_lr(scaled, rates, 1 / factor)["lr"] == pytest.approx(lr, rel=2e-3)


def test_a_scaled_rate_is_clipped_to_its_range() -> None:
    rates = {"lr": FloatDistribution(1e-4, 1e-2, log=True)}
    assert scale_lr({"lr": 5e-3}, rates, 3) == {"lr": 1e-2}
    assert scale_lr({"lr": 2e-4}, rates, 1 / 3) == {"lr": 1e-4}


def test_a_rate_that_is_not_a_float_parameter_is_not_scaled() -> None:
    choices = {"lr": CategoricalDistribution([0.1, 0.3])}
    assert scale_lr({"lr": 0.1}, choices, 3) == {"lr": 0.1}
    assert scale_lr({"width": 3}, {}, 3) == {"width": 3}
