"""The folder in which a study keeps its checkpoints by default."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path

import optuna

from optuna_miha._history import attributes
from optuna_miha._study.optuna_internals import is_in_memory, sqlite_file, study_home

_MAX_NAME_BYTES = 100
"""Maximum length of a folder's name. Common file systems allow 255 bytes."""


_TEMPORARY = "optuna-miha-"


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where the checkpoints of a study are.

    Args:
        folder: The folder to write to.
        origin: The folder of the study that this one was copied from, if it is another one. It
            is only read.
        is_copy: Whether the files that the study refers to may belong to another study.
    """

    folder: Path
    origin: Path | None = None
    is_copy: bool = False


def locate(study: optuna.Study, checkpoint_dir: str | PathLike[str] | None = None) -> Location:
    """Find the folder of a study.

    The study stores the path of its folder. If the study was moved or copied, this may be the
    folder of another study, and the default folder next to the study comes first.

    Args:
        study: The study.
        checkpoint_dir: The folder given by the user, if any.
    """
    attr = study.user_attrs.get(attributes.CHECKPOINT_DIR)
    stored = None if attr is None else Path(attr)
    has_moved = is_elsewhere(study)
    if checkpoint_dir is not None:
        folder = Path(checkpoint_dir).absolute()
        origin = stored if has_moved and stored != folder else None
        return Location(folder=folder, origin=origin, is_copy=has_moved)
    default = _default_folder(study)
    if stored is None:
        return Location(folder=default, is_copy=has_moved)
    is_there = stored.is_dir()
    if not has_moved and not _is_default_of_another(study, stored):
        return Location(folder=stored if is_there else default)
    if is_there and not _is_default(stored):  # The user chose it.
        return Location(folder=stored, is_copy=True)
    # An earlier version may have given the folder another name.
    candidates = (default, default.with_name(stored.name))
    beside = [path for path in candidates if path != stored and path.is_dir()]
    folder = beside[0] if beside else default
    if beside and not is_there:  # Moved together with the study.
        return Location(folder=folder)
    return Location(folder=folder, origin=stored if stored != folder else None, is_copy=True)


def is_elsewhere(study: optuna.Study) -> bool:
    """Whether the study was written in another place, which it was moved or copied from."""
    home = study_home(study)
    return bool(study.user_attrs.get(attributes.HOME, home) != home)


def _is_default_of_another(study: optuna.Study, stored: Path) -> bool:
    """Whether the stored folder is the default one of another study.

    This is how a copy is recognized if an earlier version, which did not store the home of a
    study, wrote it.
    """
    if attributes.HOME in study.user_attrs or not _is_default(stored):
        return False
    default = _default_folder(study)
    names = (default.name, _safe(study.study_name))
    if sqlite_file(study) is None:
        return stored.name not in names
    return stored not in [default.with_name(name) for name in names]


def _is_default(folder: Path) -> bool:
    """Whether a folder has the form of the default one."""
    is_temporary = folder.name.startswith(_TEMPORARY)
    return is_temporary or folder.parent.name.endswith("-checkpoints")


def _default_folder(study: optuna.Study) -> Path:
    """The folder next to the SQLite file, a temporary one, or one in the working directory."""
    name = folder_name(study.study_name)
    file = sqlite_file(study)
    if file is not None:
        return file.with_name(f"{folder_name(file.stem, is_safe=True)}-checkpoints") / name
    if is_in_memory(study):
        return _temporary_folder(study_home(study))
    return Path("miha-checkpoints").absolute() / name


@cache
def _temporary_folder(home: str) -> Path:
    """The folder of a study in memory, which is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix=_TEMPORARY)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _safe(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    return safe if safe.strip(".") else safe.replace(".", "_")  # "." and ".." are other folders.


def folder_name(name: str, *, is_safe: bool = False) -> str:
    """A name for a folder: letters, digits and ``-_.``, and at most 100 bytes.

    A name that has to be changed gets a hash of the original, so that different names remain
    different.

    Args:
        name: Any text, such as the name of a study.
        is_safe: Whether all its characters are those of a file name.
    """
    safe = name if is_safe else _safe(name)
    content = safe.encode(errors="surrogateescape")
    if safe == name and len(content) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{content[: _MAX_NAME_BYTES - 9].decode(errors='ignore')}-{digest}"
