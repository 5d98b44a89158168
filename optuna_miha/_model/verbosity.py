"""The verbosity of Optuna's log and the filters of warnings, which a whole process shares."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

_lock = threading.RLock()
"""Two threads that change and restore a setting at the same time would leave it changed."""


@contextmanager
def warnings_only() -> Iterator[None]:
    """Log only Optuna's warnings and errors, for example while a helper study is created."""
    with _lock:
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)


@contextmanager
def without_turns() -> Iterator[None]:
    """Log only warnings and errors of the runs of this thread, for example in a comparison."""
    logger, thread = optuna.logging.get_logger("optuna.miha"), threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != thread

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def ignored(category: type[Warning]) -> Iterator[None]:
    """Ignore warnings of a category, for example those of an experimental argument."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
