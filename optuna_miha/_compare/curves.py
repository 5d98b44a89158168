"""The best validation value of a run over the epochs that all its workers have trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from optuna_miha._history.segment import Segment


def curve_of(segments: Iterable[Segment], n_workers: int) -> list[tuple[int, float]]:
    """The values of a run of :func:`optimize`, each with the number of epochs until then.

    Args:
        segments: All segments, in any order.
        n_workers: With several, siblings train side by side, epoch by epoch. One worker trains
            them one after the other.
    """
    # Trial numbers do not reflect this order if the run was resumed.
    ordered = sorted(segments, key=lambda segment: segment.position)
    curve: list[tuple[int, float]] = []
    spent = 0

    def key(segment: Segment) -> tuple[Any, ...]:
        return (segment.cycle, segment.role) if n_workers > 1 else (segment.number,)

    for _, group in groupby(ordered, key=key):
        siblings = list(group)
        epochs = [(epoch, i) for i, s in enumerate(siblings) for epoch in range(1, s.trained + 1)]
        for epoch, index in sorted(epochs):
            spent += 1
            curve += [(spent, value) for value in _values_at(siblings[index], epoch)]
    return curve


def improvements(curve: Iterable[tuple[int, float]], sign: int) -> Iterator[tuple[int, float]]:
    """The points of a curve that are better than all before them."""
    lowest = math.inf
    for epoch, value in curve:
        if sign * value < lowest and math.isfinite(value):
            lowest = sign * value
            yield epoch, value


def _values_at(segment: Segment, epoch: int) -> Sequence[float]:
    """The score of an epoch, and at the end the value of the segment, its best."""
    if segment.value is None:
        return ()
    score = segment.scores[epoch - 1]
    return (score, segment.value) if epoch == segment.trained else (score,)
