"""The SQLite storage with settings for long runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.problems import classifier, new_study, run
from optuna.trial import TrialState
from sqlalchemy import event, text

import optuna_miha as miha


def pragma(storage: Any, name: str) -> Any:
    with storage.engine.connect() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar()


def test_the_file_uses_write_ahead_logging(tmp_path: Path) -> None:
    storage = miha.create_storage(tmp_path / "new" / "run.db")
    assert pragma(storage, "journal_mode") == "wal"
    assert pragma(storage, "synchronous") == 1  # NORMAL
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(pragma(storage, "synchronous")))
    thread.start()
    thread.join()
    assert values == [1], "connections of other threads have the setting too"


@pytest.mark.slow
def test_the_file_is_a_regular_storage(tmp_path: Path) -> None:
    study = new_study(miha.create_storage(str(tmp_path / "run.db")))
    result = run(study)
    plain = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path}/run.db")
    assert plain.best_value == result.value
    assert (tmp_path / "run-checkpoints" / "tiny").is_dir()


def test_an_existing_file_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/run.db"
    optuna.create_study(study_name="old", storage=url)
    storage = miha.create_storage(tmp_path / "run.db")
    assert optuna.get_all_study_names(storage) == ["old"]


def test_a_url_is_refused() -> None:
    with pytest.raises(ValueError, match=r"path of a file, got 'sqlite:///run\.db'"):
        miha.create_storage("sqlite:///run.db")


def test_a_heartbeat_interval_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="heartbeat_interval"):
        miha.create_storage(tmp_path / "run.db", heartbeat_interval=0)


def commits_of_a_run(storage: Any, n_others: int) -> int:
    """Count the transactions of a run in a study with other trials."""
    study = new_study(storage)
    study.add_trials([optuna.trial.create_trial(value=9.0)] * n_others)
    commits: list[Any] = []
    event.listen(storage.engine, "commit", commits.append)
    result = run(study)
    n_trials = len(study.trials) - n_others
    # One for each report and for the start and end of a trial, a few for its attributes, and as
    # many reads of the claims: a coordinator makes sure before it writes that it still holds one.
    # Two are for the note of optuna-dashboard.
    assert len(commits) < result.n_epochs_trained + 23 * n_trials
    return len(commits)


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_takes_few_transactions_in_a_study_of_any_size(tmp_path: Path) -> None:
    empty = commits_of_a_run(miha.create_storage(tmp_path / "empty.db"), 0)
    full = commits_of_a_run(miha.create_storage(tmp_path / "full.db"), 200)
    # The figures and notes of optuna-dashboard are written at intervals of time.
    assert abs(full - empty) < 20


def count_heartbeats(storage: Any) -> int:
    with storage.engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM trial_heartbeats")).scalar() or 0)


@pytest.mark.slow
def test_a_long_trial_records_heartbeats(tmp_path: Path) -> None:
    storage = miha.create_storage(tmp_path / "run.db", heartbeat_interval=1)
    seen = threading.Event()

    def wait_for_heartbeat(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)

        def loss(output: Any, target: Any) -> Any:
            while not seen.is_set():
                if count_heartbeats(storage):
                    seen.set()
                seen.wait(0.1)
            return recipe_loss(output, target)

        recipe_loss, is_training = recipe.loss_fn, isinstance(trial, optuna.trial.FixedTrial)
        if is_training and new_study(storage).get_trials(states=(TrialState.RUNNING,)):
            recipe.loss_fn = loss
        return recipe

    run(new_study(storage), wait_for_heartbeat, plan=miha.Plan(24, startup=1, anneal="cosine"))
    assert seen.is_set()
    assert not [t for t in threading.enumerate() if "heartbeats" in t.name]


@pytest.mark.slow
def test_without_an_interval_no_heartbeats_are_recorded(tmp_path: Path) -> None:
    storage = miha.create_storage(tmp_path / "run.db", heartbeat_interval=None)
    run(new_study(storage), plan=miha.Plan(24, startup=1, anneal="cosine"))
    assert count_heartbeats(storage) == 0
