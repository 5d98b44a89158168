"""An SQLite storage with settings for long runs."""

from __future__ import annotations

import warnings
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage

_BUSY_TIMEOUT = 60
"""Seconds to wait for another process that writes: the dashboard, or a second run."""


def create_storage(
    path: str | PathLike[str], *, heartbeat_interval: int | None = 60
) -> RDBStorage:
    """Open an SQLite file as a storage, and create it if need be.

    The file is put into write-ahead mode: readers, such as optuna-dashboard, do not block the
    run, and a write takes a fraction of the time. The last writes before a power failure may be
    lost, the file stays whole, and the run resumes from what is there; a process that is killed
    loses nothing. Write-ahead mode needs a local disk: for a network file system, or for a
    study that several machines write to, use a database server.

    Args:
        path: The file, such as ``"run.db"``; its folder is created if need be.
        heartbeat_interval:
            Seconds after which a running trial tells that it is alive, so that other processes
            can know one whose process died; :obj:`None`: never.

    Returns:
        A storage for ``optuna.create_study(storage=...)``.

    Raises:
        ValueError: If ``path`` is a URL, or ``heartbeat_interval`` is not positive.
    """
    from sqlalchemy import event

    name = fspath(path)
    if "://" in name:
        raise ValueError(
            f"`path` must be the path of a file, got {name!r}: give a URL to "
            "`optuna.create_study(storage=...)` itself."
        )
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Whoever calls this did not choose the experimental argument.
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = RDBStorage(
            f"sqlite:///{name}",
            engine_kwargs={"connect_args": {"timeout": _BUSY_TIMEOUT}},
            heartbeat_interval=heartbeat_interval,
        )
    event.listen(storage.engine, "connect", _prepare)
    storage.engine.dispose()  # Connections made before know nothing of it.
    return storage


def _prepare(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
