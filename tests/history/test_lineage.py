"""The history of a run: ranking, best segments, and reading segments from trials."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from helpers.segments import segment
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._history import attributes
from optuna_miha._history import lineage as module
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import make_curve, segment_of

SCORES = st.dictionaries(
    st.integers(0, 9), st.floats(allow_nan=True) | st.sampled_from([0.0, 1.0]), max_size=6
)


def ranking(fitness: dict[int, float]) -> list[int]:
    """The ranking of feasible branches."""
    return module.ranking({branch: (0.0, value) for branch, value in fitness.items()})


def test_a_branch_with_nan_fitness_is_not_ranked() -> None:
    nan = math.nan
    assert ranking({0: nan, 1: -5.0}) == [1]
    assert ranking({0: -5.0, 1: nan}) == [0]
    assert ranking({0: nan, 1: nan}) == []
    assert ranking({0: nan, 1: -math.inf}) == [1]


def test_the_lowest_branch_index_comes_first_in_a_tie() -> None:
    assert ranking({2: 1.0, 0: 1.0, 1: 1.0}) == [0, 1, 2]
    assert ranking({2: 1.0, 0: 0.5, 1: 1.0}) == [1, 2, 0]


@given(SCORES, st.randoms(use_true_random=False))
def test_the_ranking_does_not_depend_on_the_order(scores: dict[int, float], rng: Any) -> None:
    items = list(scores.items())
    rng.shuffle(items)
    assert ranking(dict(items)) == ranking(scores)


@given(SCORES)
def test_the_ranking_sorts_every_fitness_except_nan(
    scores: dict[int, float],
) -> None:
    values = [scores[branch] for branch in ranking(scores)]
    comparable = [value for value in scores.values() if not math.isnan(value)]
    assert values == sorted(comparable, reverse=True)


def test_feasible_branches_precede_infeasible_ones_which_are_sorted_by_violation() -> None:
    fitness = {0: (2.0, 9.0), 1: (0.0, 1.0), 2: (0.5, -1.0), 3: (0.0, 3.0), 4: (0.5, 0.0)}
    assert module.ranking(fitness) == [3, 1, 4, 2, 0]


def test_an_infeasible_segment_is_the_best_only_while_there_is_no_feasible_one() -> None:
    member: Any = {"id": "", "sha256": "", "value": 0.1}
    infeasible = segment(0, value=0.1, violation=1.0, member=member)
    lineage = Lineage(StudyDirection.MINIMIZE, [infeasible])
    assert lineage.best() == infeasible
    assert lineage.library() == [infeasible]
    assert lineage.would_be_best(0.5, 0.9, "branch", 1, 0)
    assert not lineage.would_be_best(1.5, 0.0, "branch", 1, 0)
    feasible = segment(1, role="branch", cycle=1, value=0.9, member={**member, "value": 0.9})
    lineage.add(feasible)
    assert lineage.best() == lineage.best_before(2) == feasible
    assert lineage.library() == [feasible]


def test_a_pruned_or_failed_sibling_does_not_win() -> None:
    lineage = Lineage(
        StudyDirection.MINIMIZE,
        [
            segment(0, role="branch", cycle=1, branch=0, fitness=-9.0),
            segment(1, role="branch", cycle=1, branch=1, fitness=5.0, state=TrialState.PRUNED),
            segment(2, role="branch", cycle=1, branch=2, fitness=7.0, state=TrialState.FAIL),
        ],
    )
    winner = lineage.winner("branch", 1)
    assert winner is not None
    assert winner.number == 0
    assert lineage.winner("branch", 2) is None
    assert lineage.winner("trunk", 1) is None


def test_epochs_of_pruned_and_failed_segments_count_as_spent() -> None:
    lineage = Lineage(
        StudyDirection.MINIMIZE,
        [
            segment(0, trained=3),
            segment(1, trained=2, state=TrialState.PRUNED, value=None),
            segment(2, trained=1, state=TrialState.FAIL, value=None),
        ],
    )
    assert lineage.spent == 6
    assert len(lineage) == 3


@pytest.mark.parametrize(
    ("direction", "best", "cost"),
    [(StudyDirection.MINIMIZE, 1, 0.2), (StudyDirection.MAXIMIZE, 0, -0.9)],
)
def test_the_best_segment_depends_on_the_studys_direction(
    direction: StudyDirection, best: int, cost: float
) -> None:
    lineage = Lineage(direction, [segment(0, value=0.9), segment(1, value=0.2)])
    found = lineage.best()
    assert found is not None
    assert found.number == best
    assert lineage.cost(found) == cost


def test_the_cost_of_a_segment_without_value_is_infinite() -> None:
    pruned = segment(0, value=None, state=TrialState.PRUNED)
    for direction in (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE):
        lineage = Lineage(direction, [pruned])
        assert lineage.best() is None
        assert lineage.cost(pruned) == math.inf


@given(
    st.sampled_from(["minimize", "maximize"]),
    st.lists(st.sampled_from([0.0, 1.0, 2.0]) | st.none(), min_size=1, max_size=8),
)
def test_the_best_segment_is_the_best_trial_of_the_study(
    direction: str, values: list[float | None]
) -> None:
    study = optuna.create_study(direction=direction)
    study.add_trials([run_trial(value, number=n) for n, value in enumerate(values)])
    lineage = Lineage.from_trials(study.direction, study.trials)
    best = lineage.best()
    if best is None:
        assert all(value is None for value in values)
    else:
        assert best.number == study.best_trial.number


def run_trial(value: float | None, *, number: int = 0, **attrs: Any) -> FrozenTrial:
    """A trial like those of a run; pruned if it has no value."""
    run_attrs = {
        attributes.ROLE: "branch",
        attributes.CYCLE: 1,
        attributes.BRANCH: number,
        attributes.PARENT: None,
        attributes.BIRTH: 0,
        attributes.TRAINED: 2,
        attributes.MUTATION: "lr 0.1 -> 0.2",
    }
    return create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        value=value,
        params={"lr": 0.2},
        distributions={"lr": FloatDistribution(0, 1)},
        intermediate_values={0: 3.0, 2: 1.0, 1: 2.0},
        user_attrs=run_attrs | attrs,
        system_attrs={attributes.TRAIN_LOSS: [1.5, None]},
    )


def test_a_segment_is_read_from_its_trial() -> None:
    checkpoint = {"id": f"a-{12 * '0'}.pt", "sha256": 64 * "b", "best_epoch": 2}
    read = segment_of(
        run_trial(0.5, **{attributes.FITNESS: -1.0, attributes.CHECKPOINT: checkpoint})
    )
    assert read is not None
    assert (read.role, read.cycle, read.branch, read.parent) == ("branch", 1, 0, None)
    assert (read.birth, read.trained, read.end) == (0, 2, 2)
    assert read.params == {"lr": 0.2}
    assert read.mutation == "lr 0.1 -> 0.2"
    assert read.value == 0.5
    assert read.fitness == -1.0
    assert read.checkpoint == checkpoint


def test_the_scores_of_a_segment_exclude_the_parents_value() -> None:
    read = segment_of(run_trial(0.5))
    assert read is not None
    assert read.scores == (2.0, 1.0)


def test_the_fitness_of_a_trial_without_one_is_nan() -> None:
    read = segment_of(run_trial(0.5))
    assert read is not None
    assert math.isnan(read.fitness)


def test_a_pruned_segment_has_no_value_although_optuna_stores_its_last_report() -> None:
    study = optuna.create_study()
    study.add_trial(run_trial(None))
    study.enqueue_trial({}, user_attrs=study.trials[0].user_attrs)
    trial = study.ask()
    trial.report(0.4, step=1)
    trial.report(0.3, step=2)
    study.tell(trial, state=TrialState.PRUNED)
    assert study.trials[1].value == 0.3
    read = segment_of(study.trials[1])
    assert read is not None
    assert read.value is None
    assert read.state == TrialState.PRUNED


def test_segments_share_equal_distributions() -> None:
    one, other = segment_of(run_trial(0.5)), segment_of(run_trial(0.7))
    assert one is not None and other is not None
    assert one.distributions == run_trial(0.5).distributions
    assert one.distributions is other.distributions


def test_trials_that_are_not_segments_are_skipped() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0))  # A trial of the user's.
    study.enqueue_trial({}, user_attrs=run_trial(0.5).user_attrs)
    study.tell(study.ask(), state=TrialState.FAIL)  # Without an error: its process died.
    study.enqueue_trial({}, user_attrs=run_trial(0.5).user_attrs)
    study.ask()  # A running trial.
    study.enqueue_trial({}, user_attrs=run_trial(0.5).user_attrs)  # A waiting trial.
    study.add_trial(run_trial(0.5))
    lineage = Lineage.from_trials(study.direction, study.trials)
    assert [s.number for s in lineage] == [4]


def test_a_trial_that_failed_with_an_error_is_a_segment() -> None:
    study = optuna.create_study()
    attrs = run_trial(0.5).user_attrs | {
        attributes.ERROR: "RuntimeError: no",
        attributes.TRAINED: 1,
    }
    study.enqueue_trial({}, user_attrs=attrs)
    study.tell(study.ask(), state=TrialState.FAIL)
    read = segment_of(study.trials[0])
    assert read is not None
    assert read.state == TrialState.FAIL
    assert read.trained == 1
    assert read.value is None


def test_the_ancestry_is_sorted_from_the_root_to_the_segment() -> None:
    lineage = Lineage(
        StudyDirection.MINIMIZE,
        [segment(0), segment(1, parent=0), segment(2, parent=0), segment(5, parent=2)],
    )
    assert [s.number for s in lineage.ancestry(lineage[5])] == [0, 2, 5]
    assert lineage.ancestry(lineage[0]) == [lineage[0]]


def test_a_curve_is_oriented_so_that_lower_is_better() -> None:
    parent = segment(0, scores=(0.2, 0.4))
    curve = make_curve((0.5, 0.6), -1, 7, parent)
    assert curve.costs == (-0.5, -0.6)
    assert curve.birth == 7
    assert curve.birth_cost == -0.4


def test_a_root_has_no_cost_at_birth() -> None:
    assert math.isnan(make_curve((0.5,), 1, 0, None).birth_cost)


def population() -> Lineage:
    """A trunk, and two branches of cycle 1, of which number 2 is the fittest."""
    common: dict[str, Any] = {"role": "branch", "cycle": 1, "parent": 0, "birth": 2}
    return Lineage(
        StudyDirection.MINIMIZE,
        [
            segment(0),
            segment(1, branch=0, fitness=-0.4, value=0.1, **common),
            segment(2, branch=1, fitness=-0.3, value=0.2, **common),
            segment(3, branch=2, fitness=math.nan, value=0.05, **common),
        ],
    )


def test_the_fittest_is_continued_while_no_sibling_has_a_child() -> None:
    lineage = population()
    assert lineage.continued("branch", 1) is lineage[2] is lineage.winner("branch", 1)
    assert lineage.continued("branch", 2) is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_sibling_that_the_final_phase_continues_is_continued(number: int) -> None:
    lineage = population()
    lineage.add(segment(4, role="final", cycle=1, parent=number, birth=4))
    assert lineage.continued("branch", 1) is lineage[number]


def test_a_round_continues_the_best_value_not_the_fittest() -> None:
    lineage = Lineage(StudyDirection.MINIMIZE)
    for number, (value, fitness) in enumerate([(0.3, -0.4), (0.2, -0.5), (0.4, -0.4)]):
        lineage.add(
            segment(
                number,
                role="branch",
                cycle=1,
                branch=number,
                value=value,
                fitness=fitness,
                by_step=True,
            )
        )
    assert lineage.winner("branch", 1) is lineage[0]
    assert lineage.continued("branch", 1) is lineage[1] is lineage.best_before(2)


def test_the_fittest_is_continued_if_the_final_phase_continues_an_earlier_sibling() -> None:
    lineage = population()
    lineage.add(segment(4, cycle=1, parent=2, birth=4))
    lineage.add(segment(5, role="final", cycle=1, parent=1, birth=4))
    assert lineage.continued("branch", 1) is lineage[2]
