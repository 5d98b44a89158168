"""The start-up race: its rungs in a plan of cycles, and how its candidates are ranked."""

from __future__ import annotations

import math

from optuna_miha._history.lineage import Lineage

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


def is_extrapolated(lineage: Lineage, *, by_step: bool) -> bool:
    """Whether the values of a race's candidates are extrapolated by a power law.

    The accuracy of an annealed training rises steeply at its end and follows no power law: values
    that are maximized are compared as they are. Over the few epochs of a race before cycles, the
    slope tells more.

    Args:
        lineage: The history.
        by_step: Whether the race is annealed.
    """
    return lineage.sign > 0 or not by_step
