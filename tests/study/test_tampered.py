"""Tampered studies: every entry point accepts them or raises an error with a clear message."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.json_values import HOSTILE
from helpers.problems import classifier, new_study, run
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import FrozenTrial

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._report.notes import study_note, trial_note
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.cleaning import clean
from optuna_miha._study.schema import read_lineage
from optuna_miha.exceptions import MihaError
from optuna_miha.visualization import (
    plot_lineage,
    plot_mutation_gains,
    plot_schedule,
    plot_training_history,
)

PLAN = miha.Plan(
    40, startup=1, fixing_epochs=3, population_size=2, restarts=False, anneal="cosine"
)

KEYS = sorted(
    {
        value
        for name, value in vars(attributes).items()
        if name.isupper() and isinstance(value, str) and value.startswith("miha:")
    }
)
"""Keys of trials and studies: a trial may have an attribute of a study, and vice versa."""

REMOVED = object()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A finished run with its checkpoints."""
    study = new_study()
    run(study, plan=PLAN, checkpoint_dir=tmp_path_factory.mktemp("trained"), keep="all")
    return study


Changes = dict[int, dict[str, Any]]
"""Attributes by trial number; -1 is the study."""

Check = Callable[..., None]

VALUES = HOSTILE | st.just(REMOVED)

CHANGES: st.SearchStrategy[Changes] = st.dictionaries(
    st.integers(-1, 4),
    st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2),
    min_size=1,
    max_size=2,
)

SCORES = st.dictionaries(
    st.integers(-2, 30),
    st.floats() | st.sampled_from([math.nan, math.inf, 1e308]),
    max_size=12,
)


def changed(attrs: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in (attrs | changes).items() if v is not REMOVED}


def tampered(
    study: optuna.Study, changes: Changes, scores: dict[int, dict[int, float]]
) -> optuna.Study:
    """A copy of the study with changed attributes and reported values."""
    copy = new_study()
    for key, value in changed(study.user_attrs, changes.get(-1, {})).items():
        copy.set_user_attr(key, value)
    for trial in study.get_trials(deepcopy=True):
        trial.user_attrs = changed(trial.user_attrs, changes.get(trial.number, {}))
        if trial.number in scores:
            trial.intermediate_values = scores[trial.number]
        copy.add_trial(trial)
    return copy


@contextmanager
def time_limit() -> Iterator[None]:
    """Fail endless loops."""

    def on_alarm(*_: object) -> None:
        pytest.fail("The call did not return within a minute.")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def stop(study: optuna.Study, trial: FrozenTrial) -> None:
    study.stop()


def clean_dry_run(study: optuna.Study, folder: Path) -> None:
    clean(study, CheckpointStore(FileSystemArtifactStore(folder)), dry_run=True)


def annotate(study: optuna.Study) -> None:
    lineage = read_lineage(study)
    if lineage.best() is not None:
        study_note(lineage, "/")
    for segment in lineage:
        trial_note(lineage, segment, "/", None)


@pytest.fixture(scope="module")
def check(trained: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Calls every entry point with a changed copy of the study."""
    return partial(check_entry_points, trained, tmp_path_factory.getbasetemp() / "copy")


def check_entry_points(
    study: optuna.Study, folder: Path, changes: Changes, scores: dict[int, dict[int, float]]
) -> None:
    origin = Path(study.user_attrs[attributes.CHECKPOINT_DIR])
    shutil.copytree(origin, folder)
    entry_points: list[Callable[[optuna.Study], Any]] = [
        partial(miha.load_result, model_fn=classifier, checkpoint_dir=folder),
        partial(clean_dry_run, folder=folder),
        annotate,
        plot_lineage,
        plot_schedule,
        plot_mutation_gains,
        plot_training_history,
        partial(run, plan=None, callbacks=[stop], checkpoint_dir=folder),
    ]
    try:
        copy = tampered(study, changes, scores)
        for entry_point in entry_points:
            try:
                with time_limit():
                    entry_point(copy)
            except (MihaError, TypeError, ValueError) as error:
                message = str(error)
                if not isinstance(error, MihaError):
                    assert "must" in message, f"{entry_point}: {message}"
                assert len(message) < 1_500
    finally:
        shutil.rmtree(folder)


CASES = {"changes": CHANGES, "scores": st.dictionaries(st.integers(0, 4), SCORES, max_size=1)}


@pytest.mark.slow
@given(**CASES)
@settings(max_examples=40)
def test_every_entry_point_reads_or_refuses_a_tampered_study(check: Check, **case: Any) -> None:
    check(**case)


@pytest.mark.long
@given(**CASES)
@settings(max_examples=1_500)
def test_every_entry_point_reads_or_refuses_many_tampered_studies(
    check: Check, **case: Any
) -> None:
    check(**case)
