"""The start-up race of a plan of cycles."""

from __future__ import annotations

import math

_RACE_EPOCHS = 3
"""Epochs of the first rung. Each later rung doubles the survivors' age."""


def race_rungs(size: int) -> list[tuple[int, int]]:
    """The rungs of a race between ``size`` configurations, halved until one is left.

    Returns:
        One pair per rung: number of configurations, and epochs of each of them. For eight
        configurations it is ``[(8, 3), (4, 3), (2, 6)]``, 48 epochs in total.
    """
    rungs = []
    age = 0
    while size > 1:
        epochs = max(age, _RACE_EPOCHS)
        rungs.append((size, epochs))
        age += epochs
        size = math.ceil(size / 2)
    return rungs


def race_cost(size: int) -> int:
    """Epochs of a race between ``size`` configurations."""
    return sum(n * epochs for n, epochs in race_rungs(size))
