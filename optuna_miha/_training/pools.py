"""Run jobs in this process, in worker processes, or on an executor."""

from __future__ import annotations

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
    TimeoutError,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import optuna

from optuna_miha._history.error_text import describe_error
from optuna_miha._model.rng import lent
from optuna_miha._training.context import Context
from optuna_miha._training.executor_size import n_workers_of
from optuna_miha._training.halves import halves_of, n_left_over
from optuna_miha._training.job import Job
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.sent_states import SentStates
from optuna_miha._training.spool import Spool
from optuna_miha._training.state import State
from optuna_miha._training.worker import (
    LACKS_STATE,
    PATIENCE,
    OnEpoch,
    answer_probe,
    collect,
    init_worker,
    lost_job_error,
    pack_context,
    ping,
    run_remote,
    warm_up,
)
from optuna_miha._training.workers import InProcess, Workers
from optuna_miha.exceptions import WorkerError

_logger = optuna.logging.get_logger("optuna.miha")

_GLANCE = 1.0
"""Seconds between two looks at the epochs that worker processes have trained."""

_MAX_CRASHES = 3
"""Worker crashes tolerated per rung. A single crash may be an accident, but a job that is too
large for the machine crashes every worker that runs it."""


class WorkerProcesses(Workers):
    """Runs jobs in processes on this machine, which live until the run ends.

    The tensors of ``context`` are written to a file, which all processes map into memory. A
    single job runs in this process instead: a worker would be no faster, and here its epochs
    are reported as they end.

    Args:
        context: The settings that all jobs share.
        number: The number of processes.

    Raises:
        TypeError: If the context cannot be serialized.
    """

    def __init__(self, context: Context, number: int) -> None:
        self._in_process = InProcess(context)
        self._number = number
        self._states = SentStates()
        # Starting a user-defined trainer a second time may be expensive.
        self._can_halve_jobs = context.trainer is None and context.halves_jobs
        self._folder = Path(tempfile.mkdtemp(prefix="optuna-miha-"))
        try:
            self._packed_context = pack_context(context, self._folder / "data")
            self._key = str(self._folder)
            self._pool = self._new_pool()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def check(self) -> None:
        """Wait until one of the processes has started."""
        try:
            self._first_start.result()
        except BrokenProcessPool:
            raise WorkerError(
                "The worker processes could not start; their output is above. A script that uses "
                '`n_jobs` above 1 must do its work under `if __name__ == "__main__":`, because '
                "each of them imports the script."
            ) from None

    def share(self, spool: Spool, *, expects_large: bool) -> None:
        """Use a spool from now on, in this process and in the others."""
        self._in_process.share(spool, expects_large=expects_large)
        self._states.share(spool, is_tried=expects_large)

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run the jobs in parallel, and those of a crashed worker again."""
        if len(jobs) == 1:
            return self._in_process.run(jobs, on_epoch)
        outcomes: dict[int, Outcome] = {}
        for n_crashes in range(1, _MAX_CRASHES + 1):
            try:
                self._run_pending(jobs, outcomes, on_epoch)
                return [outcomes[index] for index in range(len(jobs))]
            except BrokenProcessPool:
                _logger.warning(
                    f"A worker process died; {len(jobs) - len(outcomes)} branches are trained "
                    f"again by new processes. (After {_MAX_CRASHES} such losses in a row the run "
                    f"ends; this is number {n_crashes}.)"
                )
                self._stop()
                self._pool = self._new_pool()
        raise WorkerError(
            f"Worker processes died {_MAX_CRASHES} times in a row, for example because the "
            "machine has too little memory for all of them: use fewer `n_jobs`, or a lower upper "
            "bound of the batch size."
        )

    def _run_pending(
        self, jobs: Sequence[Job], outcomes: dict[int, Outcome], on_epoch: OnEpoch
    ) -> None:
        """Run the jobs that have no outcome yet.

        If the processes cannot share the jobs evenly, the remaining ones are halved. Their first
        halves run first, and the second halves fill the gaps at the end: three jobs take two
        processes one and a half times as long as one job, instead of twice.
        """
        pending = [index for index in range(len(jobs)) if index not in outcomes]
        n_halved = n_left_over(len(pending), self._number) if self._can_halve_jobs else 0
        halved = {index: halves_of(jobs[index]) for index in pending[:n_halved]}
        counts, n_before = self._counts, sum(self._counts)

        sent: dict[int, Job] = {}
        between: dict[int, State] = {}

        def submit(index: int, job: Job, *, by_value: bool = False) -> Future[bytes | None]:
            sent[index] = job
            packed = self._states.pack(job, by_value=by_value)
            return self._pool.submit(run_remote, self._key, self._packed_context, *packed)

        def submit_again(index: int, _: bytes | None) -> Future[bytes | None]:
            return submit(index, sent[index], by_value=True)

        def submit_second_half(index: int, first: Outcome) -> Future[bytes | None] | None:
            second_half = halved.pop(index, (None, None))[1]
            if second_half is None or first.state is None:
                return None
            between[index] = first.state
            return submit(index, replace(second_half, state=first.state))

        def on_outcome(index: int) -> None:
            for state in (jobs[index].state, between.get(index)):
                self._states.remove_trained(state)

        def on_silence() -> None:
            if self.on_running is not None:
                self.on_running(sum(counts) - n_before)

        futures = {submit(i, halved.get(i, (jobs[i],))[0]): i for i in pending}
        collect(
            futures,
            outcomes,
            on_epoch,
            submit_again,
            on_outcome,
            submit_second_half,
            on_silence,
            _GLANCE,
        )

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop(terminate=kind is not None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # A fork deadlocks once OpenMP has been used.
        context = get_context("spawn")
        places = context.SimpleQueue()
        for place in range(self._number):
            places.put(place)
        self._counts = context.RawArray("q", self._number)
        folder = str(self._folder)
        pool = ProcessPoolExecutor(
            self._number,
            context,
            initializer=init_worker,
            initargs=(folder, places, self._counts),
        )
        # Start the processes now, not with the first job.
        self._first_start, *_ = [pool.submit(warm_up) for _ in range(self._number)]
        return pool

    def _stop(self, *, terminate: bool = True) -> None:
        if terminate:  # The results of running jobs are not needed.
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


class OnExecutor(Workers):
    """Runs jobs on any :class:`concurrent.futures.Executor`.

    Jobs are sent without the context, which may hold large data. A worker that lacks the context
    returns :obj:`None`, and gets the job again with the context.

    Args:
        context: The settings that all jobs share.
        executor: The executor.

    Raises:
        TypeError: If the context cannot be serialized.
    """

    def __init__(self, context: Context, executor: Executor) -> None:
        self._packed_context = pack_context(context)
        self._key = hashlib.sha256(self._packed_context).hexdigest()
        self._executor = executor
        self._devices = context.devices
        self._states = SentStates()
        self._n_workers = n_workers_of(executor)

    def share(self, spool: Spool, *, expects_large: bool) -> None:
        """Use a spool from now on, if a worker can reach its store."""

        def answer(packed_spool: bytes, question: dict[str, str]) -> dict[str, str]:
            future = self._executor.submit(answer_probe, packed_spool, question)
            with lent():
                return future.result()

        self._states.share(spool, is_tried=expects_large, probe=answer)

    def check(self) -> None:
        """Wait until the executor has run a call."""
        try:
            future = self._executor.submit(ping, self._devices)
        except RuntimeError as error:
            raise ValueError(
                "`executor` must accept jobs, got one that is shut down or broken "
                f"({describe_error(error)}): create a new one."
            ) from error
        try:
            with lent():
                missing = _result_of_ping(future)
        except Exception as error:
            raise WorkerError(
                f"The executor cannot run jobs: {describe_error(error)}. Its workers "
                "need this package, in the same version."
            ) from error
        if missing is not None:
            raise ValueError(
                f"The workers of the `executor` must have the `device` of the run, but a worker "
                f"reports: {missing}. Start workers that have it, let the executor send jobs to "
                "those only, or leave `device` out, so that each worker uses what it has."
            )

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Submit all jobs, and report the epochs of each job when it is complete."""
        self._count_workers()
        packed = [self._states.pack(job) for job in jobs]
        outcomes: dict[int, Outcome] = {}

        def submit(index: int, packed_context: bytes | None = None) -> Future[bytes | None]:
            try:
                return self._executor.submit(run_remote, self._key, packed_context, *packed[index])
            except RuntimeError as error:
                raise lost_job_error(error) from error

        def submit_again(index: int, lacks: bytes | None) -> Future[bytes | None]:
            if lacks == LACKS_STATE:
                packed[index] = self._states.pack(jobs[index], by_value=True)
            return submit(index, self._packed_context)

        def on_outcome(index: int) -> None:
            self._states.remove_trained(jobs[index].state)

        try:
            pending = {submit(index): index for index in range(len(jobs))}
            collect(
                pending,
                outcomes,
                on_epoch,
                submit_again,
                on_outcome,
                on_silence=self._count_workers,
            )
        except (BrokenExecutor, CancelledError) as error:
            raise lost_job_error(error) from error
        return [outcomes[index] for index in range(len(jobs))]

    def _count_workers(self) -> None:
        """Log if workers vanished since the last call."""
        before, now = self._n_workers, n_workers_of(self._executor)
        self._n_workers = now
        if before is None or now is None or now >= before:
            return
        if now == 0:
            _logger.warning(
                f"All {before} workers of the executor are gone: the run waits for new ones. It "
                "can also be interrupted, and resumed later."
            )
        else:
            _logger.warning(
                f"The executor has {now} of {before} workers left: they train all branches, and "
                "the result is the same."
            )

    def __exit__(self, *_: object) -> None:
        pass


def make_workers(context: Context, n_jobs: int, executor: Executor | None) -> Workers:
    """Create the workers of a run.

    Args:
        context: The settings that all jobs share.
        n_jobs: The number of worker processes on this machine; 1: this process.
        executor: Runs the jobs instead of worker processes.

    Raises:
        TypeError: If the context cannot be serialized for other processes.
    """
    if executor is not None:
        return OnExecutor(context, executor)
    return InProcess(context) if n_jobs == 1 else WorkerProcesses(context, n_jobs)


def _result_of_ping(future: Future[str | None]) -> str | None:
    """Wait for the first call, and say so if no worker takes it."""
    while True:
        try:
            return future.result(timeout=PATIENCE)
        except TimeoutError:
            _logger.warning(
                f"The executor has run no call for {PATIENCE:.0f} s: no worker is connected, all "
                "are busy, or none has the resources that the executor asks for. Start workers "
                "with these resources, or ask for less."
            )
