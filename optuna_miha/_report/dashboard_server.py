"""Storages as a person names them, and a server of optuna-dashboard for one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from optuna_miha._history.attributes import CHECKPOINT_DIR
from optuna_miha._study.setup import checkpoint_folder
from optuna_miha.exceptions import StorageError

_SQLITE = b"SQLite format 3\x00"
_JOURNAL = b'{"op_code":'


def find_storage(reference: str) -> BaseStorage:
    """Open a storage that exists already.

    Args:
        reference:
            A URL as Optuna takes it, the path of an SQLite or journal file, or a folder with
            one such file.

    Raises:
        ValueError: If there is none, or a folder holds several.
        StorageError: If it cannot be read.
    """
    scheme, separator, rest = reference.partition("://")
    if not separator:
        with _in_words(reference):
            return _open_file(_only_file(Path(reference)))
    # Optuna would create the file of a misspelled URL.
    file = Path(rest.partition("?")[0].removeprefix("/"))
    if scheme.startswith("sqlite") and file.name not in ("", ":memory:") and not file.is_file():
        raise ValueError(f"The file of the storage must exist, got {reference!r}: {file} is none.")
    return open_storage(reference)


def open_storage(url: str) -> BaseStorage:
    """Open the storage of a URL, a new one if there is none.

    Raises:
        ValueError: If it is not the URL of a database.
        StorageError: If it cannot be read.
    """
    with _in_words(url):
        return get_storage(url)


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Say what SQLAlchemy has against a URL, which may hold a password and is not repeated."""
    from sqlalchemy.exc import ArgumentError, DBAPIError

    try:
        yield
    except ArgumentError as error:
        raise ValueError(
            "The storage must be the URL of a database that SQLAlchemy knows, got one that begins "
            f"with {url.partition('://')[0]!r}: write for instance sqlite:///run.db."
        ) from error
    except DBAPIError as error:
        said = f"{type(error.orig).__name__}: {str(error.orig).strip()}"
        raise StorageError(f"The storage cannot be opened. The database says: {said}.") from error


def load_study(name: str, storage: BaseStorage) -> optuna.Study:
    """Load a study by its name.

    Raises:
        ValueError: If the storage has none of this name.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"The study must be one of the storage's, {known}, got {name!r}.")
    return optuna.load_study(study_name=name, storage=storage)


def _only_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(
                f"The storage must be a URL, a file or a folder, got {str(path)!r}, which is "
                "none: write for instance sqlite:///run.db."
            )
        return path
    files = sorted(f for f in path.iterdir() if f.is_file() and _kind(f) is not None)
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise ValueError(
            f"The folder {path} must hold one SQLite or journal file, got {found}: name the file."
        )
    return files[0]


def _open_file(file: Path) -> BaseStorage:
    kind = _kind(file)
    if kind is None:
        raise ValueError(f"The storage must be an SQLite or a journal file, {file} is neither.")
    if kind == _SQLITE:
        return RDBStorage(f"sqlite:///{file}")
    return JournalStorage(JournalFileBackend(str(file)))


def _kind(file: Path) -> bytes | None:
    """How a file of studies begins; :obj:`None` for any other file."""
    with file.open("rb") as reader:
        start = reader.read(len(_SQLITE))
    return next((kind for kind in (_SQLITE, _JOURNAL) if start.startswith(kind)), None)


class RunArtifacts:
    """The artifacts of all runs of a storage, each of which has a folder of its own.

    Removing what is missing is no error: who deletes a study, and its folder before it, wants
    both gone.

    Args:
        storage: The storage. Studies that join it later count.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._studies = storage

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact wherever it is."""
        for store in self._stores():
            try:
                return store.open_reader(artifact_id)
            except ArtifactNotFound:
                continue
        raise ArtifactNotFound(f"No run of this storage has the artifact {artifact_id}.")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep a file that a person uploads, in the folder of the first run."""
        store = next(self._stores(), None)
        if store is None:
            raise FileNotFoundError("No study of this storage has a folder for files.")
        store.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Delete an artifact if there is one."""
        for store in self._stores():
            try:
                return store.remove(artifact_id)
            except ArtifactNotFound:
                continue

    def _stores(self) -> Iterator[FileSystemArtifactStore]:
        for name in optuna.get_all_study_names(self._studies):
            study = optuna.load_study(study_name=name, storage=self._studies)
            if CHECKPOINT_DIR in study.user_attrs:
                folder = checkpoint_folder(study)
                if folder.is_dir():
                    yield FileSystemArtifactStore(folder)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A line for every request would bury the address."""


def serve(storage: BaseStorage, *, port: int, announce: Callable[[str], None]) -> None:
    """Serve optuna-dashboard to this machine until it is interrupted.

    Args:
        storage: What it shows.
        port: Where it listens; 0: any free port.
        announce: Called with the address once it listens.

    Raises:
        ImportError: If optuna-dashboard is not installed.
        ValueError: If the port cannot be had.
    """
    try:
        dashboard = importlib.import_module("optuna_dashboard")
    except ImportError as error:
        raise ImportError(
            "The dashboard needs optuna-dashboard: pip install 'optuna-miha[dashboard]'."
        ) from error
    app = dashboard.wsgi(storage, artifact_store=RunArtifacts(storage))
    try:
        server = make_server("127.0.0.1", port, app, server_class=_Server, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"The port must be free, got {port} ({error}): pass another --port, or 0 for any."
        ) from error
    with server:
        announce(f"http://127.0.0.1:{server.server_port}/dashboard/")
        server.serve_forever()
