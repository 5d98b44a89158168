"""The number of workers of an executor, for which :mod:`concurrent.futures` has no interface."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any


def n_workers_of(executor: Executor) -> int | None:
    """The number of workers of an executor; :obj:`None` if it does not say.

    Python's executors and those of loky and mpi4py name their maximum, Dask the threads of the
    workers that are connected now, of which there may be none.
    """
    n_workers: Any = getattr(executor, "_max_workers", None)
    client: Any = getattr(executor, "_client", None)
    if n_workers is None and hasattr(client, "nthreads"):
        n_workers = sum(client.nthreads().values())
    is_count = isinstance(n_workers, int) and n_workers >= 0
    return n_workers if is_count else None
