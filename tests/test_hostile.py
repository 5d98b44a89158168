"""Attributes that no run wrote: a clear error, whatever they are, and an end."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from problems import classifier, new_study, run

import optuna_miha as miha
from optuna_miha import _keys
from optuna_miha._lineage import Lineage
from optuna_miha._record import FORMAT, read_lineage
from optuna_miha._segment import segment_of
from optuna_miha.exceptions import FormatError, MihaError, RecordError

TRIAL_KEYS = [
    _keys.ROLE,
    _keys.CYCLE,
    _keys.BRANCH,
    _keys.PARENT,
    _keys.BIRTH,
    _keys.TRAINED,
    _keys.FITNESS,
    _keys.MUTATION,
    _keys.TRAIN_LOSS,
    _keys.CHECKPOINT,
    _keys.MEMBER,
    _keys.AVERAGED,
]

HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.integers(-2, 9)
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["x" * 200_000, "trunk", "../../etc"]),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "sha256", "best_epoch", "value", "a"]), part, max_size=4
        )
    ),
    max_leaves=6,
)
"""Whatever JSON can hold."""


FILE = {"id": f"trunk-000-0-{12 * '0'}.pt", "sha256": 64 * "0"}


def attrs(number: int) -> dict[str, Any]:
    """Of a chain of segments of two epochs each."""
    return {
        _keys.ROLE: "trunk",
        _keys.CYCLE: number,
        _keys.BRANCH: 0,
        _keys.PARENT: number - 1 if number else None,
        _keys.BIRTH: 2 * number,
        _keys.TRAINED: 2,
        _keys.FITNESS: -1.0,
        _keys.CHECKPOINT: FILE | {"best_epoch": 2 * number + 1},
        _keys.MEMBER: FILE | {"value": 1.0},
    }


def trial(number: int, **changes: Any) -> FrozenTrial:
    made = create_trial(
        value=1.0,
        intermediate_values={2 * number + 1: 1.5, 2 * number + 2: 1.0},
        user_attrs=attrs(number) | changes,
    )
    made.number = number
    return made


def chain(changes: dict[int, dict[str, Any]]) -> list[FrozenTrial]:
    return [trial(number, **changes.get(number, {})) for number in range(4)]


def read_all(trials: list[FrozenTrial]) -> None:
    """All that a run asks of its record, unless it is refused in words."""
    try:
        lineage = Lineage.from_trials(StudyDirection.MINIMIZE, trials)
    except MihaError as error:
        assert "'miha:" in str(error)
        assert "trial " in str(error)
        assert len(str(error)) < 1_000
        return
    for segment in lineage:
        path = lineage.ancestry(segment)
        assert len(path) <= len(lineage)
        assert math.isfinite(float(segment.end))
        lineage.ranking(segment.role, segment.cycle)
        if segment.value is not None:
            assert isinstance(segment.last_score, float)
    lineage.best()
    lineage.library()
    lineage.best_before(3)


def check_any(changes: dict[int, dict[str, Any]]) -> None:
    read_all(chain(changes))


CHANGES = st.dictionaries(
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(TRIAL_KEYS), HOSTILE, max_size=3),
    max_size=2,
)


@given(CHANGES)
def test_whatever_stands_there_is_read_or_refused_by_name(
    changes: dict[int, dict[str, Any]],
) -> None:
    check_any(changes)


@pytest.mark.long
@settings(max_examples=20_000)
@given(CHANGES)
def test_whatever_stands_there_is_read_or_refused_by_name_at_length(
    changes: dict[int, dict[str, Any]],
) -> None:
    check_any(changes)


BAD: list[tuple[str, Any]] = [
    (_keys.ROLE, "king"),
    (_keys.ROLE, ["trunk"]),
    (_keys.CYCLE, 10**12),
    (_keys.CYCLE, "1"),
    (_keys.CYCLE, True),
    (_keys.BRANCH, -1),
    (_keys.BRANCH, 10**5000),
    (_keys.BIRTH, math.nan),
    (_keys.BIRTH, None),
    (_keys.TRAINED, 0),
    (_keys.TRAINED, 3),
    (_keys.TRAINED, 10**9),
    (_keys.TRAINED, 1e300),
    (_keys.FITNESS, "good"),
    (_keys.FITNESS, 10**400),
    (_keys.MUTATION, "x" * 10_000_000),
    (_keys.TRAIN_LOSS, [1.0, "x"]),
    (_keys.CHECKPOINT, "file.pt"),
    (_keys.CHECKPOINT, FILE),
    (_keys.CHECKPOINT, FILE | {"id": "x" * 10_000_000, "best_epoch": 1}),
    (_keys.CHECKPOINT, FILE | {"id": "../trunk-000-0-000000000000.pt", "best_epoch": 1}),
    (_keys.CHECKPOINT, FILE | {"id": "/etc/passwd", "best_epoch": 1}),
    (_keys.CHECKPOINT, FILE | {"id": "thesis.pt", "best_epoch": 1}),
    (_keys.CHECKPOINT, FILE | {"id": f"a\0-{12 * '0'}.pt", "best_epoch": 1}),
    (_keys.CHECKPOINT, FILE | {"id": 7, "best_epoch": 1}),
    (_keys.CHECKPOINT, FILE | {"sha256": "", "best_epoch": 1}),
    (_keys.CHECKPOINT, {"best_epoch": 1}),
    (_keys.MEMBER, FILE | {"value": math.nan}),
    (_keys.MEMBER, FILE | {"value": 1.0, "id": "~/.ssh/id_rsa"}),
    (_keys.AVERAGED, {"value": None}),
    (_keys.PARENT, 7),  # There is no such trial.
    (_keys.PARENT, 2),  # Itself.
    (_keys.PARENT, 3),  # Which descends from it.
    (_keys.PARENT, 0),  # Which ended earlier.
    (_keys.PARENT, "1"),
]


# Some are too long for the name of a test.
@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{k}-{n}" for n, (k, _) in enumerate(BAD)])
def test_a_bad_attribute_is_refused_with_its_trial_and_its_name(key: str, value: Any) -> None:
    with pytest.raises(RecordError) as caught:
        Lineage.from_trials(StudyDirection.MINIMIZE, chain({2: {key: value}}))
    assert "of trial 2" in str(caught.value) or "trial 2, " in str(caught.value)
    assert key in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_attribute_is_refused_too() -> None:
    made = trial(0)
    made.user_attrs = {k: v for k, v in made.user_attrs.items() if k != _keys.BIRTH}
    with pytest.raises(RecordError, match=r"'miha:epoch' of trial 0 must be there, got nothing"):
        segment_of(made)


def test_parents_in_a_circle_are_refused() -> None:
    ring = {n: {_keys.PARENT: (n + 1) % 4} for n in range(4)}
    with pytest.raises(RecordError, match="miha:parent"):
        Lineage.from_trials(StudyDirection.MINIMIZE, chain(ring))


def test_a_child_of_what_failed_is_refused() -> None:
    trials = chain({})
    trials[1].state, trials[1].values = TrialState.PRUNED, None
    with pytest.raises(RecordError, match="'miha:parent' of trial 2"):
        Lineage.from_trials(StudyDirection.MINIMIZE, trials)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (_keys.PLAN, ["no plan"]),
        (_keys.PLAN, {"n_epochs": -3}),
        (_keys.PLAN, {"n_aeons": 3}),
        (_keys.SPACE, {"lr": "a float"}),
        (_keys.SPACE, {"lr": 3}),
        (_keys.SPACE, "lr"),
        (_keys.STRETCHES, [{"start": 0}]),
        (_keys.STRETCHES, 3),
        (_keys.STRETCHES, [3]),
        (_keys.RUN_SEED, "0"),
        (_keys.RUN_SEED, -1),
        (_keys.INITIAL, [1]),
        (_keys.VERSIONS, "new"),
        (_keys.LOST, "3"),
        (_keys.LOST, [1.5]),
        (_keys.FORMAT, "1"),
        (_keys.FORMAT, math.nan),
    ],
)
def test_a_bad_attribute_of_the_study_is_refused_by_name(key: str, value: Any) -> None:
    study = optuna.create_study(study_name="mine")
    study.set_user_attr(key, value)
    for call in (read_lineage, lambda study: run(study)):
        with pytest.raises(RecordError) as caught:
            call(study)
        assert f"The attribute {key!r} of the study 'mine'" in str(caught.value)


@pytest.mark.parametrize(
    "key", [_keys.RUN_SEED, _keys.INITIAL, _keys.SPACE, _keys.VERSIONS, _keys.PLAN]
)
def test_a_study_that_lost_an_attribute_is_refused_by_its_name(
    key: str, finished: optuna.Study
) -> None:
    study = optuna.create_study(study_name="mine")
    for name, value in finished.user_attrs.items():
        if name != key:
            study.set_user_attr(name, value)
    study.add_trials(finished.get_trials())
    with pytest.raises(RecordError, match=rf"{key!r} of the study 'mine' must be there"):
        miha.load_result(study, classifier)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A short run that is over."""
    study = new_study()
    run(study, plan=miha.Plan.no_search(n_epochs=2), checkpoint_dir=tmp_path_factory.mktemp("run"))
    return study


def test_a_newer_format_is_refused_wherever_it_is_read() -> None:
    study = new_study()
    study.set_user_attr(_keys.FORMAT, FORMAT + 1)
    for call in (run, lambda study: miha.load_result(study, classifier)):
        with pytest.raises(FormatError, match=r"is of format 2; this version .* up to 1"):
            call(study)
    assert not study.trials
