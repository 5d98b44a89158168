"""What a run does when its storage, or one of its checkpoints, fails while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from optuna_miha._study.lease import Lease
from optuna_miha._study.optuna_internals import reason_of, reconnect
from optuna_miha.exceptions import CheckpointLostError, StorageError

_logger = optuna.logging.get_logger("optuna.miha")

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds before a storage that failed is tried again: two minutes in all, within which a server
is started anew and a network comes back."""

_MAX_RETRIES = 3
"""As often may a run be mended without having come further."""


class Retry:
    """Takes up a run that failed again, in the same call.

    Args:
        study: The study.
        lease: The right to run it.
        recover: Sets aside what depends on checkpoints that are lost.
    """

    def __init__(self, study: optuna.Study, lease: Lease, recover: Callable[[], None]) -> None:
        self._study = study
        self._lease = lease
        self._recover = recover
        self._furthest = -1
        self._left = _MAX_RETRIES

    def run(self, train: Callable[[], None], spent: Callable[[], int]) -> None:
        """Train, and do so again after each mishap, as if the run were resumed.

        Args:
            train: Goes on from the record, until the run is over.
            spent: Epochs on record.

        Raises:
            StorageError: If the storage does not come back.
            CheckpointError: If the checkpoints cannot be done without.
            StudyLockedError: If somebody else runs the study meanwhile.
        """
        while True:
            try:
                return train()
            except (StorageInternalError, CheckpointLostError) as error:
                if not self._repair(error, spent()):
                    raise
            except UpdateFinishedTrialError:
                self._lease.look()  # Who took over has failed our trials.
                raise

    def _repair(self, error: StorageInternalError | CheckpointLostError, spent: int) -> bool:
        """Whether the run can go on; returns when it can."""
        if spent > self._furthest:
            self._furthest, self._left = spent, _MAX_RETRIES
        self._left -= 1
        if self._left < 0:
            return False
        if isinstance(error, StorageInternalError):
            self._wait(error)
        else:
            self._recover()
        return True

    def _wait(self, error: StorageInternalError) -> None:
        """Return when the storage can be written again."""
        name = self._study.study_name
        for pause in PAUSES:
            _logger.warning(
                f"The storage of the study failed ({reason_of(error)}). Next try in {pause:g} s."
            )
            time.sleep(pause)
            try:
                reconnect(self._study)
                self._lease.confirm()
            except StorageInternalError as again:
                error = again
            else:
                _logger.warning(f"The storage is back: the study {name!r} goes on.")
                return
        raise _failed(error) from error


@contextmanager
def named_storage_errors() -> Iterator[None]:
    """Say of a database that fails what it says itself.

    Raises:
        StorageError: In place of Optuna's error.
    """
    try:
        yield
    except StorageInternalError as error:
        raise _failed(error) from error


def _failed(error: StorageInternalError) -> StorageError:
    return StorageError(
        f"The storage of the study failed: {reason_of(error)}. See to it (is it there, are you "
        "allowed to write, has it room, is it locked), then run the same script again to resume."
    )
