"""The progress bar of a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import optuna
from tqdm.asyncio import tqdm_asyncio as text_tqdm
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.lineage import Lineage

_FILE_INTERVAL = 30.0
"""Minimum number of seconds between two lines of a bar that is written to a file."""

_FILE_LINES = 20
"""Maximum number of lines of a bar that is written to a file, whatever the length of the run."""


class _LineWriter:
    """A file object that writes every update of a bar as a separate line.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write an update of the bar as a line."""
        line = text.replace("\r", "").strip()
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


def is_file() -> bool:
    """Whether a bar is written to a file, in which it cannot overwrite itself."""
    return tqdm is text_tqdm and not sys.stderr.isatty()


@contextmanager
def open_bar(total: int, initial: int = 0, *, show: bool, n_workers: int = 1) -> Iterator[Any]:
    """Open a progress bar over epochs. Log messages are printed above it.

    Args:
        total: The total number of epochs, of each worker.
        initial: The epochs that are already trained.
        show: Whether to show the bar.
        n_workers: The number of workers.
    """
    settings: dict[str, Any] = {"dynamic_ncols": True}
    if n_workers > 1:
        count = f"{{n_fmt}}/{{total_fmt}} epochs x {n_workers}"
        settings["bar_format"] = (
            f"{{l_bar}}{{bar}}| {count} [{{elapsed}}<{{remaining}}{{postfix}}]"
        )
    if is_file():
        # An interval below that of tqdm's monitor thread would be overruled by it.
        del settings["dynamic_ncols"]
        settings |= {"mininterval": _FILE_INTERVAL, "maxinterval": math.inf, "ncols": 100}
        settings |= {"file": _LineWriter(sys.stderr), "miniters": -(-total // _FILE_LINES)}
    with ExitStack() as stack:
        if show and not is_file():
            logger = optuna.logging.get_logger("optuna")
            stack.enter_context(logging_redirect_tqdm([logger]))
        bar = tqdm(total=total, initial=initial, disable=not show, unit="epoch", **settings)
        yield stack.enter_context(bar)


class Progress:
    """A progress bar over the epochs of the budget; a context manager.

    With a plan for several workers it counts the epochs of each of them, which follow each other.

    Args:
        total: The total budget, in epochs.
        lineage: The history, whose epochs are already counted.
        n_workers: The number of workers of the plan.
        show: Whether to show the bar.
    """

    def __init__(self, total: int, lineage: Lineage, *, n_workers: int, show: bool) -> None:
        self._lineage = lineage
        self._lowest_cost = _lowest_cost(lineage)
        self._stack = ExitStack()
        self._n_workers = n_workers
        self._n_trained = self._n_before = lineage.spent
        total, initial = total // n_workers, lineage.spent // n_workers
        bar = open_bar(total, initial, show=show, n_workers=n_workers)
        self._bar = self._stack.enter_context(bar)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show_phase(self, label: str) -> None:
        """Show what trains from now on."""
        self._n_before = self._n_trained
        self._bar.set_description(label, refresh=not is_file())

    def count_epoch(self, result: EpochResult) -> None:
        """Count an epoch, and show the best value so far."""
        for value in (result.value, result.score):
            if math.isfinite(value):
                self._lowest_cost = min(self._lowest_cost, self._lineage.sign * value)
        self._show_best()
        self._n_trained += 1
        self._show_epochs(self._n_trained)

    def show_running(self, n_epochs: int) -> None:
        """Show epochs of networks that are in training in other processes.

        Args:
            n_epochs: The epochs since :meth:`show_phase`, also those that are counted since then.
        """
        self._show_epochs(self._n_before + n_epochs)

    def _show_epochs(self, n_epochs: int) -> None:
        # Networks of a lost process are trained again: the bar then waits for them.
        self._bar.update(max(0, n_epochs // self._n_workers - self._bar.n))

    def finish_phase(self) -> None:
        """Show the best value of the segments that are complete: pruned ones are no result."""
        self._lowest_cost = _lowest_cost(self._lineage)
        self._show_best()

    def _show_best(self) -> None:
        if math.isfinite(self._lowest_cost):
            best = self._lineage.sign * self._lowest_cost
            self._bar.set_postfix_str(f"best {best:.4g}", refresh=False)


def _lowest_cost(lineage: Lineage) -> float:
    best = lineage.best()
    return math.inf if best is None else lineage.cost(best)
