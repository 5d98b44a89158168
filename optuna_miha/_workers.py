"""Where jobs run: in this process, in worker processes, or wherever an executor leads."""

from __future__ import annotations

import abc
import functools
import hashlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeAlias

import optuna
import torch

from optuna_miha._checkpoint import on_cpu
from optuna_miha._curve import EpochResult
from optuna_miha._segment import Context, Job, Outcome, run_job
from optuna_miha._transfer import pack, unpack
from optuna_miha.exceptions import WorkerError

_logger = optuna.logging.get_logger("optuna.miha")

OnEpoch: TypeAlias = Callable[[int, EpochResult], None]
"""Called with the place of a job among its like, and the result of one of its epochs."""

_MOST_DEATHS = 3
"""As often may worker processes die during one rung. One death may be bad luck; a job that is too
large for the machine kills every worker that takes it."""


class Workers(AbstractContextManager["Workers"]):
    """Runs the jobs of a rung; a context manager, which gives back what it took."""

    def check(self) -> None:
        """Wait until jobs can run.

        Raises:
            ValueError: If an executor accepts none.
            WorkerError: If there is nobody to run them.
        """

    @abc.abstractmethod
    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run ``jobs``; the outcomes are in their order, whichever ends first.

        Raises:
            WorkerError: If a job could not be seen through.
        """


class InProcess(Workers):
    """One job after the other, here.

    Args:
        context: What all jobs have in common.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run the jobs in turn."""
        return [
            run_job(self._context, job, functools.partial(on_epoch, place))
            for place, job in enumerate(jobs)
        ]

    def __exit__(self, *_: object) -> None:
        pass


class WorkerProcesses(Workers):
    """Processes on this machine, which stay warm until the run is over.

    The data of ``context`` lie in one file, which all of them map into their memory. A job
    without siblings is run in this process: there is nothing to win elsewhere, and here its
    epochs can be watched.

    Args:
        context: What all jobs have in common.
        number: How many processes.

    Raises:
        TypeError: If the context cannot be serialized.
    """

    def __init__(self, context: Context, number: int) -> None:
        self._here = InProcess(context)
        self._number = number
        # A trainer of the user's own may cost something to start.
        self._divisible = context.trainer is None
        self._folder = Path(tempfile.mkdtemp(prefix="optuna-miha-"))
        try:
            self._packed_context = _packed(context, self._folder / "data")
            self._key = str(self._folder)
            self._pool = self._new_pool()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def check(self) -> None:
        """Wait until one of the processes is there."""
        try:
            self._first.result()
        except BrokenProcessPool:
            raise WorkerError(
                "The worker processes could not start; what they said is above. A script that "
                'asks for `n_jobs` above 1 must keep its work under `if __name__ == "__main__":`, '
                "because each of them imports it."
            ) from None

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run the jobs side by side; those of a worker that died are redone by another."""
        if len(jobs) == 1:
            return self._here.run(jobs, on_epoch)
        outcomes: dict[int, Outcome] = {}
        for deaths in range(1, _MOST_DEATHS + 1):
            try:
                self._run_pending(jobs, outcomes, on_epoch)
                return [outcomes[place] for place in range(len(jobs))]
            except BrokenProcessPool:
                _logger.warning(
                    f"A worker process died ({deaths} of {_MOST_DEATHS}); "
                    f"{len(jobs) - len(outcomes)} branches are trained again."
                )
                self._stop()
                self._pool = self._new_pool()
        raise WorkerError(
            f"Worker processes died {_MOST_DEATHS} times in a row, for instance because the "
            "machine has too little memory for all of them: use fewer `n_jobs`, or a smaller "
            "upper bound of the batch size."
        )

    def _run_pending(
        self, jobs: Sequence[Job], outcomes: dict[int, Outcome], on_epoch: OnEpoch
    ) -> None:
        """Run the jobs that have no outcome yet.

        Where they do not divide evenly among the processes, those left over are cut in halves:
        the first halves go first, and the second ones fill the gaps at the end. Three jobs thus
        take two processes one and a half times as long as one job, instead of twice.
        """
        pending = [place for place in range(len(jobs)) if place not in outcomes]
        n_left = len(pending) % self._number if self._divisible else 0
        cut = {place: _halves(jobs[place]) for place in pending[:n_left]}

        def submit(job: Job) -> Future[bytes | None]:
            return self._pool.submit(_run_remote, self._key, self._packed_context, pack(job))

        def go_on(place: int, outcome: Outcome) -> Future[bytes | None] | None:
            rest = cut.pop(place, (None, None))[1]
            if rest is None or outcome.state is None:
                return None
            return submit(replace(rest, state=outcome.state))

        waiting = {submit(cut.get(place, (jobs[place],))[0]): place for place in pending}
        _collect(waiting, outcomes, on_epoch, go_on=go_on)

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop(at_once=kind is not None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # "spawn", because a fork after OpenMP has run deadlocks.
        context = get_context("spawn")
        pool = ProcessPoolExecutor(
            self._number, context, initializer=_start_worker, initargs=(str(self._folder),)
        )
        # They start now, not with the first job.
        self._first, *_ = [pool.submit(_warm_up) for _ in range(self._number)]
        return pool

    def _stop(self, *, at_once: bool = True) -> None:
        if at_once:  # What they are about is of no more use.
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


class OnExecutor(Workers):
    """Any :class:`concurrent.futures.Executor`.

    A worker that does not know the context yet says so, and gets it with the same job: large
    data do not travel with every job.

    Args:
        context: What all jobs have in common.
        executor: The executor.

    Raises:
        TypeError: If the context cannot be serialized.
    """

    def __init__(self, context: Context, executor: Executor) -> None:
        self._packed_context = _packed(context)
        self._key = hashlib.sha256(self._packed_context).hexdigest()
        self._executor = executor

    def check(self) -> None:
        """Have the executor run something."""
        try:
            future = self._executor.submit(_run_nothing)
        except RuntimeError as error:
            raise ValueError(
                f"`executor` must accept jobs, got one that is shut down or broken ({error}): "
                "make a new one."
            ) from error
        try:
            future.result()
        except Exception as error:
            raise WorkerError(
                f"The executor cannot run jobs: {type(error).__name__}: {error}. Its workers "
                "need this package, in the same version."
            ) from error

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Submit all jobs, and report a job's epochs when it is done."""
        packed = [pack(job) for job in jobs]
        outcomes: dict[int, Outcome] = {}

        def submit(place: int, packed_context: bytes | None = None) -> Future[bytes | None]:
            try:
                return self._executor.submit(_run_remote, self._key, packed_context, packed[place])
            except RuntimeError as error:
                raise _lost(error) from error

        try:
            waiting = {submit(place): place for place in range(len(jobs))}
            _collect(
                waiting, outcomes, on_epoch, tell=lambda place: submit(place, self._packed_context)
            )
        except (BrokenExecutor, CancelledError) as error:
            raise _lost(error) from error
        return [outcomes[place] for place in range(len(jobs))]

    def __exit__(self, *_: object) -> None:
        pass


def make_workers(context: Context, n_jobs: int, executor: Executor | None) -> Workers:
    """Where the jobs of a run are to run.

    Args:
        context: What all jobs have in common.
        n_jobs: Worker processes on this machine; 1: this process.
        executor: Takes the place of worker processes.

    Raises:
        TypeError: If the context has to be serialized and cannot be.
    """
    if executor is not None:
        return OnExecutor(context, executor)
    return InProcess(context) if n_jobs == 1 else WorkerProcesses(context, n_jobs)


def _lost(error: Exception) -> WorkerError:
    return WorkerError(
        f"The executor lost a job: {type(error).__name__}: {error}. It was shut down, or a worker "
        "died, for instance of too little memory."
    )


def _packed(context: Context, spill: Path | None = None) -> bytes:
    try:
        return pack(context, spill)
    except Exception as error:
        raise TypeError(
            "`model_fn`, `trainer` and the loss must be serializable by cloudpickle to reach "
            f"other processes, got {type(error).__name__}: {error}. Create what cannot be "
            "(locks, open files, connections) inside of `model_fn`, or use `n_jobs=1`."
        ) from error


def _collect(
    waiting: dict[Future[bytes | None], int],
    outcomes: dict[int, Outcome],
    on_epoch: OnEpoch,
    tell: Callable[[int], Future[bytes | None]] | None = None,
    go_on: Callable[[int, Outcome], Future[bytes | None] | None] = lambda place, outcome: None,
) -> None:
    """Wait for jobs, and report the epochs of each when it is done.

    Args:
        waiting: The place of each job by its future; empty in the end.
        outcomes: Filled, by place.
        on_epoch: As in :meth:`Workers.run`.
        tell: Submits a job again, with the context, whose worker did not know it.
        go_on: Submits what is still to be done of a job, if anything is.
    """
    halves: dict[int, Outcome] = {}
    try:
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                place = waiting.pop(future)
                answer = _answer(future)
                if answer is None:
                    assert tell is not None
                    waiting[tell(place)] = place
                    continue
                outcome: Outcome = unpack(answer)
                rest = go_on(place, outcome)
                if rest is not None:
                    halves[place] = outcome
                    waiting[rest] = place
                    continue
                outcomes[place] = halves[place].joined(outcome) if place in halves else outcome
                # Not before all of it is there: what is lost half-way is trained again.
                for result in outcomes[place].results:
                    on_epoch(place, result)
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


def _start_worker(folder: str) -> None:
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


_one_at_a_time = threading.Lock()
"""Jobs seed and restore the random generators of their process, so that in an executor of threads
they take turns."""

_latest: tuple[str, Context] | None = None
"""The context that this worker knows, and its key."""


def _run_nothing() -> None:
    pass


def _warm_up() -> None:
    """Do what torch puts off until the first optimizer is made: it takes a second."""
    torch.optim.SGD([torch.zeros(1)])


def _halves(job: Job) -> tuple[Job, Job | None]:
    """A job as two, the second of which lacks its state yet."""
    first = job.n_epochs // 2
    if first == 0 or job.anneal or job.patience is not None:  # These look at the job as a whole.
        return job, None
    return replace(job, n_epochs=first), replace(job, n_epochs=job.n_epochs - first)


def _run_remote(key: str, packed_context: bytes | None, job: bytes) -> bytes | None:
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
    try:
        unpack(pack(outcome.exception))
    except Exception:
        # An exception that cannot travel would be lost; its words can.
        outcome = replace(outcome, exception=RuntimeError(outcome.error))
    return pack(replace(outcome, state=on_cpu(outcome.state)))
