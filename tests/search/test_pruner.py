"""The slope pruner: its decisions for given curves, and its choice of peers."""

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


def add_finished(
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


def start_running(
    study: optuna.Study, values: Values, attrs: dict[str, Any] | None = None
) -> optuna.Trial:
    """Start a trial that reports ``values`` and keeps running."""
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
    """Whether a trial is pruned if its peers are finished."""
    study = optuna.create_study(direction=direction, pruner=SlopePruner(**settings))
    for peer in peers:
        add_finished(study, peer)
    return start_running(study, own, own_attrs).should_prune()


CASES = [
    # values of the trial, values of the peers, whether the trial is pruned
    ([5, 5], [[1, 1, 1, 1]], True),  # It is constant and worse.
    ([5, 6], [[1, 1, 1, 1]], True),  # It rises.
    ([5, 4], [[1, 1, 1, 1]], True),  # It would be at 2 at the last step of the peer.
    ([5, 4], [[1, 1, 1, 1, 1, 1]], False),  # It would be at 0.
    ([5, 3], [[1, 1, 1, 1]], False),
    ([5, 3], [[1, 1, 1]], False),  # It would be at 1, which is a tie.
    ([1, 1], [[5, 5, 5]], False),  # It is the best.
    ([1, 2], [[5, 5, 5]], False),  # It is the best, although it rises.
    ([5, 5], [[5, 5, 5]], False),
    ([5, 5], [[6, 6, 6], [1, 1, 1]], True),  # It is compared with the best peer.
    ([5, 5], [[9, 9, 9], [6, 6, 6]], False),
    ([5, 5], [[9, 6, 1, 1]], False),  # At the same step, the peer was not better.
    ([5, 5], [[1]], False),  # The peer did not reach this step.
    ([5, 5], [], False),
    ([5, 5], [[]], False),
]


@pytest.mark.parametrize(("own", "peers", "expected"), CASES)
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trial_is_pruned_if_it_would_stay_worse_than_its_best_peer(
    own: list[float], peers: list[list[float]], expected: bool, direction: str
) -> None:
    sign = 1 if direction == "minimize" else -1
    oriented = [[sign * value for value in peer] for peer in peers]
    assert is_pruned([sign * value for value in own], oriented, direction=direction) is expected


@pytest.mark.parametrize("own", [[], [5], [NAN, 5], {7: 5.0}])
def test_a_trial_with_fewer_than_two_values_is_not_pruned(own: Values) -> None:
    assert not is_pruned(own, [[0.0] * 9])


def test_a_trial_whose_last_value_is_nan_is_pruned() -> None:
    assert is_pruned([NAN], [])
    assert is_pruned([1.0, NAN], [[5.0, 5.0]])
    assert is_pruned([1.0, NAN], [], n_warmup_steps=10)


def test_a_nan_before_the_last_value_is_ignored() -> None:
    assert is_pruned([5, NAN, 5], [[1, 1, 1, 1]])
    assert not is_pruned([5, NAN, 2], [[1, 1, 1, 1]])


def test_a_peers_nan_is_ignored() -> None:
    assert not is_pruned([5, 5, 5], [[NAN, NAN, NAN]])
    assert is_pruned([5, 5, 5], [[1, NAN, 3]])
    assert not is_pruned([5, 5, 5], [[1, 1, NAN]])  # The peer did not reach this step.


def test_missing_steps_are_ignored() -> None:
    assert is_pruned({0: 5.0, 10: 5.0}, [{0: 9.0, 4: 1.0, 20: 9.0}])
    assert not is_pruned({0: 5.0, 10: 5.0}, [{0: 9.0, 11: 1.0}])
    # The slope is per step, not per value. At step 20 the trial would be at 0.
    assert not is_pruned({0: 10.0, 10: 5.0}, [{0: 1.0, 20: 1.0}])


def test_peers_that_started_later_are_ignored() -> None:
    assert not is_pruned([5, 5], [{3: 1.0, 4: 1.0}])


@pytest.mark.parametrize(("n_warmup_steps", "expected"), [(0, True), (2, True), (3, False)])
def test_a_trial_is_not_pruned_during_its_warm_up(n_warmup_steps: int, expected: bool) -> None:
    own = {10: 5.0, 11: 5.0, 12: 5.0}
    peer = dict.fromkeys(range(20), 1.0)
    assert is_pruned(own, [peer], n_warmup_steps=n_warmup_steps) is expected


@pytest.mark.parametrize(("window", "expected"), [(2, True), (4, False)])
def test_the_slope_is_fitted_to_the_last_values(window: int, expected: bool) -> None:
    assert is_pruned([20, 12, 4, 4], [[1] * 7], window=window) is expected


@pytest.mark.parametrize(
    ("own", "peer", "margin", "expected"),
    [
        (1.2, 1.0, 0.0, True),
        (1.2, 1.0, 0.1, True),
        (1.2, 1.0, 0.3, False),
        (-0.8, -1.0, 0.1, True),  # The margin is a share of the absolute value.
        (-0.8, -1.0, 0.3, False),
    ],
)
def test_a_trial_that_is_worse_by_less_than_the_margin_is_not_pruned(
    own: float, peer: float, margin: float, expected: bool
) -> None:
    assert is_pruned([own, own], [[peer] * 4], margin=margin) is expected


@pytest.mark.parametrize(
    "state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
)
def test_failed_trials_are_not_peers(state: TrialState) -> None:
    study = optuna.create_study(pruner=SlopePruner())
    if state == TrialState.RUNNING:
        start_running(study, [1, 1, 1])
    else:
        add_finished(study, [1, 1, 1], state)
    assert start_running(study, [5, 5]).should_prune() is (state != TrialState.FAIL)


CURVES = st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=5)


