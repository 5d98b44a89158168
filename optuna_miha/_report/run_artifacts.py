"""The artifacts of all runs in a storage, for optuna-dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from optuna_miha._history.attributes import CHECKPOINT_DIR
from optuna_miha._study.folders import locate


class RunArtifacts:
    """An artifact store over the folders of all runs in a storage.

    Removing a missing artifact is not an error, so that a study can be deleted after its folder.

    Args:
        storage: The storage. Studies that are added later are included.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._study_storage = storage

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact, whichever folder it is in."""
        for store in self._stores(origins=True):
            try:
                return store.open_reader(artifact_id)
            except ArtifactNotFound:
                continue
        raise ArtifactNotFound(f"No run of this storage has the artifact {artifact_id}.")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an uploaded file to the folder of the first run."""
        store = next(self._stores(), None)
        if store is None:
            raise FileNotFoundError("No study of this storage has a folder for files.")
        store.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Delete an artifact if it exists, and no other study of the storage refers to it."""
        if sum(self._refers(study, artifact_id) for study in self._studies()) > 1:
            return  # One study was copied from the other.
        for store in self._stores():
            try:
                return store.remove(artifact_id)
            except ArtifactNotFound:
                continue

    def _studies(self) -> Iterator[optuna.Study]:
        for name in optuna.get_all_study_names(self._study_storage):
            yield optuna.load_study(study_name=name, storage=self._study_storage)

    def _stores(self, *, origins: bool = False) -> Iterator[FileSystemArtifactStore]:
        """The folders of all runs; ``origins``: also those that copied studies only read."""
        for study in self._studies():
            if CHECKPOINT_DIR in study.user_attrs:
                location = locate(study)
                for folder in (location.folder, location.origin if origins else None):
                    if folder is not None and folder.is_dir():
                        yield FileSystemArtifactStore(folder)

    def _refers(self, study: optuna.Study, artifact_id: str) -> bool:
        owners: list[optuna.Study | FrozenTrial] = [study, *study.get_trials(deepcopy=False)]
        metas = [get_all_artifact_meta(owner, storage=self._study_storage) for owner in owners]
        return any(meta.artifact_id == artifact_id for found in metas for meta in found)
