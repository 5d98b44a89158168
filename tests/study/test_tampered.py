"""Whole studies that somebody wrote into: every door refuses them in words, or gets through."""

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
from optuna_miha._report.dashboard import note
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

PLAN = miha.Plan(40, startup=1, fixing_epochs=3, population_size=2, restarts=False)

TRIAL_KEYS = sorted(
    {
        value
        for name, value in vars(attributes).items()
        if name.isupper() and isinstance(value, str) and value.startswith("miha:")
    }
)
"""Those of trials and studies alike: each may stand in the wrong place."""

GONE = object()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A run that is over, with its checkpoints."""
    study = new_study()
    run(study, plan=PLAN, checkpoint_dir=tmp_path_factory.mktemp("trained"), keep="all")
    return study


Changes = dict[int, dict[str, Any]]
"""Attributes by trial; those of the study at -1."""

Check = Callable[..., None]

VALUES = HOSTILE | st.just(GONE)

CHANGES: st.SearchStrategy[Changes] = st.dictionaries(
    st.integers(-1, 4),
    st.dictionaries(st.sampled_from(TRIAL_KEYS), VALUES, min_size=1, max_size=2),
    min_size=1,
    max_size=2,
)

SCORES = st.dictionaries(
    st.integers(-2, 30),
    st.floats() | st.sampled_from([math.nan, math.inf, 1e308]),
    max_size=12,
)


def changed(attrs: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in (attrs | changes).items() if v is not GONE}


def tampered(
    study: optuna.Study, changes: Changes, scores: dict[int, dict[int, float]]
) -> optuna.Study:
    """A copy with other attributes, and other values reported."""
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
def soon() -> Iterator[None]:
    """An end to endless loops."""

    def over(*_: object) -> None:
        pytest.fail("It did not come to an end.")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def stop(study: optuna.Study, trial: FrozenTrial) -> None:
    study.stop()


def tidy(study: optuna.Study, folder: Path) -> None:
    clean(study, CheckpointStore(FileSystemArtifactStore(folder)), dry_run=True)


def annotate(study: optuna.Study) -> None:
    lineage = read_lineage(study)
    if lineage.best() is not None:
        note(lineage)


@pytest.fixture(scope="module")
def check(trained: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Every door: each takes what it is given, or says in words what it would need."""
    return partial(try_doors, trained, tmp_path_factory.getbasetemp() / "copy")


def try_doors(
    study: optuna.Study, folder: Path, changes: Changes, scores: dict[int, dict[int, float]]
) -> None:
    origin = Path(study.user_attrs[attributes.CHECKPOINT_DIR])
    shutil.copytree(origin, folder)
    doors: list[Callable[[optuna.Study], Any]] = [
        partial(miha.load_result, model_fn=classifier, checkpoint_dir=folder),
        partial(tidy, folder=folder),
        annotate,
        plot_lineage,
        plot_schedule,
        plot_mutation_gains,
        plot_training_history,
        partial(run, plan=None, callbacks=[stop], checkpoint_dir=folder),
    ]
    try:
        copy = tampered(study, changes, scores)
        for door in doors:
            try:
                with soon():
                    door(copy)
            except (MihaError, TypeError, ValueError) as error:
                said = str(error)
                if not isinstance(error, MihaError):
                    assert "must" in said, f"{door}: {said}"
                assert len(said) < 1_500
    finally:
        shutil.rmtree(folder)


CASES = {"changes": CHANGES, "scores": st.dictionaries(st.integers(0, 4), SCORES, max_size=1)}


@given(**CASES)
@settings(max_examples=40)
def test_every_door_refuses_in_words_what_it_cannot_read(check: Check, **case: Any) -> None:
    check(**case)


@pytest.mark.long
@given(**CASES)
@settings(max_examples=1_500)
def test_every_door_refuses_in_words_what_it_cannot_read_at_length(
    check: Check, **case: Any
) -> None:
    check(**case)
