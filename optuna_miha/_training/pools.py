"""Where jobs run: in this process, in worker processes, or wherever an executor leads."""

from __future__ import annotations

import abc
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import optuna

from optuna_miha._training.job import Context, Job, Outcome, run_job
from optuna_miha._training.pickling import pack
from optuna_miha._training.worker import (
    OnEpoch,
    collect,
    pack_context,
    run_nothing,
    run_remote,
    start_worker,
    warm_up,
)
from optuna_miha.exceptions import WorkerError

_logger = optuna.logging.get_logger("optuna.miha")

_MAX_CRASHES = 3
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
            run_job(self._context, job, functools.partial(on_epoch, index))
            for index, job in enumerate(jobs)
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
            self._packed_context = pack_context(context, self._folder / "data")
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
        for deaths in range(1, _MAX_CRASHES + 1):
            try:
                self._run_pending(jobs, outcomes, on_epoch)
                return [outcomes[index] for index in range(len(jobs))]
            except BrokenProcessPool:
                _logger.warning(
                    f"A worker process died ({deaths} of {_MAX_CRASHES}); "
                    f"{len(jobs) - len(outcomes)} branches are trained again."
                )
                self._stop()
                self._pool = self._new_pool()
        raise WorkerError(
            f"Worker processes died {_MAX_CRASHES} times in a row, for instance because the "
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
        pending = [index for index in range(len(jobs)) if index not in outcomes]
        n_left = _n_left_over(len(pending), self._number) if self._divisible else 0
        cut = {index: _halves(jobs[index]) for index in pending[:n_left]}

        def submit(job: Job) -> Future[bytes | None]:
            return self._pool.submit(run_remote, self._key, self._packed_context, pack(job))

        def go_on(index: int, outcome: Outcome) -> Future[bytes | None] | None:
            rest = cut.pop(index, (None, None))[1]
            if rest is None or outcome.state is None:
                return None
            return submit(replace(rest, state=outcome.state))

        waiting = {submit(cut.get(index, (jobs[index],))[0]): index for index in pending}
        collect(waiting, outcomes, on_epoch, go_on=go_on)

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop(at_once=kind is not None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # "spawn", because a fork after OpenMP has run deadlocks.
        context = get_context("spawn")
        pool = ProcessPoolExecutor(
            self._number, context, initializer=start_worker, initargs=(str(self._folder),)
        )
        # They start now, not with the first job.
        self._first, *_ = [pool.submit(warm_up) for _ in range(self._number)]
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
        self._packed_context = pack_context(context)
        self._key = hashlib.sha256(self._packed_context).hexdigest()
        self._executor = executor

    def check(self) -> None:
        """Have the executor run something."""
        try:
            future = self._executor.submit(run_nothing)
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

        def submit(index: int, packed_context: bytes | None = None) -> Future[bytes | None]:
            try:
                return self._executor.submit(run_remote, self._key, packed_context, packed[index])
            except RuntimeError as error:
                raise _lost(error) from error

        try:
            waiting = {submit(index): index for index in range(len(jobs))}
            collect(
                waiting, outcomes, on_epoch, tell=lambda index: submit(index, self._packed_context)
            )
        except (BrokenExecutor, CancelledError) as error:
            raise _lost(error) from error
        return [outcomes[index] for index in range(len(jobs))]

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


def _n_left_over(n_jobs: int, n_processes: int) -> int:
    """Jobs that remain when all processes have got the same number, one at least."""
    return n_jobs % n_processes if n_jobs > n_processes else 0


def _halves(job: Job) -> tuple[Job, Job | None]:
    """A job as two, the second of which lacks its state yet."""
    first = job.n_epochs // 2
    if first == 0 or job.anneal or job.patience is not None:  # These look at the job as a whole.
        return job, None
    return replace(job, n_epochs=first), replace(job, n_epochs=job.n_epochs - first)
