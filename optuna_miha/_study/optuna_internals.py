"""The only module that touches what Optuna does not promise to keep.

``tests/test_optuna_internals.py`` fails when any of it changes.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.artifacts import FileSystemArtifactStore
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.trial import FrozenTrial, TrialState, create_trial

_logger = optuna.logging.get_logger("optuna.miha")


def is_default_sampler(sampler: BaseSampler) -> bool:
    """Whether ``sampler`` is what ``optuna.create_study()`` makes when given none.

    A sampler with a seed, or any other setting that differs, is the user's choice, and so is
    one that has drawn random numbers already, which looks the same as a seeded one.
    """
    if type(sampler) is not TPESampler or sampler._rng._rng is not None:
        return False
    default = TPESampler()
    estimator, usual = (s._parzen_estimator_parameters for s in (sampler, default))
    return _settings(sampler) == _settings(default) and estimator == usual


def is_default_pruner(pruner: BasePruner) -> bool:
    """Whether ``pruner`` is what ``optuna.create_study()`` makes when given none."""
    return type(pruner) is MedianPruner and _settings(pruner) == _settings(MedianPruner())


def is_in_memory(study: Study) -> bool:
    """Whether the study ends with the process."""
    return isinstance(study._storage, InMemoryStorage)


def study_key(study: Study) -> tuple[int, int]:
    """Tells a study from all others that this process has open."""
    return id(study._storage), study._study_id


@contextmanager
def busy_timeout(study: Study, seconds: float) -> Iterator[None]:
    """Let an SQLite storage wait for other processes that write, five seconds being its default.

    Args:
        study: The study; nothing is done unless it lies in a file of SQLite.
        seconds: How long. A storage that waits longer already keeps to that.
    """
    storage = getattr(study._storage, "_backend", study._storage)
    if not isinstance(storage, RDBStorage) or storage.engine.dialect.name != "sqlite":
        yield
        return
    from sqlalchemy import event

    def prepare(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        [present] = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute(f"PRAGMA busy_timeout={max(present, int(1000 * seconds))}")
        cursor.close()

    event.listen(storage.engine, "checkout", prepare)
    try:
        yield
    finally:
        event.remove(storage.engine, "checkout", prepare)


def sqlite_file(study: Study) -> Path | None:
    """The SQLite file that holds the study; :obj:`None` for any other storage."""
    storage = getattr(study._storage, "_backend", study._storage)
    if not isinstance(storage, RDBStorage) or storage.engine.dialect.name != "sqlite":
        return None
    database = (storage.engine.url.database or "").removeprefix("file:")
    return Path(database).absolute() if database and database != ":memory:" else None


def reconnect(study: Study) -> None:
    """Drop all connections to a database that failed; the next call makes new ones.

    Raises:
        StorageInternalError: If it is an SQLite file that is not there. To connect would create
            an empty one in its place.
    """
    file = sqlite_file(study)
    if file is not None and not file.is_file():
        raise StorageInternalError(f"There is no file {file}.")
    storage = getattr(study._storage, "_backend", study._storage)
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def reason_of(error: StorageInternalError) -> str:
    """What a database said; Optuna's own words hold for any failure of it."""
    cause = getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"


def start_trial(study: Study, *, start: datetime.datetime, **content: Any) -> Trial:
    """A running trial with all that is known of it, written in one transaction.

    ``study.ask`` writes each parameter and each attribute by a transaction of its own, and for
    a moment the trial exists without them.

    Args:
        study: The study.
        start: When it started.
        content: As of :func:`optuna.trial.create_trial`.
    """
    return Trial(study, _add_trial(study, start, state=TrialState.RUNNING, **content))


def add_finished_trial(
    study: Study, *, start: datetime.datetime, state: TrialState, **content: Any
) -> FrozenTrial:
    """A finished trial, written in one transaction, and read back.

    Args:
        study: The study.
        start: When it started.
        state: What became of it.
        content: As of :func:`optuna.trial.create_trial`.
    """
    return study._storage.get_trial(_add_trial(study, start, state=state, **content))


def _add_trial(study: Study, start: datetime.datetime, **content: Any) -> int:
    template = create_trial(**content)
    template.datetime_start = start
    study._thread_local.cached_all_trials = None  # As `study.ask` and `study.tell` do.
    return study._storage.create_new_trial(study._study_id, template_trial=template)


@contextmanager
def heartbeats(study: Study) -> Iterator[dict[int, Trial]]:
    """Beat for running trials, where the storage was made with a ``heartbeat_interval``.

    Optuna does so inside of ``study.optimize`` only. A trial beats for the first time when it
    is one interval old.

    Yields:
        A dictionary to be kept up to date: the running trials by number.
    """
    running: dict[int, Trial] = {}
    storage = study._storage
    if not (isinstance(storage, BaseHeartbeat) and is_heartbeat_enabled(storage)):
        yield running
        return
    interval = storage.get_heartbeat_interval()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(interval):
            for trial in list(running.values()):
                try:
                    storage.record_heartbeat(trial._trial_id)
                except Exception as error:  # The next one may get through.
                    _logger.debug(f"No heartbeat for trial {trial.number}: {error!r}.")

    thread = threading.Thread(target=beat, name="optuna-miha-heartbeats", daemon=True)
    thread.start()
    try:
        yield running
    finally:
        over.set()
        thread.join()


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that ``study.enqueue_trial`` fixed for ``trial``."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def artifact_folder(artifact_store: Any) -> Path | None:
    """The folder of a :class:`~optuna.artifacts.FileSystemArtifactStore`."""
    if isinstance(artifact_store, FileSystemArtifactStore):
        return artifact_store._base_path
    return None


@contextmanager
def stoppable(study: Study) -> Iterator[None]:
    """Let callbacks call ``study.stop()``, as they may inside ``study.optimize``."""
    if study._thread_local.in_optimize_loop:
        raise RuntimeError("A study cannot be optimized inside its own optimization.")
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


def is_stopped(study: Study) -> bool:
    """Whether a callback called ``study.stop()``."""
    return study._stop_flag


def tell(
    study: Study,
    trial: Trial | int,
    value: float | None = None,
    state: TrialState | None = None,
) -> FrozenTrial:
    """``study.tell``, without the stop that a sampler may ask for when it is told.

    Those that go through a finite space stop the study once they are through. What they have
    proposed is then still to be trained on.
    """
    was_stopped = study._stop_flag
    try:
        return study.tell(trial, value, state)
    finally:
        study._stop_flag = was_stopped


def _settings(component: Any) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None))
    return {k: v for k, v in vars(component).items() if isinstance(v, plain)}
