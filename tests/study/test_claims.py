"""Claims: which trials count after take-overs, and which settings are in force."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._history import attributes
from optuna_miha._study.claims import fence_of, fenced_trials, read_claims, read_settings
from optuna_miha._study.schema import check_study, read_lineage, read_lost
from optuna_miha.exceptions import RecordError


def key(claim: tuple[int, str]) -> str:
    return f"{attributes.CLAIM_PREFIX}{claim[0]}:{claim[1]}"


def trial(number: int, claim: str | None, state: TrialState = TrialState.FAIL) -> FrozenTrial:
    attrs = {} if claim is None else {attributes.CLAIM: claim}
    value = 1.0 if state == TrialState.COMPLETE else None
    made = create_trial(state=state, value=value, user_attrs=attrs)
    made.number = number
    return made


A, B, C = (1, "0" * 8), (2, "0" * 8), (2, "f" * 8)
NAMES = {claim: f"{claim[0]}:{claim[1]}" for claim in (A, B, C)}


class Simulation:
    """Coordinators that each act at any time, also after others have taken over."""

    def __init__(self) -> None:
        self.study = optuna.create_study()
        self.trials: list[FrozenTrial] = []
        self.holder: tuple[int, str] | None = None
        self.valid: set[int] = set()

    def take(self, claim: tuple[int, str]) -> None:
        self.study.set_user_attr(key(claim), {"fence": fence_of(self.trials)})
        self.holder = claim

    def start(self, claim: tuple[int, str] | None, state: TrialState) -> None:
        number = len(self.trials)
        self.trials.append(trial(number, None if claim is None else NAMES[claim], state))
        self._note(number, claim)

    def finish(self, number: int) -> None:
        if number < len(self.trials) and self.trials[number].state == TrialState.RUNNING:
            self.trials[number].state = TrialState.COMPLETE
            name = self.trials[number].user_attrs.get(attributes.CLAIM)
            claims = {text: claim for claim, text in NAMES.items()}
            self._note(number, None if name is None else claims[name])

    def _note(self, number: int, claim: tuple[int, str] | None) -> None:
        """What is finished while its coordinator holds the study is a part of the run."""
        is_finished = self.trials[number].state.is_finished()
        if is_finished and (claim or (0, "")) >= (self.holder or (0, "")):
            self.valid.add(number)


STATES = st.sampled_from([TrialState.COMPLETE, TrialState.RUNNING])
ACTIONS = st.lists(
    st.tuples(st.just("start"), st.sampled_from([None, A, B, C]), STATES)
    | st.tuples(st.just("finish"), st.integers(0, 12))
    | st.just(("take",)),
    max_size=30,
)


@given(ACTIONS)
def test_exactly_what_was_finished_under_its_claim_is_a_part_of_the_run(
    actions: list[tuple[Any, ...]],
) -> None:
    simulation, upcoming = Simulation(), [A, B, C]
    for kind, *arguments in actions:
        if kind == "take" and upcoming:
            simulation.take(upcoming.pop(0))
        elif kind == "start":
            claim = arguments[0]
            if claim is None or claim not in upcoming:  # It has taken the study at some time.
                simulation.start(*arguments)
        elif kind == "finish":
            simulation.finish(*arguments)
    fenced = fenced_trials(simulation.study, simulation.trials)
    finished = {t.number for t in simulation.trials if t.state.is_finished()}
    assert finished - fenced == simulation.valid


def test_a_claim_without_a_fence_excludes_nothing_and_is_in_force_for_nobody() -> None:
    study = optuna.create_study()
    study.set_user_attr(key(A), {"fence": fence_of([]), attributes.LOST: [3]})
    study.set_user_attr(key(C), {"beats": 1, attributes.LOST: [4]})
    assert not fenced_trials(study, [trial(0, NAMES[A])])
    assert read_lost(study) == (3,)


def test_settings_of_the_last_claim_are_in_force_whatever_an_earlier_one_writes() -> None:
    study = optuna.create_study()
    study.set_user_attr(attributes.LOST, [1])
    study.set_user_attr(attributes.KEEP, "all")
    assert read_settings(study.user_attrs)[attributes.LOST] == [1]
    fence = fence_of([])
    study.set_user_attr(key(B), {"fence": fence, attributes.LOST: [1, 2]})
    study.set_user_attr(key(A), {"fence": fence, attributes.LOST: [7], attributes.KEEP: "final"})
    study.set_user_attr(attributes.LOST, [8])
    assert read_settings(study.user_attrs) == {attributes.LOST: [1, 2]}


@pytest.mark.parametrize("name", ["3", "3:xyz", ":", "3:0123abcd:", "-1:0123abcd"])
def test_other_attributes_are_not_claims(name: str) -> None:
    study = optuna.create_study()
    study.set_user_attr(attributes.CLAIM_PREFIX + name, {"fence": 3})
    assert not read_claims(study.user_attrs)
    check_study(study)


@pytest.mark.parametrize(
    "fence", [3, [], {"n_trials": 3}, {"n_trials": -1, "unfinished": []}, {"unfinished": [0]}]
)
def test_an_invalid_fence_is_refused_by_the_claim(fence: Any) -> None:
    study = optuna.create_study()
    study.set_user_attr(key(A), {"fence": fence})
    if fence == {"n_trials": 3}:  # Without unfinished trials.
        check_study(study)
        return
    for call in (check_study, read_lineage):
        with pytest.raises(RecordError, match=f"of the claim {NAMES[A]} must be"):
            call(study)


@pytest.mark.parametrize("claim", [3, "3", "x:y", None])
def test_a_trial_of_an_invalid_claim_is_refused_by_its_number(claim: Any) -> None:
    study = optuna.create_study()
    study.set_user_attr(key(A), {"fence": fence_of([])})
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={attributes.CLAIM: claim}))
    with pytest.raises(RecordError, match="'miha:claim' of trial 0 must be"):
        read_lineage(study)
