"""Opening the store of a study's checkpoints, and making it independent of other studies."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from os import PathLike
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound

from optuna_miha._history import attributes
from optuna_miha._history.attribute_reader import is_file_name
from optuna_miha._history.error_text import describe_error
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.folders import Location, is_elsewhere, locate
from optuna_miha._study.optuna_internals import study_home

_logger = optuna.logging.get_logger("optuna.miha")


def check_one_store(artifact_store: Any, checkpoint_dir: str | PathLike[str] | None) -> None:
    """Refuse two places for the checkpoints.

    Raises:
        ValueError: If both a store and a folder are given.
    """
    if artifact_store is not None and checkpoint_dir is not None:
        raise ValueError(
            "Only one of `artifact_store` and `checkpoint_dir` can be given, got "
            f"{artifact_store!r} and {checkpoint_dir!r}: omit one of them."
        )


def open_store(
    study: optuna.Study,
    artifact_store: Any,
    checkpoint_dir: str | PathLike[str] | None,
    *,
    read_only: bool = False,
) -> CheckpointStore:
    """Open the store of the run's checkpoints.

    By default, checkpoints are in a folder next to the SQLite file, in a temporary folder for a
    study in memory, or in ``miha-checkpoints/`` in the working directory for any other storage.
    The study stores the path of the folder.

    A copy of a study becomes a run of its own when it is first opened for writing: it gets a new
    run id, and copies of the files that it refers to. The files of the original are only read.

    Args:
        study: The study.
        artifact_store: The artifact store given by the user, if any.
        checkpoint_dir: The folder given by the user, if any.
        read_only: Whether to write nothing.

    Raises:
        CheckpointError: If files of a copy cannot be copied.
        ValueError: If both a store and a folder are given.
    """
    check_one_store(artifact_store, checkpoint_dir)
    location = None if artifact_store is not None else locate(study, checkpoint_dir)
    if location is not None:
        artifact_store = FileSystemArtifactStore(location.folder)
    is_copy = is_elsewhere(study) if location is None else location.is_copy
    run_id = study.user_attrs.get(attributes.RUN)
    origin = None if location is None else _origin(location)
    store = CheckpointStore(artifact_store, run_id=run_id, is_own=not is_copy, origin=origin)
    if read_only:
        return store
    if location is not None:
        location.folder.mkdir(parents=True, exist_ok=True)
    if run_id is None:
        run_id = secrets.token_hex(4)
    elif is_copy:
        run_id = _copy_files(study, store, origin)
    attrs = {attributes.RUN: run_id}
    if location is not None:
        attrs[attributes.CHECKPOINT_DIR] = str(location.folder)
    attrs[attributes.HOME] = study_home(study)  # Last: until then, it counts as a copy.
    for key, value in attrs.items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)
    return CheckpointStore(artifact_store, run_id=run_id)


def _origin(location: Location) -> FileSystemArtifactStore | None:
    return None if location.origin is None else FileSystemArtifactStore(location.origin)


def _copy_files(
    study: optuna.Study, original: CheckpointStore, origin: FileSystemArtifactStore | None
) -> str:
    """Copy the files that a copied study refers to, under a new run id; returns the id.

    The id depends on storage and study only, so that an interrupted copy is completed.
    """
    run_id = hashlib.sha256(study_home(study).encode()).hexdigest()[:8]
    own = CheckpointStore(original.artifact_store, run_id=run_id)
    n_files = sum(own.copy_from(original, reference) for reference in _references(study))
    if origin is not None:
        _copy_artifacts(study, origin, own.artifact_store)
    _logger.info(
        f"The study {study.study_name!r} was copied from another one, or moved. It continues as a "
        f"run of its own, with copies of {n_files} files. The files of the original stay as they "
        "are."
    )
    return run_id


def _references(study: optuna.Study) -> Iterator[dict[str, Any]]:
    """The files of weights that the trials of a study refer to."""
    for trial in study.get_trials(deepcopy=False):
        for attr in trial.user_attrs.values():
            if isinstance(attr, dict) and is_file_name(str(attr.get("id"))):
                yield attr


def _copy_artifacts(study: optuna.Study, origin: FileSystemArtifactStore, own: Any) -> None:
    """Copy the files that are registered for optuna-dashboard, under the same names."""
    for meta in get_all_artifact_meta(study):
        try:
            with origin.open_reader(meta.artifact_id) as reader:
                own.write(meta.artifact_id, reader)
        except (ArtifactNotFound, OSError, ValueError) as error:  # The run does not need it.
            _logger.debug(
                f"The artifact {meta.artifact_id} was not copied: {describe_error(error)}."
            )
