"""Where jobs run: in this process, in worker processes, or wherever an executor leads."""

from __future__ import annotations

import abc
import functools
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import get_context
from typing import TypeAlias

import cloudpickle

from optuna_miha._curve import EpochResult
from optuna_miha._segment import Context, Job, Outcome, run_job

OnEpoch: TypeAlias = Callable[[EpochResult], None]


class Workers(AbstractContextManager["Workers"]):
    """Runs the jobs of a rung; a context manager, which gives back what it took."""

    @abc.abstractmethod
    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run ``jobs``; the outcomes are in their order, whichever ends first."""


class InProcess(Workers):
    """One job after the other, here.

    Args:
        context: What all jobs have in common.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run the jobs in turn."""
        return [run_job(self._context, job, on_epoch) for job in jobs]

    def __exit__(self, *_: object) -> None:
        pass


class OnExecutor(Workers):
    """Any :class:`concurrent.futures.Executor`.

    Args:
        context: What all jobs have in common. It travels by cloudpickle, so that functions of
            a notebook or script work, with every job; a worker unpickles it once.
        executor: The executor.
        owned: Whether to shut it down in the end.
    """

    def __init__(self, context: Context, executor: Executor, *, owned: bool = False) -> None:
        self._payload: bytes = cloudpickle.dumps(context)
        self._executor = executor
        self._owned = owned

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Submit all jobs, and report a job's epochs when it is done."""
        # As bytes both ways: torch would pass tensors between processes as open files.
        packed = [cloudpickle.dumps(job) for job in jobs]
        futures = [self._executor.submit(_run_remote, self._payload, job) for job in packed]
        outcomes = []
        for future in futures:
            outcome: Outcome = cloudpickle.loads(future.result())
            for result in outcome.results:
                on_epoch(result)
            outcomes.append(outcome)
        return outcomes

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self._executor.shutdown(wait=True, cancel_futures=True)


def make_workers(context: Context, n_jobs: int, executor: Executor | None) -> Workers:
    """Where the jobs of a run are to run.

    Args:
        context: What all jobs have in common.
        n_jobs: Worker processes on this machine; 1: this process.
        executor: Takes the place of worker processes.
    """
    if executor is not None:
        return OnExecutor(context, executor)
    if n_jobs == 1:
        return InProcess(context)
    # "spawn", because a fork after OpenMP has run deadlocks.
    pool = ProcessPoolExecutor(
        n_jobs, mp_context=get_context("spawn"), initializer=_end_at_interrupt
    )
    return OnExecutor(context, pool, owned=True)


def _end_at_interrupt() -> None:
    """Ctrl-C reaches workers too, and is the coordinator's to report: they end in silence."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_one_at_a_time = threading.Lock()
"""Jobs seed and restore the random generators of their process, so that in an executor of threads
they take turns."""


def _run_remote(payload: bytes, job: bytes) -> bytes:
    with _one_at_a_time:
        outcome = run_job(_unpickled(payload), cloudpickle.loads(job))
    try:
        cloudpickle.loads(cloudpickle.dumps(outcome.exception))
    except Exception:
        # An exception that cannot travel would break the pool; its words can.
        outcome = replace(outcome, exception=RuntimeError(outcome.error))
    packed: bytes = cloudpickle.dumps(outcome)
    return packed


@functools.lru_cache(maxsize=1)
def _unpickled(payload: bytes) -> Context:
    context: Context = cloudpickle.loads(payload)
    return context
