"""Checkpoints in an Optuna artifact store, each with its hash."""

from __future__ import annotations

import io
import itertools
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

import optuna
import torch
from optuna.artifacts.exceptions import ArtifactNotFound

from optuna_miha._history.attribute_reader import is_file_name
from optuna_miha._history.error_text import describe_error
from optuna_miha._study.checkpoint_content import check_state, check_weights
from optuna_miha._study.checkpoint_file import (
    is_large,
    open_buffer,
    verified,
    write_content,
    write_file,
)
from optuna_miha._study.optuna_internals import artifact_folder, is_plain_folder
from optuna_miha._training.state import State
from optuna_miha.exceptions import CheckpointError, CheckpointLostError

_logger = optuna.logging.get_logger("optuna.miha")

_T = TypeVar("_T")

RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds to wait before each retry after a failure of the store, in which disk space may be freed
and a network may recover. Longer outages are reported as errors."""

_RETRAIN_ADVICE = (
    "call `optuna_miha.optimize` on the study with the same arguments: it continues from the "
    "checkpoints that are intact, and trains the rest again."
)


_NAME = re.compile(r"(?P<label>.+?)(?:-(?P<run>[0-9a-f]{8}))?-(?P<digits>[0-9a-f]{12})\.pt")
"""The parts of a file name. An early version wrote names without the id of the run."""


class CheckpointStore:
    """Saves, loads and removes checkpoints in an Optuna artifact store.

    Args:
        artifact_store: An object with ``write``, ``open_reader`` and ``remove`` of
            :class:`optuna.artifacts.ArtifactStore`: a folder, S3 or GCS.
        run_id: The id of the run, a part of the names of its files. A trial of a copied study
            refers to the file of the original. The copy's own file has the same name with the id
            of the copy.
        is_own: Whether this study alone has this id. Otherwise no file is removed.
        origin: The artifact store of the original of a copy, if it is another one. It is only
            read.
    """

    def __init__(
        self,
        artifact_store: Any,
        *,
        run_id: str | None = None,
        is_own: bool = True,
        origin: Any = None,
    ) -> None:
        self._artifact_store = artifact_store
        self._run_id = run_id
        self._is_own = is_own
        self._origin = origin

    @property
    def artifact_store(self) -> Any:
        """The artifact store."""
        return self._artifact_store

    @property
    def run_id(self) -> str | None:
        """The id of the run."""
        return self._run_id

    def own_name(self, reference: Mapping[str, str]) -> str:
        """The name that the file has, or would have, as one of this run."""
        name = _file_name(reference)
        parts = _NAME.fullmatch(name)
        if self._run_id is None or parts is None:
            return name
        return f"{parts['label']}-{self._run_id}-{parts['digits']}.pt"

    def owns(self, name: str) -> bool:
        """Whether this run may remove the file of this name."""
        parts = _NAME.fullmatch(name)
        return self._is_own and parts is not None and parts["run"] == self._run_id

    def save(self, state: State, label: str) -> dict[str, str]:
        """Write a checkpoint under a new id.

        Args:
            state: The state to save.
            label: Prefix of the id, for readability.

        Returns:
            ``{"id": …, "sha256": …}``, which :meth:`load` takes. Store it in an attribute of the
            trial only after this method has returned, so that an attribute never refers to an
            incomplete checkpoint.

        Raises:
            CheckpointError: If all retries fail.
        """
        name = "-".join(filter(None, (label, self._run_id, f"{uuid.uuid4().hex[:12]}.pt")))
        folder = artifact_folder(self._artifact_store)
        # A subclass may do more than to write a file.
        if is_large(state) and folder is not None and is_plain_folder(self._artifact_store):
            digest = self._with_removal(name, lambda: write_file(state, folder / name))
        else:
            with open_buffer(state) as buffer:
                digest = write_content(state, buffer)
                self._write(name, buffer)
        return {"id": name, "sha256": digest}

    def _write(self, name: str, buffer: BinaryIO) -> None:
        def write() -> None:
            buffer.seek(0)
            self._artifact_store.write(name, buffer)

        self._with_removal(name, write)

    def _with_removal(self, name: str, write: Callable[[], _T]) -> _T:
        """Write a file with retries, and remove it if all fail."""
        try:
            return self._with_retries(write, f"write checkpoint {name} to")
        except CheckpointError:
            with suppress(Exception):  # An incomplete file occupies disk space.
                self._artifact_store.remove(name)
            raise

    def copy_from(self, original: CheckpointStore, reference: Mapping[str, str]) -> bool:
        """Copy a file of the original of this run under this run's own name.

        Args:
            original: The store of the original.
            reference: The file.

        Returns:
            Whether there was a file to copy.

        Raises:
            CheckpointError: If all retries fail.
        """
        name = self.own_name(reference)
        try:
            content = original.read(reference)
        except ArtifactNotFound:
            return False
        self._write(name, io.BytesIO(content))
        return True

    def read(self, reference: Mapping[str, str]) -> bytes:
        """Read a file without verifying it.

        Raises:
            ArtifactNotFound: If it is missing.
            CheckpointError: If the store cannot be read.
        """

        def read() -> bytes:
            with self._open(reference) as reader:
                return bytes(reader.read())

        return self._with_retries(read, f"read checkpoint {reference['id']} from")

    def _open(self, reference: Mapping[str, str]) -> BinaryIO:
        """Open the run's own file, or else that of the original."""
        names = dict.fromkeys((self.own_name(reference), _file_name(reference)))
        stores = [store for store in (self._artifact_store, self._origin) if store is not None]
        for store, name in itertools.product(stores, names):
            with suppress(ArtifactNotFound):
                reader: BinaryIO = store.open_reader(name)
                return reader
        raise ArtifactNotFound(f"There is no file {_file_name(reference)}.")

    def load(self, reference: Mapping[str, str]) -> State:
        """Read a checkpoint, verify it, and load it with ``weights_only=True``.

        Raises:
            CheckpointLostError: If it is missing, or its content has changed.
            CheckpointError: If the store cannot be read.
        """
        name = _file_name(reference)

        def open_verified() -> BinaryIO | None:
            return verified(self._open(reference), reference["sha256"])

        try:
            file = self._with_retries(open_verified, f"read checkpoint {name} from")
        except ArtifactNotFound:
            raise CheckpointLostError(
                f"Checkpoint {name} is missing from {_describe(self._artifact_store)}: pass "
                "the `checkpoint_dir` or `artifact_store` that the study was run with. If it is "
                f"lost for good, {_RETRAIN_ADVICE}"
            ) from None
        if file is None:
            raise CheckpointLostError(
                f"Checkpoint {name} is damaged: the SHA-256 of the file in "
                f"{_describe(self._artifact_store)} differs from the one stored in the study. "
                f"Restore the file from a backup, or {_RETRAIN_ADVICE}"
            )
        with file:
            return _parse(file, name)

    def load_state(self, reference: Mapping[str, str]) -> State:
        """Read a checkpoint like :meth:`load`, and check that no part of the state is missing.

        Raises:
            CheckpointLostError: If it is missing, damaged or incomplete.
            CheckpointError: If the store cannot be read.
        """
        return self._load_checked(reference, check_state)

    def load_weights(self, reference: Mapping[str, str]) -> dict[str, Any]:
        """Read a file that has only weights, and check it like :meth:`load_state`.

        Raises:
            CheckpointLostError: If it is missing, damaged or incomplete.
            CheckpointError: If the store cannot be read.
        """
        weights: dict[str, Any] = self._load_checked(reference, check_weights)["weights"]
        return weights

    def _load_checked(
        self, reference: Mapping[str, str], check: Callable[[Mapping[str, Any]], None]
    ) -> State:
        state = self.load(reference)
        try:
            check(state)
        except ValueError as error:
            raise _damage(reference["id"], str(error)) from None
        return state

    def has(self, reference: Mapping[str, str]) -> bool:
        """Whether the file exists; its content is not verified.

        Raises:
            CheckpointError: If the store cannot be read.
        """
        name = _file_name(reference)

        def open_and_close() -> None:
            self._open(reference).close()

        try:
            self._with_retries(open_and_close, f"look for checkpoint {name} in")
        except ArtifactNotFound:
            return False
        return True

    def _with_retries(self, action: Callable[[], _T], description: str) -> _T:
        """Call ``action``, and retry for a while if it fails.

        Args:
            action: Accesses the store.
            description: Completes "Could not … <store>" in messages.
        """
        for delay in (*RETRY_DELAYS, None):
            try:
                return action()
            except (ArtifactNotFound, ValueError):  # A retry would not help.
                raise
            except Exception as error:
                attempt = f"{description} {_describe(self._artifact_store)}"
                if delay is None:
                    raise CheckpointError(
                        f"Could not {attempt} in {len(RETRY_DELAYS) + 1} attempts: "
                        f"{describe_error(error)}. Check the store (disk space, "
                        "permissions, network), then run the same script again to resume."
                    ) from error
                _logger.warning(
                    f"Could not {attempt}: {describe_error(error)}. Retrying in {delay:g} s."
                )
                time.sleep(delay)
        raise AssertionError("The last attempt returns or raises.")

    def files(self) -> dict[str, int]:
        """Sizes in bytes by name of all runs' files in a folder; empty for other stores."""
        folder = artifact_folder(self._artifact_store)
        if folder is None or not folder.is_dir():
            return {}
        found = [path for path in folder.iterdir() if is_file_name(path.name)]
        return {path.name: path.stat().st_size for path in found if path.is_file()}

    def remove(self, reference: Mapping[str, str]) -> None:
        """Delete the run's own file. Failures are only logged, so that they do not end the run.

        Files of other runs stay, such as that of the original of a copied study.

        Raises:
            CheckpointError: If the name is not that of a checkpoint.
        """
        name = self.own_name(reference)
        if not self.owns(name):
            return
        try:
            self._artifact_store.remove(name)
        except Exception as error:
            _logger.debug(f"Checkpoint {name} was not removed: {describe_error(error)}.")


def _file_name(reference: Mapping[str, str]) -> str:
    """The validated file name of a checkpoint.

    Names come from the database, which others may write to. Validation prevents paths that lead
    out of the store.
    """
    name = reference["id"]
    if not isinstance(name, str) or not is_file_name(name):
        raise CheckpointError(
            f"The name of a checkpoint must be one that a run writes, got {str(name)[:60]!r}: "
            "restore the attribute, or start a study with another name."
        )
    return name


def _parse(file: BinaryIO, name: str) -> State:
    """Unpickle a state without running code, because its hash may be forged as well."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Of many types, such as those of zipfile.
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0][:200]}"
    else:
        if isinstance(state, dict):
            return state
        reason = f"it holds a {type(state).__name__}"
    raise _damage(name, reason)


def _damage(name: str, reason: str) -> CheckpointLostError:
    return CheckpointLostError(
        f"Checkpoint {name} is damaged: it is not what a run writes ({reason}), although its hash "
        f"matches the study. Restore the file from a backup, or {_RETRAIN_ADVICE}"
    )


def _describe(artifact_store: Any) -> str:
    folder = artifact_folder(artifact_store)
    return type(artifact_store).__name__ if folder is None else f"the folder {folder}"
