"""Run jobs in other processes, and collect their outcomes."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import suppress
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.queues import SimpleQueue
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import optuna
import torch

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.error_text import describe_error
from optuna_miha._model.rng import exclusive, lent
from optuna_miha._training.compute import resolve_device
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.pickling import pack, unpack
from optuna_miha._training.spool import Spool
from optuna_miha._training.torch_settings import settings_in_force
from optuna_miha.exceptions import CheckpointError, WorkerError

_logger = optuna.logging.get_logger("optuna.miha")

OnEpoch: TypeAlias = Callable[[int, EpochResult], None]
"""Called with the index of a job, and the result of one of its epochs."""

_place: int | None = None
"""The index of this worker process, which selects its device; :obj:`None` on an executor."""

_counts: Any = None
"""Epochs that each worker process has trained, in memory that all share."""

_cached_context: tuple[str, Context] | None = None
"""The last context of this worker, and its key."""

_cached_spool: tuple[bytes, Spool] | None = None
"""The last spool of this worker, and its serialization. It holds the states that it wrote."""

PATIENCE = 60.0
"""Seconds without an answer after which the reason is looked for: jobs may wait in a queue."""

LACKS_STATE = b""
"""What a worker returns that cannot read the state of a job."""


def pack_context(context: Context, spill: Path | None = None) -> bytes:
    """Serialize the context of all jobs, with its tensors in the file ``spill`` if given.

    Raises:
        TypeError: If it cannot be serialized.
    """
    try:
        return pack(context, spill)
    except Exception as error:
        raise TypeError(
            "`model_fn`, `trainer` and the loss must be serializable by cloudpickle to reach "
            f"other processes, got {describe_error(error)}. Create objects such as locks, "
            "open files and connections inside of `model_fn`, or use `n_jobs=1`."
        ) from error


def collect(
    pending: dict[Future[bytes | None], int],
    outcomes: dict[int, Outcome],
    on_epoch: OnEpoch,
    submit_again: Callable[[int, bytes | None], Future[bytes | None]],
    on_outcome: Callable[[int], None],
    submit_second_half: Callable[[int, Outcome], Future[bytes | None] | None] = (
        lambda index, first: None
    ),
    on_silence: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> None:
    """Wait for all jobs, and report the epochs of each job when it is complete.

    Args:
        pending: The index of each job by its future; empty afterwards.
        outcomes: Receives the outcome of each job by its index.
        on_epoch: As in ``Workers.run``.
        submit_again: Submits a job again, given its index and what its worker returned:
            :obj:`None` if it lacked the context, :data:`LACKS_STATE` if it lacked the state.
        on_outcome: Called with the index of each job when it is complete.
        submit_second_half: Submits the second half of a job, given the outcome of the first; it
            returns :obj:`None` if the job is complete.
        on_silence: Called if no job ends for ``patience`` seconds.
        patience: Default: a minute.
    """
    first_halves: dict[int, Outcome] = {}
    try:
        while pending:
            with lent():  # The jobs may run in threads of this process.
                done, _ = wait(pending, timeout=patience, return_when=FIRST_COMPLETED)
            if not done:
                on_silence()
            for future in done:
                index = pending.pop(future)
                packed = _result_of(future)
                if not packed:
                    pending[submit_again(index, packed)] = index
                    continue
                outcome: Outcome = unpack(packed)
                second_half = submit_second_half(index, outcome)
                if second_half is not None:
                    first_halves[index] = outcome
                    pending[second_half] = index
                    continue
                if index in first_halves:
                    outcome = first_halves[index].joined(outcome)
                outcomes[index] = outcome
                on_outcome(index)
                # Report complete jobs only: a job that is lost half-way is trained again.
                for result in outcome.results:
                    on_epoch(index, result)
    except BaseException:
        for future in pending:
            future.cancel()
        raise


def _result_of(future: Future[bytes | None]) -> bytes | None:
    try:
        return future.result()
    except (BrokenExecutor, CancelledError):
        raise
    except Exception as error:  # Exceptions of the user's code are returned in the outcome.
        raise WorkerError(
            f"A worker could not run a job: {describe_error(error)}. The worker died "
            "repeatedly, or lacks a module that `model_fn` needs."
        ) from error


def lost_job_error(error: Exception) -> WorkerError:
    """The error to raise if an executor does not return the outcome of a job."""
    return WorkerError(
        f"The executor lost a job: {describe_error(error)}. It was shut down, or a worker "
        "died, for example because of too little memory. Another call with a new executor resumes "
        "the run; `n_jobs` starts new workers by itself."
    )


def run_remote(
    key: str, packed_context: bytes | None, job: bytes, packed_spool: bytes | None = None
) -> bytes | None:
    """Run a job in a worker.

    Args:
        key: The key of the context.
        packed_context: The packed context, if it is sent with the job.
        job: The packed job.
        packed_spool: The packed spool. :obj:`None`: states travel with their jobs.

    Returns:
        The packed outcome; :obj:`None` if the worker lacks the context, and
        :data:`LACKS_STATE` if it cannot read the state of the job.
    """
    outcome = run_packed(key, packed_context, job, packed_spool)
    return pack(outcome) if isinstance(outcome, Outcome) else outcome


def run_packed(
    key: str,
    packed_context: bytes | None,
    job: bytes,
    packed_spool: bytes | None = None,
    *,
    writes: bool = True,
) -> Outcome | bytes | None:
    """Run a job in a worker; see :func:`run_remote`.

    Args:
        key: As in :func:`run_remote`.
        packed_context: As in :func:`run_remote`.
        job: As in :func:`run_remote`.
        packed_spool: As in :func:`run_remote`.
        writes: Whether a large state that results is written to the store.

    Returns:
        The outcome, or what :func:`run_remote` returns instead.
    """
    global _cached_context
    with exclusive():  # Jobs of an executor of threads run one at a time.
        if _cached_context is None or _cached_context[0] != key:
            if packed_context is None:
                return None
            _cached_context = key, unpack(packed_context)
        context = _cached_context[1]
        with settings_in_force(context.settings):
            unpacked: Job = unpack(job)
            if _place is not None:  # A device belongs to a worker, not to a branch.
                unpacked = replace(unpacked, index=_place)
            on_epoch = None if _counts is None else _count_epoch
            try:
                if packed_spool is None:
                    outcome = run_job(context, unpacked, on_epoch)
                else:
                    spool = _spool_of(packed_spool)
                    outcome = spool.run(context, unpacked, on_epoch, writes=writes)
            except CheckpointError as error:
                _logger.warning(f"A worker cannot read a state. {error}")
                return LACKS_STATE
    if outcome.exception is not None:
        outcome = replace(outcome, exception=_picklable(outcome.exception))
    return outcome


def _count_epoch(_: EpochResult) -> None:
    _counts[_place] += 1  # No other process writes this element.


def _spool_of(packed: bytes) -> Spool:
    global _cached_spool
    if _cached_spool is None or _cached_spool[0] != packed:
        _cached_spool = packed, unpack(packed)
    return _cached_spool[1]


def answer_probe(packed_spool: bytes, question: Mapping[str, str]) -> dict[str, str]:
    """Show in a worker that it can read and write the files of the run; see :class:`Spool`."""
    with exclusive():
        return _spool_of(packed_spool).answer(question)


def read_probe(packed_spool: bytes, question: Mapping[str, str]) -> None:
    """Show in a process that it can read the files of the run.

    Raises:
        CheckpointError: If it cannot.
    """
    _spool_of(packed_spool).check(question)


def _picklable(exception: BaseException) -> Any:
    """Return an object that unpickles to ``exception``, or else to an error with its message."""
    forms = []
    for form in (exception, _ExceptionParts(exception)):
        with suppress(Exception):
            is_changed = str(unpack(pack(form))) != str(exception)
            forms.append((is_changed, form))
    if not forms:
        return RuntimeError(f"{type(exception).__name__}: {exception}")
    return min(forms, key=itemgetter(0))[1]  # The first that keeps the message, if one does.


class _ExceptionParts:
    """Unpickles to an exception without calling its ``__init__``.

    By default, pickle calls ``__init__`` with ``args``, the arguments of ``Exception.__init__``.
    Those of the class may be different.
    """

    def __init__(self, exception: BaseException) -> None:
        self._exception = exception

    def __reduce__(self) -> Any:
        exception = self._exception
        return _assemble, (type(exception), exception.args, vars(exception))


def _assemble(
    cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    exception = cls.__new__(cls)
    exception.args = args
    vars(exception).update(attributes)  # Including its notes.
    return exception


def ping(devices: tuple[torch.device | None, ...]) -> str | None:
    """Check the devices of a worker; one that can run this can load the module.

    Args:
        devices: The devices that jobs will ask for.

    Returns:
        The error message if one of them is missing, otherwise :obj:`None`.
    """
    try:
        for device in devices:
            resolve_device(device)
    except ValueError as error:
        return str(error)
    return None


def warm_up() -> None:
    """Create an optimizer, because the first one in a process takes torch a second."""
    torch.optim.SGD([torch.zeros(1)])


def init_worker(folder: str, places: SimpleQueue[int], counts: Any) -> None:
    """Initialize a worker process, so that it ends with the coordinator.

    Args:
        folder: The folder of the run, to be removed if the coordinator is killed.
        places: The indices of the processes, of which each takes one.
        counts: An array in shared memory, in which each process counts its epochs.
    """
    global _place, _counts
    _place, _counts = places.get(), counts
    # Ctrl-C reaches workers too: they exit silently, and the coordinator reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_coordinator, args=(folder,), daemon=True).start()


def _exit_with_coordinator(folder: str) -> None:
    """Exit when the coordinator is killed; the pool itself would wait forever."""
    coordinator = parent_process()
    assert coordinator is not None
    coordinator.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
