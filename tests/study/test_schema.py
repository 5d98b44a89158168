"""Attributes that no run has written raise a clear error, and never cause an endless loop."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from helpers.json_values import HOSTILE
from helpers.problems import classifier, new_study, run
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import segment_of
from optuna_miha._study.schema import FORMAT, read_lineage
from optuna_miha.exceptions import FormatError, MihaError, RecordError

TRIAL_KEYS = [
    attributes.ROLE,
    attributes.CYCLE,
    attributes.BRANCH,
    attributes.PARENT,
    attributes.BIRTH,
    attributes.TRAINED,
    attributes.FITNESS,
    attributes.MUTATION,
    attributes.TRAIN_LOSS,
    attributes.CHECKPOINT,
    attributes.MEMBER,
    attributes.AVERAGED,
]

FILE = {"id": f"trunk-000-0-{12 * '0'}.pt", "sha256": 64 * "0"}


def attrs(number: int) -> dict[str, Any]:
    """Attributes of a chain of segments with two epochs each."""
    return {
        attributes.ROLE: "trunk",
        attributes.CYCLE: number,
        attributes.BRANCH: 0,
        attributes.PARENT: number - 1 if number else None,
        attributes.BIRTH: 2 * number,
        attributes.TRAINED: 2,
        attributes.FITNESS: -1.0,
        attributes.CHECKPOINT: FILE | {"best_epoch": 2 * number + 1},
        attributes.MEMBER: FILE | {"value": 1.0},
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
    """Read everything that a run needs from its history, or get an error message."""
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


CHANGES = st.dictionaries(
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(TRIAL_KEYS), HOSTILE, max_size=3),
    max_size=2,
)


@pytest.mark.slow
@given(CHANGES)
def test_any_attribute_is_read_or_refused_by_name(changes: dict[int, dict[str, Any]]) -> None:
    read_all(chain(changes))


@pytest.mark.long
@settings(max_examples=20_000)
@given(CHANGES)
def test_any_attribute_is_read_or_refused_by_name_with_many_examples(
    changes: dict[int, dict[str, Any]],
) -> None:
    read_all(chain(changes))


BAD: list[tuple[str, Any]] = [
    (attributes.ROLE, "king"),
    (attributes.ROLE, ["trunk"]),
    (attributes.CYCLE, 10**12),
    (attributes.CYCLE, "1"),
    (attributes.CYCLE, True),
    (attributes.BRANCH, -1),
    (attributes.BRANCH, 10**5000),
    (attributes.BIRTH, math.nan),
    (attributes.BIRTH, None),
    (attributes.TRAINED, 0),
    (attributes.TRAINED, 3),
    (attributes.TRAINED, 10**9),
    (attributes.TRAINED, 1e300),
    (attributes.FITNESS, "good"),
    (attributes.FITNESS, 10**400),
    (attributes.MUTATION, "x" * 10_000_000),
    (attributes.TRAIN_LOSS, [1.0, "x"]),
    (attributes.CHECKPOINT, "file.pt"),
    (attributes.CHECKPOINT, FILE),
    (attributes.CHECKPOINT, FILE | {"id": "x" * 10_000_000, "best_epoch": 1}),
    (attributes.CHECKPOINT, FILE | {"id": "../trunk-000-0-000000000000.pt", "best_epoch": 1}),
    (attributes.CHECKPOINT, FILE | {"id": "/etc/passwd", "best_epoch": 1}),
    (attributes.CHECKPOINT, FILE | {"id": "thesis.pt", "best_epoch": 1}),
    (attributes.CHECKPOINT, FILE | {"id": f"a\0-{12 * '0'}.pt", "best_epoch": 1}),
    (attributes.CHECKPOINT, FILE | {"id": 7, "best_epoch": 1}),
    (attributes.CHECKPOINT, FILE | {"sha256": "", "best_epoch": 1}),
    (attributes.CHECKPOINT, {"best_epoch": 1}),
    (attributes.MEMBER, FILE | {"value": math.nan}),
    (attributes.MEMBER, FILE | {"value": 1.0, "id": "~/.ssh/id_rsa"}),
    (attributes.AVERAGED, {"value": None}),
    (attributes.PARENT, 7),  # A missing trial.
    (attributes.PARENT, 2),  # The trial itself.
    (attributes.PARENT, 3),  # Its child.
    (attributes.PARENT, 0),  # A trial that ends before the parent.
    (attributes.PARENT, "1"),
]


# Some values are too long for a test id.
@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{k}-{n}" for n, (k, _) in enumerate(BAD)])
def test_an_invalid_attribute_is_refused_with_its_trial_and_name(key: str, value: Any) -> None:
    with pytest.raises(RecordError) as caught:
        Lineage.from_trials(StudyDirection.MINIMIZE, chain({2: {key: value}}))
    assert "of trial 2" in str(caught.value) or "trial 2, " in str(caught.value)
    assert key in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_attribute_is_refused() -> None:
    made = trial(0)
    made.user_attrs = {k: v for k, v in made.user_attrs.items() if k != attributes.BIRTH}
    with pytest.raises(RecordError, match=r"'miha:epoch' of trial 0 must be present, got nothing"):
        segment_of(made)


def test_a_cycle_of_parents_is_refused() -> None:
    ring = {n: {attributes.PARENT: (n + 1) % 4} for n in range(4)}
    with pytest.raises(RecordError, match="miha:parent"):
        Lineage.from_trials(StudyDirection.MINIMIZE, chain(ring))


def test_a_child_of_a_pruned_trial_is_refused() -> None:
    trials = chain({})
    trials[1].state, trials[1].values = TrialState.PRUNED, None
    with pytest.raises(RecordError, match="'miha:parent' of trial 2"):
        Lineage.from_trials(StudyDirection.MINIMIZE, trials)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (attributes.PLAN, ["no plan"]),
        (attributes.PLAN, {"n_epochs": -3}),
        (attributes.PLAN, {"n_aeons": 3}),
        (attributes.SPACE, {"lr": "a float"}),
        (attributes.SPACE, {"lr": 3}),
        (attributes.SPACE, "lr"),
        (attributes.STRETCHES, [{"start": 0}]),
        (attributes.STRETCHES, 3),
        (attributes.STRETCHES, [3]),
        (attributes.RUN_SEED, "0"),
        (attributes.RUN_SEED, -1),
        (attributes.INITIAL, [1]),
        (attributes.VERSIONS, "new"),
        (attributes.LOST, "3"),
        (attributes.LOST, [1.5]),
        (attributes.FORMAT, "1"),
        (attributes.FORMAT, math.nan),
    ],
)
def test_an_invalid_attribute_of_the_study_is_refused_by_name(key: str, value: Any) -> None:
    study = optuna.create_study(study_name="mine")
    study.set_user_attr(key, value)
    for call in (read_lineage, lambda study: run(study)):
        with pytest.raises(RecordError) as caught:
            call(study)
        assert f"The attribute {key!r} of the study 'mine'" in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        attributes.RUN_SEED,
        attributes.INITIAL,
        attributes.SPACE,
        attributes.VERSIONS,
        attributes.PLAN,
    ],
)
def test_a_study_without_a_required_attribute_is_refused(key: str, finished: optuna.Study) -> None:
    study = optuna.create_study(study_name="mine")
    for name, value in finished.user_attrs.items():
        if name != key:
            study.set_user_attr(name, value)
    study.add_trials(finished.get_trials())
    with pytest.raises(RecordError, match=rf"{key!r} of the study 'mine' must be present"):
        miha.load_result(study, classifier)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A finished short run."""
    study = new_study()
    run(study, plan=miha.Plan.no_search(n_epochs=2), checkpoint_dir=tmp_path_factory.mktemp("run"))
    return study


def test_a_newer_format_is_refused_by_every_function_that_reads_it() -> None:
    study = new_study()
    study.set_user_attr(attributes.FORMAT, FORMAT + 1)
    for call in (run, lambda study: miha.load_result(study, classifier)):
        with pytest.raises(
            FormatError,
            match=rf"must be at most {FORMAT} for this version .* got {FORMAT + 1}\. Update",
        ):
            call(study)
    assert not study.trials
