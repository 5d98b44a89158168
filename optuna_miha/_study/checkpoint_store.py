"""Where checkpoints are kept: an artifact store of Optuna's, and a hash for each."""

from __future__ import annotations

import hashlib
import io
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import optuna
import torch
from optuna.artifacts.exceptions import ArtifactNotFound

from optuna_miha._history.attribute_reader import is_file_name
from optuna_miha._study.optuna_internals import artifact_folder
from optuna_miha._training.state import State
from optuna_miha.exceptions import CheckpointError, CheckpointLostError

_logger = optuna.logging.get_logger("optuna.miha")

_T = TypeVar("_T")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before a store that failed is tried again. Somebody may be making room, and a network
may come back; what lasts longer is better told than waited for."""

_REDO = (
    "call `optuna_miha.optimize` on the study with the same arguments: it goes back to what is "
    "whole, and trains the rest again."
)


class CheckpointStore:
    """Checkpoints in an Optuna artifact store, each with its hash.

    Args:
        artifact_store: Any object with ``write``, ``open_reader`` and ``remove`` of
            :class:`optuna.artifacts.ArtifactStore`: a folder, S3 or GCS.
    """

    def __init__(self, artifact_store: Any) -> None:
        self._artifact_store = artifact_store

    @property
    def artifact_store(self) -> Any:
        """The store that it keeps them in."""
        return self._artifact_store

    def save(self, state: State, label: str) -> dict[str, str]:
        """Write a checkpoint under a fresh id.

        Args:
            state: What to write.
            label: Beginning of the id, for whoever looks into the store.

        Returns:
            ``{"id": …, "sha256": …}``: what :meth:`load` needs. It is meant for an attribute
            of the trial, set only once this returned, so that no attribute ever points at half
            a checkpoint.

        Raises:
            CheckpointError: If the store refuses it again and again.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        reference = {
            "id": f"{label}-{uuid.uuid4().hex[:12]}.pt",
            "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }

        def write() -> None:
            buffer.seek(0)
            self._artifact_store.write(reference["id"], buffer)

        try:
            self._persistently(write, f"write checkpoint {reference['id']} to")
        except CheckpointError:
            with suppress(Exception):  # Half a file takes up room.
                self._artifact_store.remove(reference["id"])
            raise
        return reference

    def load(self, reference: Mapping[str, str]) -> State:
        """Read a checkpoint, verify it, and load it with ``weights_only=True``.

        Raises:
            CheckpointLostError: If it is missing, or is not what was written.
            CheckpointError: If the store cannot be read.
        """
        name = _name(reference)

        def read() -> bytes:
            with self._artifact_store.open_reader(name) as reader:
                return bytes(reader.read())

        try:
            content = self._persistently(read, f"read checkpoint {name} from")
        except ArtifactNotFound:
            raise CheckpointLostError(
                f"Checkpoint {name} is missing from {_describe(self._artifact_store)}: pass "
                "the `checkpoint_dir` or `artifact_store` that the study was run with. If it is "
                f"gone for good, {_REDO}"
            ) from None
        if hashlib.sha256(content).hexdigest() != reference["sha256"]:
            raise CheckpointLostError(
                f"Checkpoint {name} is damaged: the SHA-256 of what lies in "
                f"{_describe(self._artifact_store)} is not the one that the study recorded. "
                f"Restore the file from a backup, or {_REDO}"
            )
        return _parsed(content, name)

    def has(self, reference: Mapping[str, str]) -> bool:
        """Whether there is a file of that name, whole or not.

        Raises:
            CheckpointError: If the store cannot be read.
        """
        name = _name(reference)

        def open_and_close() -> None:
            self._artifact_store.open_reader(name).close()

        try:
            self._persistently(open_and_close, f"look for checkpoint {name} in")
        except ArtifactNotFound:
            return False
        return True

    def _persistently(self, action: Callable[[], _T], what: str) -> _T:
        """Do something with the store, and do it again for a while if that fails.

        Args:
            action: What to do.
            what: The same in words, for messages.
        """
        for pause in (*PAUSES, None):
            try:
                return action()
            except (ArtifactNotFound, ValueError):  # Nor would it help to try again.
                raise
            except Exception as error:
                where = f"{what} {_describe(self._artifact_store)}"
                if pause is None:
                    raise CheckpointError(
                        f"Could not {where}, tried {len(PAUSES) + 1} times: "
                        f"{type(error).__name__}: {error}. See to the store (room, rights, "
                        "network), then run the same script again to resume."
                    ) from error
                _logger.warning(f"Could not {where}: {error!r}. Next try in {pause:g} s.")
                time.sleep(pause)
        raise AssertionError("The last try returns or raises.")

    def files(self) -> dict[str, int]:
        """The files of all runs in a folder, bytes by name; empty for any other store."""
        folder = artifact_folder(self._artifact_store)
        if folder is None or not folder.is_dir():
            return {}
        found = [path for path in folder.iterdir() if is_file_name(path.name)]
        return {path.name: path.stat().st_size for path in found if path.is_file()}

    def remove(self, reference: Mapping[str, str]) -> None:
        """Delete a checkpoint, if that is possible: failing to tidy up must not end a run.

        Raises:
            CheckpointError: If the name is not that of a checkpoint.
        """
        name = _name(reference)
        try:
            self._artifact_store.remove(name)
        except Exception as error:
            _logger.debug(f"Checkpoint {name} was not removed: {error!r}.")


def _name(reference: Mapping[str, str]) -> str:
    """The name of a file, refused unless a run could have given it.

    Names come from the database, where anybody can write: none must lead out of the store.
    """
    name = reference["id"]
    if not isinstance(name, str) or not is_file_name(name):
        raise CheckpointError(
            f"A checkpoint must have a name that a run gives its files, got {str(name)[:60]!r}: "
            "something other than a run wrote it."
        )
    return name


def _parsed(content: bytes, name: str) -> State:
    """What a file holds, and no code of it is run. Its hash may have been forged along with it."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # Of many kinds, up to those of zip files.
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0][:200]}"
    else:
        if isinstance(state, dict):
            return state
        reason = f"it holds a {type(state).__name__}"
    raise CheckpointLostError(
        f"Checkpoint {name} is damaged: it is not what a run writes ({reason}), though the study "
        f"recorded its hash. Restore the file from a backup, or {_REDO}"
    )


def _describe(artifact_store: Any) -> str:
    folder = artifact_folder(artifact_store)
    return type(artifact_store).__name__ if folder is None else f"the folder {folder}"
