"""The folder in which a study keeps its checkpoints by default."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from pathlib import Path

import optuna

from optuna_miha._history import attributes
from optuna_miha._study.optuna_internals import is_in_memory, sqlite_file

_MAX_NAME_BYTES = 100
"""Maximum length of a folder's name. Common file systems allow 255 bytes."""


def checkpoint_folder(study: optuna.Study) -> Path:
    """The stored folder, or the default one if that is missing or the study is a copy."""
    stored = study.user_attrs.get(attributes.CHECKPOINT_DIR)
    if stored is None:
        return default_folder(study)
    folder = Path(stored)
    is_there = folder.is_dir()
    if sqlite_file(study) is not None:
        # Moved or copied together with the folder. An earlier version may have named it.
        for beside in (default_folder(study), default_folder(study).with_name(folder.name)):
            is_same_name = beside.parts[-2:] == folder.parts[-2:]
            if (is_same_name or not is_there) and beside.is_dir():
                return beside
    return folder if is_there else default_folder(study)


def default_folder(study: optuna.Study) -> Path:
    """The folder next to the SQLite file, a temporary one, or one in the working directory."""
    name = folder_name(study.study_name)
    file = sqlite_file(study)
    if file is not None:
        return file.with_name(folder_name(f"{file.stem}-checkpoints", is_safe=True)) / name
    if is_in_memory(study):
        folder = tempfile.mkdtemp(prefix="optuna-miha-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return Path("miha-checkpoints").absolute() / name


def folder_name(name: str, *, is_safe: bool = False) -> str:
    """A name for a folder: letters, digits and ``-_.``, and at most 100 bytes.

    A name that has to be changed gets a hash of the original, so that different names remain
    different.

    Args:
        name: Any text, such as the name of a study.
        is_safe: Whether all its characters are those of a file name.
    """
    safe = name if is_safe else "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    if not safe.strip("."):  # "." and ".." are other folders.
        safe = safe.replace(".", "_")
    content = safe.encode(errors="surrogateescape")
    if safe == name and len(content) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{content[: _MAX_NAME_BYTES - 9].decode(errors='ignore')}-{digest}"
