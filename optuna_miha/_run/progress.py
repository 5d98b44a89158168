"""What a person sees while the run goes on."""

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

_PAUSE = 30.0
"""Seconds between two lines of a bar that goes into a file."""


class _Lines:
    """Every state of a bar as a line of its own.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write what a bar writes over itself."""
        line = text.replace("\r", "").strip()
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        """Pass on what was written."""
        self._stream.flush()


class Progress:
    """A progress bar over the epochs of the budget; a context manager.

    Args:
        total: The whole budget, in epochs.
        lineage: What was trained before.
        show: Whether to show anything.
    """

    def __init__(self, total: int, lineage: Lineage, *, show: bool) -> None:
        best = lineage.best()
        self._sign = lineage.sign
        self._least = math.inf if best is None else lineage.cost(best)
        self._stack = ExitStack()
        settings: dict[str, Any] = {"dynamic_ncols": True}
        is_log = tqdm is text_tqdm and not sys.stderr.isatty()
        if is_log:  # A file, where nothing can be overwritten.
            settings = {"file": _Lines(sys.stderr), "mininterval": _PAUSE, "ncols": 100}
        self._is_log = is_log
        if show and not is_log:  # The log goes above the bar instead of through it.
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

    def phase(self, label: str) -> None:
        """Name the phase that begins."""
        self._bar.set_description(label, refresh=not self._is_log)

    def epoch(self, result: EpochResult) -> None:
        """Count an epoch."""
        for value in (result.value, result.score):
            if math.isfinite(value):
                self._least = min(self._least, self._sign * value)
        self._bar.set_postfix_str(f"best {self._sign * self._least:.4g}", refresh=False)
        self._bar.update()
