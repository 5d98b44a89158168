"""Losses that kill the process that computes them, in a module that workers import quickly."""

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
    """Kills its process once, in the second epoch of a segment.

    Args:
        folder: A folder of marker files. The file ``armed`` enables the kill, and is renamed to
            ``dead`` by it. Every training step appends a byte to the file ``steps``.
    """

    FATAL_STEP = 5
    """The step of a segment in which the process is killed. An epoch has four steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.n_steps = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with (self.folder / "steps").open("ab") as steps:
            steps.write(b".")
        self.n_steps += 1
        if self.n_steps == self.FATAL_STEP and self._disarm():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(output, target)

    def _disarm(self) -> bool:
        """Disable further kills; returns whether this process has to die."""
        try:
            # If several workers get here at the same time, one of them succeeds.
            (self.folder / "armed").rename(self.folder / "dead")
        except FileNotFoundError:
            return False
        return True


class KillsAlways(nn.CrossEntropyLoss):
    """Kills every process except the one that created it."""

    def __init__(self) -> None:
        super().__init__()
        self.main_pid = os.getpid()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if os.getpid() != self.main_pid:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(output, target)


def classifier_with(make_loss: Callable[[], nn.Module]) -> Callable[[Any], miha.Recipe]:
    """The ``model_fn`` :func:`classifier` with another training loss, but its validation loss."""

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.loss_fn, recipe.valid_loss_fn = make_loss(), recipe.loss_fn
        return recipe

    return model_fn
