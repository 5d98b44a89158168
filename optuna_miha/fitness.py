"""Fitness functions, which score a branch by its curve.

A fitness function maps a :class:`~optuna_miha.Curve` to a float. Larger is fitter. A branch whose
fitness is NaN counts as failed and is never selected.
"""

from __future__ import annotations

import math
from typing import Protocol

from optuna_miha._history.curve import Curve


class Fitness(Protocol):
    """A function that scores a branch; by default :func:`~optuna_miha.fitness.last_value`."""

    def __call__(self, curve: Curve) -> float:
        """Score the branch with the given curve."""
        ...


def last_value(curve: Curve) -> float:
    """The negative cost of the last epoch. This is the default."""
    return -curve.costs[-1] if curve.costs else math.nan


def slope(curve: Curve) -> float:
    """The decrease of the cost per epoch, which MIHA calls *speed of learning*.

    It is the negative slope of the least-squares line through the costs of the segment's epochs
    and the parent's cost at birth. It is NaN if there are fewer than two finite costs, or if the
    last cost is infinite or NaN.
    """
    if not curve.costs or not math.isfinite(curve.costs[-1]):
        return math.nan
    points = [(curve.birth + i, c) for i, c in enumerate((curve.birth_cost, *curve.costs))]
    return -least_squares_slope([p for p in points if math.isfinite(p[1])])


def classic(curve: Curve) -> float:
    """The fitness in MIHA's published code, ``(first - last) - last``.

    It rewards a branch that starts with a high cost, and selects worse than :func:`last_value`.
    It is provided for comparison.
    """
    if not curve.costs:
        return math.nan
    return curve.costs[0] - 2 * curve.costs[-1]


def power_law(curve: Curve, *, factor: float = 4.0) -> float:
    """The negative cost that a power law predicts at ``factor`` times the segment's age.

    The start-up race is ranked by it, because the leader after three epochs is often overtaken
    later. The prediction extrapolates the slope of the log cost against the log epoch over the
    last half of the curve, clipped to [-1, 0]. If a cost in this half is not positive, such as a
    negated accuracy, the slope of the cost itself is extrapolated, clipped to at most 0.

    Args:
        curve: The curve of the segment.
        factor: Ratio of the predicted age to the present one.
    """
    if not curve.costs or not math.isfinite(curve.costs[-1]):
        return math.nan
    points = [(math.log(i), c) for i, c in enumerate(curve.costs, start=1) if math.isfinite(c)]
    points = points[len(points) // 2 :] if len(points) > 2 else points
    last = points[-1][1]
    if min(c for _, c in points) > 0:
        trend = least_squares_slope([(x, math.log(c)) for x, c in points])
        trend = 0.0 if math.isnan(trend) else min(max(trend, -1.0), 0.0)
        return -last * math.pow(factor, trend)
    trend = least_squares_slope(points)
    return -(last + (0.0 if math.isnan(trend) else min(trend, 0.0)) * math.log(factor))


def least_squares_slope(points: list[tuple[float, float]]) -> float:
    """The slope of the least-squares line through ``points``; NaN for fewer than two points."""
    if len(points) < 2:
        return math.nan
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    variance = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / variance
