"""The worker processes of loky as an executor of :func:`optuna_miha.optimize`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import optuna

from optuna_miha._history.optional_imports import try_import

_logger = optuna.logging.get_logger("optuna.miha")


class LokyExecutor(Executor):
    """Runs every branch in a worker process of loky, and replaces workers that die.

    loky itself gives up all branches in training when a worker dies. This executor starts new
    workers and trains these branches again.

    Example::

        with LokyExecutor(max_workers=4) as executor:
            result = optuna_miha.optimize(study, model_fn, n_epochs=200, executor=executor)

    Args:
        max_workers: The number of worker processes. :obj:`None`: the number of cores.
        max_retries: How many times a branch is trained again when its workers died.
        **options: Further ones of ``loky.get_reusable_executor``, such as ``timeout`` or ``env``.

    Raises:
        ImportError: If loky is not installed.
    """

    def __init__(
        self, max_workers: int | None = None, *, max_retries: int = 3, **options: Any
    ) -> None:
        with try_import("loky", needed_by="LokyExecutor"):
            import loky
        # Read by `optimize`, whose plan is as wide as the workers.
        self._max_workers = loky.cpu_count() if max_workers is None else max_workers
        self._max_retries = max_retries
        self._options = options
        self._waiting = ThreadPoolExecutor(self._max_workers)
        self._pool()  # Refuses options that loky does not know.

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call in a worker process."""
        return self._waiting.submit(self._run, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. loky ends its processes when they have been idle for a while."""
        self._waiting.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        for _ in range(self._max_retries):
            try:
                return self._pool().submit(fn, *args, **kwargs).result()
            except BrokenProcessPool as error:
                _logger.warning(f"A branch is trained again, because a worker died: {error}")
        return self._pool().submit(fn, *args, **kwargs).result()

    def _pool(self) -> Any:
        import loky

        return loky.get_reusable_executor(max_workers=self._max_workers, **self._options)
