"""Temporary and permanent failures of the database; branches that need too much memory."""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import services
from helpers.equality import same
from helpers.problems import SHORT, After, classifier, history, new_study, run, weights
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from torch import nn

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._study import checkpoint_store, retry
from optuna_miha._study.retention import Retention
from optuna_miha._training.out_of_memory import is_out_of_memory, release_memory
from optuna_miha.exceptions import StorageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgresql() -> Iterator[services.PostgreSQL]:
    """A separate cluster, which the tests stop and start."""
    with services.postgresql() as cluster:
        yield cluster


def after_failure(log: pytest.LogCaptureFixture, action: Callable[[], object]) -> None:
    """Call ``action`` after the run has logged a failure of its storage."""

    def watch() -> None:
        while "Retrying in" not in log.text:
            time.sleep(0.05)
        action()

    threading.Thread(target=watch, daemon=True).start()


def test_a_run_waits_for_a_server_that_restarts(
    postgresql: services.PostgreSQL,
    whole: miha.Result,
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def restart() -> None:
        postgresql.stop()
        after_failure(log, postgresql.start)

    with services.rdb_storage(postgresql.new_database()) as storage:
        study = new_study(storage)
        result = run(study, plan=SHORT, callbacks=[After(3, restart)], checkpoint_dir=tmp_path)
        assert not study.get_trials(states=(TrialState.RUNNING,))
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    assert "The storage has recovered" in log.text


@pytest.mark.long
def test_a_run_waits_for_a_file_that_is_moved_away_and_back(
    whole: miha.Result, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path, away = tmp_path / "study.db", tmp_path / "away.db"

    def move() -> None:
        path.rename(away)
        after_failure(log, lambda: away.rename(path))

    result = run(new_study(f"sqlite:///{path}"), plan=SHORT, callbacks=[After(3, move)])
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    assert "The storage has recovered" in log.text


def test_a_database_that_becomes_read_only_ends_the_run_with_its_own_message(
    postgresql: services.PostgreSQL,
    whole: miha.Result,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.1, 0.1))
    url = postgresql.new_database()
    name = url.rpartition("/")[2]

    def set_read_only(value: str) -> None:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(
                text(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
            )
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            connection.execute(
                text(f"{others} WHERE datname = '{name}' AND pid <> pg_backend_pid()")
            )
        engine.dispose()

    freeze = After(3, lambda: set_read_only("on"))
    with (
        services.rdb_storage(url) as storage,
        pytest.raises(StorageError, match=r"read-only transaction.*run the same script again"),
    ):
        run(new_study(storage), plan=SHORT, callbacks=[freeze], checkpoint_dir=tmp_path)
    set_read_only("off")
    with services.rdb_storage(url) as storage:
        result = run(new_study(storage), plan=SHORT)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_a_read_only_sqlite_file_is_refused_with_its_own_message(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    new_study(f"sqlite:///{path}")
    storage = f"sqlite:///file:{path}?mode=ro&uri=true"
    study = optuna.load_study(study_name="tiny", storage=storage, sampler=miha.MihaSampler(seed=0))
    with pytest.raises(StorageError, match="attempt to write a readonly database"):
        run(study, plan=SHORT)


def test_a_damaged_file_is_reported_with_the_message_of_the_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.db"
    study = new_study(f"sqlite:///{path}")
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    with path.open("r+b") as file:
        file.truncate(8192)
    for call in (run, lambda study: miha.load_result(study, classifier)):
        with pytest.raises(StorageError, match=r"failed: DatabaseError: .* malformed"):
            call(study)
    assert main(["clean", "tiny", "--storage", str(path)]) == 1
    assert "DatabaseError: database disk image is malformed" in capsys.readouterr().err


def test_a_clock_that_was_set_back_changes_nothing(whole: miha.Result, tmp_path: Path) -> None:
    path = tmp_path / "study.db"

    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        study.stop()

    run(new_study(f"sqlite:///{path}"), plan=SHORT, callbacks=[stop])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE trials SET datetime_start = '2999-01-01 00:00:00.000000'")
    connection.execute("UPDATE trials SET datetime_complete = '2999-01-02 00:00:00.000000'")
    connection.commit()
    connection.close()
    result = run(new_study(f"sqlite:///{path}"), plan=SHORT)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_a_checkpoint_that_is_damaged_during_the_run_is_trained_again(
    whole: miha.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoint_store.CheckpointStore.load
    damaged: list[Path] = []

    def damage() -> None:
        newest = max(tmp_path.glob("trunk-*.pt"), key=lambda path: path.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:50])
        damaged.append(newest)

    # Without states in memory, all of them are read from the disk.
    monkeypatch.setattr(
        Retention,
        "state",
        lambda self, segment, *, from_best: load(self._store, self._references[segment.number]),
    )
    study = new_study()
    result = run(study, plan=SHORT, callbacks=[After(1, damage)], checkpoint_dir=tmp_path)
    assert damaged
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


class MemoryHungryLoss(nn.Module):
    """A loss that needs a petabyte for batches larger than the initial ones."""

    def forward(self, output: Any, target: Any) -> Any:
        if len(target) > 16:
            torch.empty(10**15)
        return nn.functional.cross_entropy(output, target)


def memory_hungry(trial: Any) -> miha.Recipe:
    recipe = classifier(trial)
    recipe.valid_loss_fn, recipe.loss_fn = recipe.loss_fn, MemoryHungryLoss()
    recipe.batch_size = miha.suggest_batch_size(trial, initial=16)
    recipe.optimizer = miha.suggest_optimizer(trial, recipe.model.parameters())
    return recipe


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_branch_that_needs_too_much_memory_fails_alone(n_jobs: int, tmp_path: Path) -> None:
    plan = miha.Plan(
        90,
        startup=1,
        fixing_epochs=3,
        population_size=4,
        mutations=("batch_size", "lr"),
        anneal="cosine",
    )
    result = run(new_study(), memory_hungry, plan=plan, n_jobs=n_jobs)
    failed = [s for s in result.segments if s.state == TrialState.FAIL]
    assert failed
    assert {s.role for s in failed} <= {"branch", "restart"}
    assert all(s.params["batch_size"] > 16 for s in failed)
    assert not {s.number for s in failed} & {s.parent for s in result.segments}
    assert result.n_epochs_trained == 90


def test_the_memory_of_a_failed_computation_is_released() -> None:
    def compute() -> weakref.ref[nn.Module]:
        model = nn.Linear(3, 3)
        try:
            torch.empty(10**15)
        except RuntimeError as error:
            assert is_out_of_memory(error)
            errors.append(error)
        return weakref.ref(model)

    errors: list[RuntimeError] = []
    model = compute()
    assert model() is not None, "the traceback refers to it"
    release_memory(errors[0])
    assert model() is None


def test_other_errors_do_not_count_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(None)


@pytest.mark.long
def test_a_run_waits_thirty_seconds_for_its_database(whole: miha.Result, tmp_path: Path) -> None:
    path, away = tmp_path / "study.db", tmp_path / "away.db"

    def move() -> None:
        path.rename(away)
        threading.Timer(30.0, away.rename, [path]).start()

    start = time.monotonic()
    result = run(new_study(f"sqlite:///{path}"), plan=SHORT, callbacks=[After(3, move)])
    assert time.monotonic() - start > 30
    assert history(result) == history(whole)
