"""What a person sees while the run goes on."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import optuna
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from optuna_miha._curve import EpochResult


class Progress:
    """A progress bar over the epochs of the budget.

    Args:
        total: The whole budget, in epochs.
        spent: Epochs spent before.
        sign: 1 where the study minimizes, -1 where it maximizes.
        best: The best value before.
        show: Whether to show anything.
    """

    def __init__(self, *, total: int, spent: int, sign: int, best: float | None, show: bool):
        self._stack = ExitStack()
        self._sign = sign
        self._least = math.inf if best is None else sign * best
        if show:
            root = optuna.logging.get_logger("optuna")
            self._stack.enter_context(logging_redirect_tqdm([root]))
        self._bar: Any = tqdm(
            total=total, initial=spent, disable=not show, unit="epoch", dynamic_ncols=True
        )

    def phase(self, label: str) -> None:
        """Name the phase that begins."""
        self._bar.set_description(label)

    def epoch(self, result: EpochResult) -> None:
        """Count an epoch."""
        for value in (result.value, result.score):
            if math.isfinite(value):
                self._least = min(self._least, self._sign * value)
        self._bar.set_postfix_str(f"best {self._sign * self._least:.4g}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is and give the log back."""
        self._bar.close()
        self._stack.close()
