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
from optuna_miha import _lineage
from optuna_miha._lineage import Lineage, segment_of
from optuna_miha._record import FORMAT, read_lineage
from optuna_miha.exceptions import FormatError, MihaError, RecordError

TRIAL_KEYS = [
    _lineage.ROLE,
    _lineage.CYCLE,
    _lineage.BRANCH,
    _lineage.PARENT,
    _lineage.BIRTH,
    _lineage.TRAINED,
    _lineage.FITNESS,
    _lineage.MUTATION,
    _lineage.TRAIN_LOSS,
    _lineage.CHECKPOINT,
    _lineage.MEMBER,
    _lineage.AVERAGED,
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
        _lineage.ROLE: "trunk",
        _lineage.CYCLE: number,
        _lineage.BRANCH: 0,
        _lineage.PARENT: number - 1 if number else None,
        _lineage.BIRTH: 2 * number,
        _lineage.TRAINED: 2,
        _lineage.FITNESS: -1.0,
        _lineage.CHECKPOINT: FILE | {"best_epoch": 2 * number + 1},
        _lineage.MEMBER: FILE | {"value": 1.0},
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
    (_lineage.ROLE, "king"),
    (_lineage.ROLE, ["trunk"]),
    (_lineage.CYCLE, 10**12),
    (_lineage.CYCLE, "1"),
    (_lineage.CYCLE, True),
    (_lineage.BRANCH, -1),
    (_lineage.BRANCH, 10**5000),
    (_lineage.BIRTH, math.nan),
    (_lineage.BIRTH, None),
    (_lineage.TRAINED, 0),
    (_lineage.TRAINED, 3),
    (_lineage.TRAINED, 10**9),
    (_lineage.TRAINED, 1e300),
    (_lineage.FITNESS, "good"),
    (_lineage.FITNESS, 10**400),
    (_lineage.MUTATION, "x" * 10_000_000),
    (_lineage.TRAIN_LOSS, [1.0, "x"]),
    (_lineage.CHECKPOINT, "file.pt"),
    (_lineage.CHECKPOINT, FILE),
    (_lineage.CHECKPOINT, FILE | {"id": "x" * 10_000_000, "best_epoch": 1}),
    (_lineage.CHECKPOINT, FILE | {"id": "../trunk-000-0-000000000000.pt", "best_epoch": 1}),
    (_lineage.CHECKPOINT, FILE | {"id": "/etc/passwd", "best_epoch": 1}),
    (_lineage.CHECKPOINT, FILE | {"id": "thesis.pt", "best_epoch": 1}),
    (_lineage.CHECKPOINT, FILE | {"id": f"a\0-{12 * '0'}.pt", "best_epoch": 1}),
    (_lineage.CHECKPOINT, FILE | {"id": 7, "best_epoch": 1}),
    (_lineage.CHECKPOINT, FILE | {"sha256": "", "best_epoch": 1}),
    (_lineage.CHECKPOINT, {"best_epoch": 1}),
    (_lineage.MEMBER, FILE | {"value": math.nan}),
    (_lineage.MEMBER, FILE | {"value": 1.0, "id": "~/.ssh/id_rsa"}),
    (_lineage.AVERAGED, {"value": None}),
    (_lineage.PARENT, 7),  # There is no such trial.
    (_lineage.PARENT, 2),  # Itself.
    (_lineage.PARENT, 3),  # Which descends from it.
    (_lineage.PARENT, 0),  # Which ended earlier.
    (_lineage.PARENT, "1"),
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
    made.user_attrs = {k: v for k, v in made.user_attrs.items() if k != _lineage.BIRTH}
    with pytest.raises(RecordError, match=r"'miha:epoch' of trial 0 must be there, got nothing"):
        segment_of(made)


def test_parents_in_a_circle_are_refused() -> None:
    ring = {n: {_lineage.PARENT: (n + 1) % 4} for n in range(4)}
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
        (_lineage.PLAN, ["no plan"]),
        (_lineage.PLAN, {"n_epochs": -3}),
        (_lineage.PLAN, {"n_aeons": 3}),
        (_lineage.SPACE, {"lr": "a float"}),
        (_lineage.SPACE, {"lr": 3}),
        (_lineage.SPACE, "lr"),
        (_lineage.STRETCHES, [{"start": 0}]),
        (_lineage.STRETCHES, 3),
        (_lineage.STRETCHES, [3]),
        (_lineage.RUN_SEED, "0"),
        (_lineage.RUN_SEED, -1),
        (_lineage.INITIAL, [1]),
        (_lineage.VERSIONS, "new"),
        (_lineage.LOST, "3"),
        (_lineage.LOST, [1.5]),
        (_lineage.FORMAT, "1"),
        (_lineage.FORMAT, math.nan),
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
    "key", [_lineage.RUN_SEED, _lineage.INITIAL, _lineage.SPACE, _lineage.VERSIONS, _lineage.PLAN]
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
    study.set_user_attr(_lineage.FORMAT, FORMAT + 1)
    for call in (run, lambda study: miha.load_result(study, classifier)):
        with pytest.raises(FormatError, match=r"is of format 2; this version .* up to 1"):
            call(study)
    assert not study.trials
