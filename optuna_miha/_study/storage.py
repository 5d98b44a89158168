"""An SQLite storage with settings for long runs."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage

from optuna_miha._history.error_text import quoted
from optuna_miha._model.verbosity import ignored

_URL = re.compile(r"[A-Za-z]\w+(\+\w+)?:(/|.*@)")
"""A URL, possibly a misspelled one, but not a path with the letter of a drive."""

_BUSY_TIMEOUT = 60
"""Seconds to wait while another process writes, such as the dashboard or a second run."""


def create_storage(
    path: str | PathLike[str], *, heartbeat_interval: int | None = 60
) -> RDBStorage:
    """Open an SQLite file as a storage; create it if it does not exist.

    The file is set to write-ahead logging: readers such as optuna-dashboard do not block the run,
    and writes take a fraction of the time. After a power failure, the last writes may be missing,
    but the file is intact and the run resumes from it. A killed process loses nothing. Write-ahead
    logging needs a local disk. For a network file system, or if several machines write to the
    study, use a database server.

    Args:
        path: The file, such as ``"run.db"``. Its folder is created if it does not exist.
        heartbeat_interval:
            Seconds between two heartbeats of a running trial, by which other processes detect
            trials of dead processes. :obj:`None` disables heartbeats.

    Returns:
        A storage for ``optuna.create_study(storage=...)``.

    Raises:
        ValueError: If ``path`` is a URL, or ``heartbeat_interval`` is not positive.
    """
    from sqlalchemy import event

    name = fspath(path)
    if _URL.match(name):
        raise ValueError(
            f"`path` must be the path of a file, got {quoted(name)}: pass a URL directly to "
            "`optuna.create_study(storage=...)`."
        )
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with ignored(ExperimentalWarning):  # The caller did not choose the experimental argument.
        storage = RDBStorage(
            f"sqlite:///{name}",
            engine_kwargs={"connect_args": {"timeout": _BUSY_TIMEOUT}},
            heartbeat_interval=heartbeat_interval,
        )
    event.listen(storage.engine, "connect", _prepare)
    storage.engine.dispose()  # Existing connections lack these settings.
    return storage


def _prepare(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