@given(
    CURVES,
    st.sampled_from(["minimize", "maximize"]),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.5]),
)
def test_the_best_of_all_peers_is_never_pruned(
    curves: list[list[float]], direction: str, window: int, margin: float
) -> None:
    study = optuna.create_study(
        direction=direction, pruner=SlopePruner(window=window, margin=margin)
    )
    trials = [start_running(study, curve) for curve in curves]
    best = min if direction == "minimize" else max
    for n_steps in range(1, 7):
        running = [
            (curve[n_steps - 1], trial)
            for curve, trial in zip(curves, trials, strict=True)
            if len(curve) == n_steps
        ]
        compared = [curve[n_steps - 1] for curve in curves if len(curve) >= n_steps]
        for value, trial in running:
            if value == best(compared):
                assert not trial.should_prune()


@given(CURVES, st.floats(0.1, 10), st.floats(-50, 50))
def test_decisions_do_not_depend_on_unit_and_offset(
    curves: list[list[float]], factor: float, shift: float
) -> None:
    # Quarters and powers of two, so that rounding errors do not matter.
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
def test_an_argument_out_of_range_is_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlopePruner(**settings)


def branch(**changes: Any) -> dict[str, Any]:
    """Attributes of a branch that starts after epoch 10 and ends after epoch 14."""
    attrs = {"role": "branch", "cycle": 1, "parent": 3, "epoch": 10, "end": 14}
    return {attributes.PREFIX + key: value for key, value in (attrs | changes).items()}


WORSE = {10: 2.0, 11: 5.0, 12: 5.0}
BETTER = {10: 2.0, 11: 1.0, 12: 1.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"role": "startup"}, False),
        ({"cycle": 2}, False),
        ({"parent": 4}, False),
        ({"parent": None}, False),
    ],
)
def test_a_branch_is_compared_only_with_its_siblings(
    changes: dict[str, Any], expected: bool
) -> None:
    study = optuna.create_study(pruner=SlopePruner())
    # The trial is worse than the peer and better than the parent.
    start_running(study, {10: 9.0, 11: 1.0, 12: 1.0}, branch(**changes))
    own = start_running(study, {10: 9.0, 11: 5.0, 12: 5.0}, branch())
    assert own.should_prune() is expected


def test_a_branch_is_not_compared_with_trials_outside_of_the_run() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    add_finished(study, dict.fromkeys(range(20), 0.0))
    assert not start_running(study, {10: 9.0, 11: 5.0, 12: 5.0}, branch()).should_prune()


@pytest.mark.parametrize(("parent", "expected"), [(2.0, True), (9.0, False), (5.0, False)])
def test_a_branch_without_siblings_is_compared_with_its_parent(
    parent: float, expected: bool
) -> None:
    study = optuna.create_study(pruner=SlopePruner())
    own = start_running(study, {10: parent, 11: 5.0, 12: 5.0}, branch())
    assert own.should_prune() is expected


def test_a_trial_without_parent_and_siblings_is_not_pruned() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    assert not start_running(study, {1: 1.0, 2: 9.0}, branch(epoch=0, parent=None)).should_prune()


def test_a_branch_that_would_reach_its_sibling_is_not_pruned() -> None:
    values = {10: 2.0, 11: 5.0, 12: 3.0}  # It would be at -1 in epoch 14, and is at 3 in epoch 12.
    for end, expected in ((14, False), (12, True)):
        study = optuna.create_study(pruner=SlopePruner())
        start_running(study, BETTER, branch())
        assert start_running(study, values, branch(end=end)).should_prune() is expected


def test_the_parents_value_is_not_used_for_the_slope() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    start_running(study, BETTER, branch())
    # With the parent's value of 30, the line would fall steeply.
    assert start_running(study, {10: 30.0, 11: 5.0, 12: 5.0}, branch()).should_prune()


def test_a_branch_with_a_single_epoch_is_not_pruned() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    start_running(study, BETTER, branch())
    assert not start_running(study, {10: 2.0, 11: 50.0}, branch()).should_prune()


def test_decisions_do_not_depend_on_the_order_of_siblings() -> None:
    study = optuna.create_study(pruner=SlopePruner())
    values = [BETTER, WORSE, {10: 2.0, 11: 1.5, 12: 1.5}]
    trials = [start_running(study, v, branch()) for v in values]
    forward = [trial.should_prune() for trial in trials]
    backward = [trial.should_prune() for trial in reversed(trials)]
    assert forward == backward[::-1] == [False, True, True]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_hopeless_trials_of_an_ordinary_study_are_pruned_early(direction: str) -> None:
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


def test_a_trial_that_reached_infinity_is_pruned() -> None:
    assert is_pruned([5.0, math.inf], [[1.0, 1.0, 1.0]])
