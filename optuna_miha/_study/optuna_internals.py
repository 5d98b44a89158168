"""Everything that uses private API of Optuna.

``tests/study/test_optuna_internals.py`` fails when that API changes.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import optuna
from optuna import Study, Trial
from optuna.artifacts import FileSystemArtifactStore
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, PatientPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import GrpcStorageProxy, InMemoryStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._history.error_text import describe_error

_logger = optuna.logging.get_logger("optuna.miha")

_memory_ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Ids of the storages in the memory of this process."""


def is_default_sampler(sampler: BaseSampler) -> bool:
    """Whether ``sampler`` is the default of ``optuna.create_study()``.

    A sampler with a seed or any other changed setting was chosen by the user. A sampler that has
    drawn random numbers cannot be distinguished from a seeded one, and counts as chosen too.
    """
    if type(sampler) is not TPESampler or sampler._rng._rng is not None:
        return False
    default = TPESampler()
    estimators = [s._parzen_estimator_parameters for s in (sampler, default)]
    return _settings(sampler) == _settings(default) and estimators[0] == estimators[1]


def is_default_pruner(pruner: BasePruner) -> bool:
    """Whether ``pruner`` is the default of ``optuna.create_study()``."""
    return type(pruner) is MedianPruner and _settings(pruner) == _settings(MedianPruner())


def constraints_of(sampler: BaseSampler) -> Callable[[FrozenTrial], Sequence[float]] | None:
    """The ``constraints_func`` of a sampler, which it calls when a trial ends."""
    return getattr(sampler, "_constraints_func", None)


def wrapped_pruner(pruner: PatientPruner) -> BasePruner | None:
    """The pruner that a :class:`~optuna.pruners.PatientPruner` makes patient."""
    return pruner._wrapped_pruner


def is_in_memory(study: Study) -> bool:
    """Whether the study is in memory, and so lost when the process ends."""
    return isinstance(study._storage, InMemoryStorage)


def study_key(study: Study) -> tuple[int, int]:
    """A key that identifies the study within this process."""
    return id(study._storage), study._study_id


