"""The slope pruner: tables of curves, and what counts as a peer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from optuna_miha import SlopePruner
from optuna_miha._history import attributes

NAN = math.nan
Values = Mapping[int, float] | Sequence[float]


def steps(values: Values) -> dict[int, float]:
    """Reported values by step; a sequence starts at step 0."""
    return dict(values) if isinstance(values, Mapping) else dict(enumerate(values))


def ended(
    study: optuna.Study,
    values: Values,
    state: TrialState = TrialState.COMPLETE,
    attrs: dict[str, Any] | None = None,
) -> None:
    """Add a finished trial that reported ``values``."""
    study.add_trial(
        create_trial(
            state=state,
            value=0.0 if state == TrialState.COMPLETE else None,
            intermediate_values=steps(values),
            user_attrs=attrs,
        )
    )


def running(
    study: optuna.Study, values: Values, attrs: dict[str, Any] | None = None
) -> optuna.Trial:
    """A running trial that reported ``values``."""
    study.enqueue_trial({}, user_attrs=attrs)
    trial = study.ask()
    for step, value in steps(values).items():
        trial.report(value, step)
    return trial


def is_pruned(
    own: Values,
    peers: Sequence[Values],
    *,
    direction: str = "minimize",
    own_attrs: dict[str, Any] | None = None,
    **settings: Any,
) -> bool:
    """Whether a trial is cut beside finished peers."""
    study = optuna.create_study(direction=direction, pruner=SlopePruner(**settings))
    for peer in peers:
        ended(study, peer)
    return running(study, own, own_attrs).should_prune()


CASES = [
    # own values, the peers' values, whether it is cut
    ([5, 5], [[1, 1, 1, 1]], True),  # Flat and worse.
    ([5, 6], [[1, 1, 1, 1]], True),  # Rising.
    ([5, 4], [[1, 1, 1, 1]], True),  # At 2 when the peer ended.
    ([5, 4], [[1, 1, 1, 1, 1, 1]], False),  # At 0 by then.
    ([5, 3], [[1, 1, 1, 1]], False),
    ([5, 3], [[1, 1, 1]], False),  # At 1: a tie is no reason.
    ([1, 1], [[5, 5, 5]], False),  # The best.
    ([1, 2], [[5, 5, 5]], False),  # The best, although it rises.
    ([5, 5], [[5, 5, 5]], False),
    ([5, 5], [[6, 6, 6], [1, 1, 1]], True),  # The best peer counts.
    ([5, 5], [[9, 9, 9], [6, 6, 6]], False),
    ([5, 5], [[9, 6, 1, 1]], False),  # At the same step, the peer was no better.
    ([5, 5], [[1]], False),  # It did not get as far.
    ([5, 5], [], False),
    ([5, 5], [[]], False),
]


@pytest.mark.parametrize(("own", "peers", "cut"), CASES)
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trial_is_cut_if_it_would_stay_worse_than_its_best_peer(
    own: list[float], peers: list[list[float]], cut: bool, direction: str
) -> None:
    sign = 1 if direction == "minimize" else -1
    turned = [[sign * value for value in peer] for peer in peers]
    assert is_pruned([sign * value for value in own], turned, direction=direction) is cut


@pytest.mark.parametrize("own", [[], [5], [NAN, 5], {7: 5.0}])
def test_fewer_than_two_values_are_no_reason(own: Values) -> None:
    assert not is_pruned(own, [[0.0] * 9])


def test_a_trial_that_ends_in_nan_is_cut_without_a_peer() -> None:
    assert is_pruned([NAN], [])
    assert is_pruned([1.0, NAN], [[5.0, 5.0]])
    assert is_pruned([1.0, NAN], [], n_warmup_steps=10)


def test_a_nan_before_the_last_value_is_passed_over() -> None:
    assert is_pruned([5, NAN, 5], [[1, 1, 1, 1]])
    assert not is_pruned([5, NAN, 2], [[1, 1, 1, 1]])


def test_a_peers_nan_is_no_value_to_be_measured_by() -> None:
    assert not is_pruned([5, 5, 5], [[NAN, NAN, NAN]])
    assert is_pruned([5, 5, 5], [[1, NAN, 3]])  # What it had before.
    assert not is_pruned([5, 5, 5], [[1, 1, NAN]])  # It did not get as far.


def test_steps_that_were_not_reported_are_passed_over() -> None:
    assert is_pruned({0: 5.0, 10: 5.0}, [{0: 9.0, 4: 1.0, 20: 9.0}])
    assert not is_pruned({0: 5.0, 10: 5.0}, [{0: 9.0, 11: 1.0}])
    # The slope is per step, not per value: at 20 it would be at 0.
    assert not is_pruned({0: 10.0, 10: 5.0}, [{0: 1.0, 20: 1.0}])


def test_peers_that_started_later_are_not_compared() -> None:
    assert not is_pruned([5, 5], [{3: 1.0, 4: 1.0}])


@pytest.mark.parametrize(("n_warmup_steps", "cut"), [(0, True), (2, True), (3, False)])
def test_no_trial_is_cut_in_its_warm_up(n_warmup_steps: int, cut: bool) -> None:
    own = {10: 5.0, 11: 5.0, 12: 5.0}
    peer = dict.fromkeys(range(20), 1.0)
    assert is_pruned(own, [peer], n_warmup_steps=n_warmup_steps) is cut


@pytest.mark.parametrize(("window", "cut"), [(2, True), (4, False)])
def test_the_slope_is_that_of_the_last_values(window: int, cut: bool) -> None:
    assert is_pruned([20, 12, 4, 4], [[1] * 7], window=window) is cut


@pytest.mark.parametrize(
    ("own", "peer", "margin", "cut"),
    [
        (1.2, 1.0, 0.0, True),
        (1.2, 1.0, 0.1, True),
        (1.2, 1.0, 0.3, False),
        (-0.8, -1.0, 0.1, True),  # A share of the absolute value.
        (-0.8, -1.0, 0.3, False),
    ],
)
def test_a_margin_spares_who_is_hardly_worse(
    own: float, peer: float, margin: float, cut: bool
) -> None:
    assert is_pruned([own, own], [[peer] * 4], margin=margin) is cut


@pytest.mark.parametrize(
    "state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
)
def test_peers_of_every_state_but_failed_count(state: TrialState) -> None:
    study = optuna.create_study(pruner=SlopePruner())
    if state == TrialState.RUNNING:
        running(study, [1, 1, 1])
    else:
        ended(study, [1, 1, 1], state)
    assert running(study, [5, 5]).should_prune() is (state != TrialState.FAIL)


CURVES = st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=5)


@given(
    CURVES,
    st.sampled_from(["minimize", "maximize"]),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.5]),
)
def test_the_best_of_all_peers_is_never_cut(
    curves: list[list[float]], direction: str, window: int, margin: float
) -> None:
    study = optuna.create_study(
        direction=direction, pruner=SlopePruner(window=window, margin=margin)
    )
    trials = [running(study, curve) for curve in curves]
    best = min if direction == "minimize" else max
    for n_steps in range(1, 7):
        alive = [
            (curve[n_steps - 1], trial)
            for curve, trial in zip(curves, trials, strict=True)
            if len(curve) == n_steps
        ]
        as_far = [curve[n_steps - 1] for curve in curves if len(curve) >= n_steps]
        for value, trial in alive:
            if value == best(as_far):
                assert not trial.should_prune()


@given(CURVES, st.floats(0.1, 10), st.floats(-50, 50))
def test_decisions_do_not_depend_on_the_unit(
    curves: list[list[float]], factor: float, shift: float
) -> None:
    # Quarters and powers of two, so that rounding does not decide.
    own, *peers = [[round(4 * value) / 4 for value in curve] for curve in curves]
    scale, offset = 2.0 ** round(math.log2(factor)), round(4 * shift) / 4
    moved = [[scale * value + offset for value in curve] for curve in (own, *peers)]
    assert is_pruned(own, peers, window=2) == is_pruned(moved[0], moved[1:], window=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_warmup_steps": -1}, "`n_warmup_steps` must not be negative, got -1"),
        ({"window": 1}, "`window` must be at least 2 for a slope, got 1"),
        ({"margin": -0.5}, "`margin` must not be negative, got -0.5"),
        ({"margin": NAN}, "`margin` must not be negative, got nan"),
    ],
)
def test_an_argument_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlopePruner(**settings)


def branch(**changes: Any) -> dict[str, Any]:
    """Attributes of a branch that is born at epoch 10 and ends at epoch 14."""
    attrs = {"role": "branch", "cycle": 1, "parent": 3, "epoch": 10, "end": 14}
    return {attributes.PREFIX + key: value for key, value in (attrs | changes).items()}


WORSE = {10: 2.0, 11: 5.0, 12: 5.0}
BETTER = {10: 2.0, 11: 1.0, 12: 1.0}


@pytest.mark.parametrize(
    ("changes", "cut"),
    [
        ({}, True),
        ({"role": "startup"}, False),
        ({"cycle": 2}, False),
        ({"parent": 4}, False),
        ({"parent": None}, False),
    ],
)
def test_a_branch_is_held_against_its_siblings_only(changes: dict[str, Any], cut: bool) -> None:
    study = optuna.create_study(pruner=SlopePruner())
    # Worse than the peer, and better than the parent was at birth.
    running(study, {10: 9.0, 11: 1.0, 12: 1.0}, branch(**changes))
    own = running(study, {10: 9.0, 11: 5.0, 12: 5.0}, branch())
    assert own.should_prune() is cut


def test_a_branch_is_not_held_against_trials_outside_of_the_run() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    ended(study, dict.fromkeys(range(20), 0.0))
    assert not running(study, {10: 9.0, 11: 5.0, 12: 5.0}, branch()).should_prune()


@pytest.mark.parametrize(("parent", "cut"), [(2.0, True), (9.0, False), (5.0, False)])
def test_a_branch_without_siblings_is_held_against_its_parent(parent: float, cut: bool) -> None:
    study = optuna.create_study(pruner=SlopePruner())
    own = running(study, {10: parent, 11: 5.0, 12: 5.0}, branch())
    assert own.should_prune() is cut


def test_a_root_without_siblings_is_not_cut() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    assert not running(study, {1: 1.0, 2: 9.0}, branch(epoch=0, parent=None)).should_prune()


def test_a_branch_that_reaches_its_sibling_by_the_end_of_the_population_lives() -> None:
    values = {10: 2.0, 11: 5.0, 12: 3.0}  # At -1 in epoch 14, at 3 if epoch 12 is the last.
    for end, cut in ((14, False), (12, True)):
        study = optuna.create_study(pruner=SlopePruner())
        running(study, BETTER, branch())
        assert running(study, values, branch(end=end)).should_prune() is cut


def test_the_parents_value_is_not_part_of_a_branchs_slope() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    running(study, BETTER, branch())
    # With the parent's 30 the line would fall steeply.
    assert running(study, {10: 30.0, 11: 5.0, 12: 5.0}, branch()).should_prune()


def test_a_branch_with_a_single_epoch_of_its_own_is_not_cut() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    running(study, BETTER, branch())
    assert not running(study, {10: 2.0, 11: 50.0}, branch()).should_prune()


def test_no_sibling_is_cut_for_being_asked_first() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    values = [BETTER, WORSE, {10: 2.0, 11: 1.5, 12: 1.5}]
    trials = [running(study, v, branch()) for v in values]
    forward = [trial.should_prune() for trial in trials]
    backward = [trial.should_prune() for trial in reversed(trials)]
    assert forward == backward[::-1] == [False, True, True]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_in_an_ordinary_study_hopeless_trials_are_cut_early(direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(
        direction=direction, pruner=SlopePruner(), sampler=optuna.samplers.RandomSampler(seed=0)
    )

    def objective(trial: optuna.Trial) -> float:
        level = trial.suggest_float("level", 0, 10)
        for step in range(10):
            trial.report(sign * (level + 1 / (step + 1)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return sign * level

    study.optimize(objective, n_trials=30)
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert len(complete) + len(pruned) == 30
    assert complete[0].number == 0
    assert len(pruned) > 15
    levels = [t.params["level"] for t in study.trials]
    assert study.best_params["level"] == min(levels)
    assert all(len(t.intermediate_values) < 10 for t in pruned)
    assert all(levels[t.number] > min(levels[: t.number]) for t in pruned)


def test_a_trial_that_reached_infinity_is_cut() -> None:
    assert is_pruned([5.0, math.inf], [[1.0, 1.0, 1.0]])
