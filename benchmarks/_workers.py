"""Worker processes; a crash of one loses only the job that it was running."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

Job: TypeAlias = tuple[Any, ...]
Answer: TypeAlias = tuple[Any, str | None]
"""The return value of a job and its error message; one of them is :obj:`None`."""

_CONTEXT = multiprocessing.get_context("spawn")


def results(
    function: Callable[..., Any], jobs: Iterable[Job], n_workers: int
) -> Iterator[tuple[Job, Any, str | None]]:
    """Call ``function`` with the arguments of each job, in new processes.

    A pool of :mod:`concurrent.futures` would lose all jobs when one process dies.

    Args:
        function: A function of an importable module.
        jobs: Arguments of the calls, which begin in this order.
        n_workers: Number of processes.

    Yields:
        Each job when it ends, with its return value and its error message.
    """
    waiting = iter(jobs)
    busy: dict[Connection, tuple[Any, Job]] = {}

    def begin(job: Job, worker: tuple[Any, Connection] | None = None) -> None:
        process, connection = worker or _start(function)
        connection.send(job)
        busy[connection] = (process, job)

    try:
        for _, job in zip(range(n_workers), waiting, strict=False):
            begin(job)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, job = busy.pop(ready)
                worker: tuple[Any, Connection] | None = (process, ready)
                try:
                    answer: Answer = ready.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    answer = (None, f"The process ended with exit status {process.exitcode}.")
                    worker = None
                successor = next(waiting, None)
                if successor is not None:
                    begin(successor, worker)
                elif worker is not None:
                    ready.close()  # The process then exits by itself.
                    process.join()
                yield (job, *answer)
    finally:
        for process, _ in busy.values():
            process.terminate()


def _start(function: Callable[..., Any]) -> tuple[Any, Connection]:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(function: Callable[..., Any], connection: Connection) -> None:
    while True:
        try:
            job = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: Answer = (function(*job), None)
        except Exception as error:
            traceback.print_exc()
            answer = (None, f"{type(error).__name__}: {error}")
        connection.send(answer)