@contextmanager
def busy_timeout(study: Study, seconds: float) -> Iterator[None]:
    """Set how long an SQLite storage waits for other processes that write (default: 5 s).

    Args:
        study: The study. Without an SQLite storage, this does nothing.
        seconds: The busy timeout. A longer timeout of the storage is kept.
    """
    engine = _sqlite_engine(study)
    if engine is None:
        yield
        return
    from sqlalchemy import event

    def prepare(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        [current] = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute(f"PRAGMA busy_timeout={max(current, int(1000 * seconds))}")
        cursor.close()

    event.listen(engine, "checkout", prepare)
    try:
        yield
    finally:
        event.remove(engine, "checkout", prepare)


def sqlite_file(study: Study) -> Path | None:
    """The SQLite file of the study; :obj:`None` for any other storage."""
    engine = _sqlite_engine(study)
    if engine is None:
        return None
    database = (engine.url.database or "").removeprefix("file:")
    return Path(database).absolute() if database and database != ":memory:" else None


def _sqlite_engine(study: Study) -> Any:
    """The engine of an SQLite storage; :obj:`None` for any other storage."""
    storage = getattr(study._storage, "_backend", study._storage)
    if isinstance(storage, RDBStorage) and storage.engine.dialect.name == "sqlite":
        return storage.engine
    return None


def study_home(study: Study) -> str:
    """Identifies the study among all studies of all storages: 16 hexadecimal digits.

    A copy has another home. So has a study whose storage was moved, or is reached by another
    address. The digits contain neither the path nor the password of the storage.
    """
    text = f"{_storage_identity(study)} {study._study_id}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _storage_identity(study: Study) -> str:
    storage: Any = getattr(study._storage, "_backend", study._storage)
    file = sqlite_file(study)
    if file is not None:
        return f"sqlite {file.resolve()}"
    if is_in_memory(study) or _sqlite_engine(study) is not None:
        return f"memory {_memory_ids.setdefault(storage, uuid.uuid4().hex)}"
    if isinstance(storage, RDBStorage):
        url = storage.engine.url
        host = url.host or url.query.get("host") or url.query.get("unix_socket")
        return f"{url.get_backend_name()} {host} {url.port} {url.database}"
    if isinstance(storage, JournalFileBackend):
        return f"journal {Path(storage._file_path).resolve()}"
    if isinstance(storage, JournalRedisBackend):
        address = urlsplit(storage._url)
        return f"redis {address.hostname} {address.port} {address.path} {storage._prefix}"
    if isinstance(storage, GrpcStorageProxy):
        return f"grpc {storage._host} {storage._port}"
    return type(storage).__qualname__


def reconnect(study: Study) -> None:
    """Drop all connections to the database, so that the next call makes new ones.

    Raises:
        StorageInternalError: If the SQLite file is missing, because a new connection would create
            an empty file.
    """
    file = sqlite_file(study)
    if file is not None and not file.is_file():
        raise StorageInternalError(f"There is no file {file}.")
    storage = getattr(study._storage, "_backend", study._storage)
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def database_message(error: StorageInternalError) -> str:
    """The database's own message; Optuna's is the same for all failures."""
    cause = getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return describe_error(cause).strip().partition("\n")[0]


def start_trial(study: Study, *, start: datetime.datetime, **content: Any) -> Trial:
    """Write a running trial with its parameters and attributes in one transaction.

    After ``study.ask``, in contrast, each parameter and each attribute takes a transaction, and
    the trial is visible without them.

    Args:
        study: The study.
        start: Its start time.
        content: Arguments of :func:`optuna.trial.create_trial`.
    """
    return Trial(study, _add_trial(study, start, state=TrialState.RUNNING, **content))


def add_finished_trial(
    study: Study, *, start: datetime.datetime, state: TrialState, **content: Any
) -> FrozenTrial:
    """Write a finished trial in one transaction, and read it back; see :func:`start_trial`."""
    return study._storage.get_trial(_add_trial(study, start, state=state, **content))


def _add_trial(study: Study, start: datetime.datetime, **content: Any) -> int:
    template = create_trial(**content)
    template.datetime_start = start
    study._thread_local.cached_all_trials = None  # As `study.ask` and `study.tell` do.
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def set_system_attr(study: Study, trial: Trial, key: str, value: Any) -> None:
    """Set an attribute of a running trial that is not the user's."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


@contextmanager
def heartbeats(study: Study) -> Iterator[dict[int, Trial]]:
    """Record heartbeats of running trials if the storage has a ``heartbeat_interval``.

    Optuna does this only inside ``study.optimize``. The first heartbeat of a trial follows
    within an interval of its start.

    Yields:
        The running trials by number, which the caller keeps up to date.
    """
    running: dict[int, Trial] = {}
    storage = study._storage
    if not (isinstance(storage, BaseHeartbeat) and is_heartbeat_enabled(storage)):
        yield running
        return
    interval = storage.get_heartbeat_interval()
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(interval):
            for trial in list(running.values()):
                try:
                    storage.record_heartbeat(trial._trial_id)
                except Exception as error:  # The next heartbeat may succeed.
                    _logger.debug(
                        f"No heartbeat for trial {trial.number}: {describe_error(error)}."
                    )

    thread = threading.Thread(target=beat, name="optuna-miha-heartbeats", daemon=True)
    thread.start()
    try:
        yield running
    finally:
        stop.set()
        thread.join()


def unreadable_trial(study: Study) -> tuple[int, Exception] | None:
    """The first trial that Optuna cannot read, with the error; :obj:`None` if there is none.

    One invalid row makes ``study.get_trials`` fail, without a hint at the trial.
    """
    storage = study._storage
    for number in itertools.count():
        try:
            trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        except KeyError:
            return None
        try:
            storage.get_trial(trial_id)
        except OptunaError:
            raise
        except Exception as error:
            return number, error
    raise AssertionError("The numbers of trials are finite.")


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that ``study.enqueue_trial`` fixed for ``trial``."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def artifact_folder(artifact_store: Any) -> Path | None:
    """The folder of a :class:`~optuna.artifacts.FileSystemArtifactStore`."""
    if isinstance(artifact_store, FileSystemArtifactStore):
        return artifact_store._base_path
    return None


def is_plain_folder(artifact_store: Any) -> bool:
    """Whether a store writes the files of a folder, and does nothing else."""
    return type(artifact_store) is FileSystemArtifactStore


@contextmanager
def stoppable(study: Study) -> Iterator[None]:
    """Let callbacks call ``study.stop()``, as in ``study.optimize``."""
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
    """Call ``study.tell``, and ignore a stop that the sampler requests.

    Samplers that enumerate a finite space stop the study after the last point. The run still has
    to train with that point.
    """
    was_stopped = study._stop_flag
    try:
        return study.tell(trial, value, state)
    finally:
        study._stop_flag = was_stopped


def after_trial(study: Study, trial: Trial, state: TrialState, value: float | None) -> FrozenTrial:
    """Call the sampler's ``after_trial``, as ``study.tell`` does before it finishes a trial.

    Args:
        study: The study.
        trial: The trial, which is still running.
        state: Its final state.
        value: Its value; :obj:`None` if there is none.

    Returns:
        The trial with what the sampler stored in it.
    """
    study._thread_local.cached_all_trials = None
    was_stopped = study._stop_flag
    try:
        frozen = study._storage.get_trial(trial._trial_id)
        study.sampler.after_trial(study, frozen, state, None if value is None else [value])
    finally:
        study._stop_flag = was_stopped  # As in `tell`.
    return study._storage.get_trial(trial._trial_id)


def finish_trial(
    study: Study, trial: Trial, state: TrialState, value: float | None
) -> FrozenTrial:
    """Finish a trial for which :func:`after_trial` was called, as ``study.tell`` does then."""
    study._thread_local.cached_all_trials = None
    values = None if value is None else [value]
    study._storage.set_trial_state_values(trial._trial_id, state, values)
    return study._storage.get_trial(trial._trial_id)


def _settings(component: Any) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None))
    return {k: v for k, v in vars(component).items() if isinstance(v, plain)}
