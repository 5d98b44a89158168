"""The progress bar of a run."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from typing import Any, TextIO

import optuna
from tqdm.asyncio import tqdm_asyncio as text_tqdm
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.lineage import Lineage

_FILE_INTERVAL = 30.0
"""Seconds between two lines of a bar that is written to a file."""


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


class Progress:
    """A progress bar over the epochs of the budget; a context manager.

    Args:
        total: The total budget, in epochs.
        lineage: The history, whose epochs are already counted.
        show: Whether to show the bar.
    """

    def __init__(self, total: int, lineage: Lineage, *, show: bool) -> None:
        best = lineage.best()
        self._sign = lineage.sign
        self._lowest_cost = math.inf if best is None else lineage.cost(best)
        self._stack = ExitStack()
        settings: dict[str, Any] = {"dynamic_ncols": True}
        is_file = tqdm is text_tqdm and not sys.stderr.isatty()
        if is_file:  # A bar in a file cannot overwrite itself.
            stream = _LineWriter(sys.stderr)
            settings = {"file": stream, "mininterval": _FILE_INTERVAL, "ncols": 100}
        self._is_file = is_file
        if show and not is_file:  # Log messages are printed above the bar.
            logger = optuna.logging.get_logger("optuna")
            self._stack.enter_context(logging_redirect_tqdm([logger]))
        self._bar: Any = self._stack.enter_context(
            tqdm(
                total=total,
                initial=lineage.spent,
                disable=not show,
                unit="epoch",
                **settings,
            )
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show_phase(self, label: str) -> None:
        """Show the label of the current phase."""
        self._bar.set_description(label, refresh=not self._is_file)

    def count_epoch(self, result: EpochResult) -> None:
        """Count an epoch, and show the best value so far."""
        for value in (result.value, result.score):
            if math.isfinite(value):
                self._lowest_cost = min(self._lowest_cost, self._sign * value)
        self._bar.set_postfix_str(f"best {self._sign * self._lowest_cost:.4g}", refresh=False)
        self._bar.update()
