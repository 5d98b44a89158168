"""What runs the jobs of a rung, and the simplest way: in this process."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.spool import Spool
from optuna_miha._training.worker import OnEpoch


class Workers(AbstractContextManager["Workers"]):
    """Runs the jobs of a rung; a context manager that releases its resources."""

    on_running: Callable[[int], None] | None = None
    """Called about every second with the epochs that worker processes have trained of a rung."""

    def check(self) -> None:
        """Wait until jobs can run.

        Raises:
            ValueError: If an executor does not accept jobs.
            WorkerError: If no worker can run them.
        """

    def share(self, spool: Spool, *, expects_large: bool) -> None:
        """Use a spool for large states from now on.

        Args:
            spool: The spool.
            expects_large: Whether states may be large. Otherwise nothing is written to find out
                whether workers can reach the store.
        """

    @abc.abstractmethod
    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run ``jobs``, and return the outcomes in the same order.

        Raises:
            WorkerError: If a job could not be completed.
        """


class InProcess(Workers):
    """Runs jobs one after the other in this process.

    Args:
        context: The settings that all jobs share.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._spool: Spool | None = None

    def share(self, spool: Spool, *, expects_large: bool) -> None:
        """Use a spool from now on."""
        self._spool = spool

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch) -> list[Outcome]:
        """Run the jobs one after the other."""
        run = run_job if self._spool is None else self._spool.run
        outcomes: list[Outcome] = []
        for index, job in enumerate(jobs):
            outcomes.append(run(self._context, job, functools.partial(on_epoch, index)))
            if self._spool is not None:
                self._spool.remove_trained(job.state)
        return outcomes

    def __exit__(self, *_: object) -> None:
        pass
