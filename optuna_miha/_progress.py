"""What a person sees while the run goes on."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import optuna
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from optuna_miha._curve import EpochResult
from optuna_miha._lineage import Lineage


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
        if show:  # The log goes above the bar instead of through it.
            logger = optuna.logging.get_logger("optuna")
            self._stack.enter_context(logging_redirect_tqdm([logger]))
        self._bar: Any = self._stack.enter_context(
            tqdm(
                total=total,
                initial=lineage.spent,
                disable=not show,
                unit="epoch",
                dynamic_ncols=True,
            )
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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
