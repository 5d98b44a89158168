"""Opening storages and studies by the names that a user passes on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from optuna_miha._history.error_text import describe_error, quoted
from optuna_miha.exceptions import StorageError

# The first bytes of a file.
_SQLITE = b"SQLite format 3\x00"
_JOURNAL = b'{"op_code":'


def find_storage(reference: str) -> BaseStorage:
    """Open an existing storage.

    Args:
        reference:
            A URL as Optuna takes it, the path of an SQLite or journal file, or a folder that
            contains one such file.

    Raises:
        ValueError: If the storage does not exist, or the folder contains several.
        StorageError: If the storage cannot be read.
    """
    scheme, separator, rest = reference.partition("://")
    if not separator:
        with _clear_errors(reference):
            return _open_file(_resolve_file(Path(reference)))
    # Optuna would create the file of a misspelled URL.
    file = Path(rest.partition("?")[0].removeprefix("/"))
    if scheme.startswith("sqlite") and file.name not in ("", ":memory:") and not file.is_file():
        raise ValueError(f"The file of the storage must exist, got {quoted(reference)}.")
    return open_storage(reference)


def open_storage(url: str) -> BaseStorage:
    """Open the storage at a URL; it is created if it does not exist.

    Raises:
        ValueError: If ``url`` is not the URL of a database.
        StorageError: If the storage cannot be read.
    """
    with _clear_errors(url):
        return get_storage(url)


def load_study(name: str, storage: BaseStorage) -> optuna.Study:
    """Load a study by its name.

    Raises:
        ValueError: If the storage contains no study with this name.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"The study must be one of those in the storage ({known}), got {name!r}.")
    return optuna.load_study(study_name=name, storage=storage)


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    """Explain errors of SQLAlchemy without repeating the URL, which may contain a password."""
    from sqlalchemy.exc import ArgumentError, DBAPIError

    try:
        yield
    except ArgumentError as error:
        raise ValueError(
            "The storage must be the URL of a database that SQLAlchemy supports, got one that "
            f"begins with {url.partition(':')[0]!r}: write for example sqlite:///run.db."
        ) from error
    except DBAPIError as error:
        reason = describe_error(error.orig) if error.orig else type(error).__name__
        raise StorageError(
            f"The storage cannot be opened: check that its folder or its server exists. The "
            f"database reports: {' '.join(reason.split())}"
        ) from error
    except ImportError as error:
        raise ImportError(
            f"The driver of the database is not installed ({error.__cause__ or error}): install "
            f"the package that SQLAlchemy uses for {url.partition(':')[0]!r}."
        ) from error


def _resolve_file(path: Path) -> Path:
    """The file itself, or the only storage file in a folder."""
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(
                f"The storage must be a URL, a file or a folder, got {quoted(str(path))}, which "
                "does not exist: write for example sqlite:///run.db."
            )
        return path
    files = sorted(f for f in path.iterdir() if f.is_file() and _file_type(f) is not None)
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise ValueError(
            f"The folder {path} must contain one SQLite or journal file, got {found}: pass the "
            "path of the file."
        )
    return files[0]


def _open_file(file: Path) -> BaseStorage:
    file_type = _file_type(file)
    if file_type is None:
        raise ValueError(
            f"The storage must be an SQLite or a journal file, {quoted(str(file))} is neither."
        )
    if file_type == _SQLITE:
        return RDBStorage(f"sqlite:///{file}")
    return JournalStorage(JournalFileBackend(str(file)))


def _file_type(file: Path) -> bytes | None:
    """The first bytes that identify a storage file; :obj:`None` for any other file."""
    with file.open("rb") as reader:
        start = reader.read(len(_SQLITE))
    return next((magic for magic in (_SQLITE, _JOURNAL) if start.startswith(magic)), None)
