"""Losses that kill the process that computes them, in a module that workers import fast."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import optuna_miha as miha
from helpers.problems import classifier


class KillsOnce(nn.CrossEntropyLoss):
    """Kills its process in the second epoch of a segment; once, when it is told to.

    Args:
        folder: Has a file ``armed`` when it is time, and ``dead`` afterwards. In ``steps`` every
            step of training leaves a byte.
    """

    FATAL = 5
    """The step of a segment that is its last; an epoch has four."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.n_steps = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with (self.folder / "steps").open("ab") as steps:
            steps.write(b".")
        self.n_steps += 1
        if self.n_steps == self.FATAL and self._is_chosen():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(output, target)

    def _is_chosen(self) -> bool:
        try:
            # Of several workers that come here at the same time, one succeeds.
            (self.folder / "armed").rename(self.folder / "dead")
        except FileNotFoundError:
            return False
        return True


class KillsAlways(nn.CrossEntropyLoss):
    """Kills any process but the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.spared = os.getpid()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if os.getpid() != self.spared:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(output, target)


def classifier_with(make_loss: Callable[[], nn.Module]) -> Callable[[Any], miha.Recipe]:
    """The ``model_fn`` of :func:`classifier` that trains, but does not validate, with a loss."""

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.loss_fn, recipe.valid_loss_fn = make_loss(), recipe.loss_fn
        return recipe

    return model_fn
