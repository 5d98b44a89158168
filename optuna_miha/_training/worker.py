"""Jobs that run in another process: how they get there, and how their outcomes come back."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import suppress
from dataclasses import replace
from multiprocessing import parent_process
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.tensors import map_tensors
from optuna_miha._training.job import Context, Outcome, run_job
from optuna_miha._training.pickling import pack, unpack
from optuna_miha.exceptions import WorkerError

OnEpoch: TypeAlias = Callable[[int, EpochResult], None]
"""Called with the place of a job among its like, and the result of one of its epochs."""

_one_at_a_time = threading.Lock()
"""Jobs seed and restore the random generators of their process, so that in an executor of threads
they take turns."""

_latest: tuple[str, Context] | None = None
"""The context that this worker knows, and its key."""


def pack_context(context: Context, spill: Path | None = None) -> bytes:
    """What all jobs have in common, as bytes; its tensors in the file ``spill``, if there is one.

    Raises:
        TypeError: If it cannot be serialized.
    """
    try:
        return pack(context, spill)
    except Exception as error:
        raise TypeError(
            "`model_fn`, `trainer` and the loss must be serializable by cloudpickle to reach "
            f"other processes, got {type(error).__name__}: {error}. Create what cannot be "
            "(locks, open files, connections) inside of `model_fn`, or use `n_jobs=1`."
        ) from error


def collect(
    waiting: dict[Future[bytes | None], int],
    outcomes: dict[int, Outcome],
    on_epoch: OnEpoch,
    tell: Callable[[int], Future[bytes | None]] | None = None,
    go_on: Callable[[int, Outcome], Future[bytes | None] | None] = lambda index, outcome: None,
) -> None:
    """Wait for jobs, and report the epochs of each when it is done.

    Args:
        waiting: The place of each job by its future; empty in the end.
        outcomes: Filled, by place.
        on_epoch: As in ``Workers.run``.
        tell: Submits a job again, with the context, whose worker did not know it.
        go_on: Submits what is still to be done of a job, if anything is.
    """
    halves: dict[int, Outcome] = {}
    try:
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                answer = _answer(future)
                if answer is None:
                    assert tell is not None
                    waiting[tell(index)] = index
                    continue
                outcome: Outcome = unpack(answer)
                rest = go_on(index, outcome)
                if rest is not None:
                    halves[index] = outcome
                    waiting[rest] = index
                    continue
                outcomes[index] = halves[index].joined(outcome) if index in halves else outcome
                # Not before all of it is there: what is lost half-way is trained again.
                for result in outcomes[index].results:
                    on_epoch(index, result)
    except BaseException:
        for future in waiting:
            future.cancel()
        raise


def _answer(future: Future[bytes | None]) -> bytes | None:
    try:
        return future.result()
    except (BrokenExecutor, CancelledError):
        raise
    except Exception as error:  # Jobs return the exceptions of the user's code.
        raise WorkerError(
            f"A job could not be run where it was sent: {type(error).__name__}: {error}. The "
            "worker died again and again, or lacks a module that `model_fn` needs."
        ) from error


def run_remote(key: str, packed_context: bytes | None, job: bytes) -> bytes | None:
    """Run a job in a worker.

    Args:
        key: Of the context.
        packed_context: The context, if it comes along.
        job: The packed job.

    Returns:
        The packed outcome; :obj:`None` if the worker does not know the context.
    """
    global _latest
    with _one_at_a_time:
        if _latest is None or _latest[0] != key:
            if packed_context is None:
                return None
            _latest = key, unpack(packed_context)
        outcome = run_job(_latest[1], unpack(job))
    if outcome.exception is not None:
        outcome = replace(outcome, exception=_portable(outcome.exception))
    return pack(replace(outcome, state=map_tensors(outcome.state, Tensor.cpu)))


def _portable(exception: BaseException) -> Any:
    """What arrives as ``exception``, or as its words if it cannot travel."""
    forms = []
    for form in (exception, _Parts(exception)):
        with suppress(Exception):
            is_other = str(unpack(pack(form))) != str(exception)
            forms.append((is_other, form))
    if not forms:
        return RuntimeError(f"{type(exception).__name__}: {exception}")
    return min(forms, key=itemgetter(0))[1]  # The first of those that arrive as they were.


class _Parts:
    """Arrives as an exception whose own ``__init__`` was not called.

    Pickle calls it with ``args``, which are those of ``Exception.__init__``: the class's own may
    take others.
    """

    def __init__(self, exception: BaseException) -> None:
        self._exception = exception

    def __reduce__(self) -> Any:
        exception = self._exception
        return _assembled, (type(exception), exception.args, vars(exception))


def _assembled(
    cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    exception = cls.__new__(cls)
    exception.args = args
    vars(exception).update(attributes)  # Its notes are among them.
    return exception


def run_nothing() -> None:
    """Show that a worker can load this module."""


def warm_up() -> None:
    """Do what torch puts off until the first optimizer is made: it takes a second."""
    torch.optim.SGD([torch.zeros(1)])


def start_worker(folder: str) -> None:
    """Settle how a worker process ends.

    Args:
        folder: What the coordinator would remove.
    """
    # Ctrl-C reaches workers too, and is the coordinator's to report: they end in silence.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_coordinator, args=(folder,), daemon=True).start()


def _end_with_coordinator(folder: str) -> None:
    """End when the coordinator was killed: the pool's own pipes would be waited at for ever."""
    coordinator = parent_process()
    assert coordinator is not None
    coordinator.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
