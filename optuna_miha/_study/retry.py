"""Retries of a run whose storage, or one of whose checkpoints, fails during training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from optuna_miha._study.lease import Lease
from optuna_miha._study.optuna_internals import database_message, reconnect
from optuna_miha.exceptions import CheckpointLostError, StorageError

_logger = optuna.logging.get_logger("optuna.miha")

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds to wait before each retry after a failure of the storage: two minutes in total, in which
a server can restart and a network can recover."""

_MAX_RETRIES = 3
"""Retries allowed without progress."""


class Retry:
    """Retries a run within the same call after a failure.

    Args:
        study: The study.
        lease: The lease of the study.
        recover: Sets aside the trials whose checkpoints are lost, and their descendants.
    """

    def __init__(self, study: optuna.Study, lease: Lease, recover: Callable[[], None]) -> None:
        self._study = study
        self._lease = lease
        self._recover = recover
        self._max_spent = -1
        self._retries_left = _MAX_RETRIES

    def run(self, train: Callable[[], None], spent: Callable[[], int]) -> None:
        """Train, and after each failure train again, as if the run were resumed.

        Args:
            train: Continues from the stored history until the run ends.
            spent: Returns the number of trained epochs in the history.

        Raises:
            StorageError: If the storage does not recover.
            CheckpointError: If the run cannot recover from lost checkpoints.
            StudyLockedError: If another coordinator has taken over.
        """
        while True:
            try:
                return train()
            except (StorageInternalError, CheckpointLostError) as error:
                if not self._repair(error, spent()):
                    raise
            except UpdateFinishedTrialError:
                self._lease.verify()  # A coordinator that takes over fails our trials.
                raise

    def _repair(self, error: StorageInternalError | CheckpointLostError, spent: int) -> bool:
        """Repair the cause of an error; returns whether to retry.

        Args:
            error: The error.
            spent: The number of trained epochs in the history.
        """
        if spent > self._max_spent:
            self._max_spent, self._retries_left = spent, _MAX_RETRIES
        self._retries_left -= 1
        if self._retries_left < 0:
            return False
        if isinstance(error, StorageInternalError):
            self._wait_for_storage(error)
        else:
            self._recover()
        return True

    def _wait_for_storage(self, error: StorageInternalError) -> None:
        """Return when the storage can be written to again.

        Args:
            error: The failure of the storage.

        Raises:
            StorageError: If it still fails after all retries.
        """
        name = self._study.study_name
        for delay in RETRY_DELAYS:
            _logger.warning(
                f"The storage of the study failed ({database_message(error)}). Retrying in "
                f"{delay:g} s."
            )
            time.sleep(delay)
            try:
                reconnect(self._study)
                self._lease.renew()
            except StorageInternalError as next_error:
                error = next_error
            else:
                _logger.warning(f"The storage has recovered. The study {name!r} continues.")
                return
        raise _storage_error(error) from error


@contextmanager
def convert_storage_errors() -> Iterator[None]:
    """Replace Optuna's storage errors by errors with the database's own message.

    Raises:
        StorageError: In place of Optuna's error.
    """
    try:
        yield
    except StorageInternalError as error:
        raise _storage_error(error) from error


def _storage_error(error: StorageInternalError) -> StorageError:
    return StorageError(
        f"The storage of the study failed: {database_message(error)}. Check that it exists, is "
        "writable, has free disk space and is not locked, then run the same script again to "
        "resume."
    )
