"""How fit a branch is, given its curve. Larger is fitter; NaN means failed, never selected.

Any function from a :class:`~optuna_miha._history.curve.Curve` to a float is a fitness.
"""

from __future__ import annotations

import math
from typing import Protocol

from optuna_miha._history.curve import Curve


class Fitness(Protocol):
    """Scores a branch; the default is :func:`~optuna_miha.fitness.last_value`."""

    def __call__(self, curve: Curve) -> float:
        """Score the branch that trained along ``curve``."""
        ...


def last_value(curve: Curve) -> float:
    """The cost at the end of the segment. The default."""
    return -curve.costs[-1] if curve.costs else math.nan


def slope(curve: Curve) -> float:
    """How fast the cost falls, per epoch: MIHA's *speed of learning*.

    The least-squares slope over the segment's epochs, the parent's cost at birth included.
    NaN for a curve of fewer than two points, or one that ends in NaN or infinity.
    """
    if not curve.costs or not math.isfinite(curve.costs[-1]):
        return math.nan
    points = [(curve.birth + i, c) for i, c in enumerate((curve.birth_cost, *curve.costs))]
    return -least_squares_slope([p for p in points if math.isfinite(p[1])])


def classic(curve: Curve) -> float:
    """The score of MIHA's published code, ``(first - last) - last``.

    It rewards a branch that starts badly, and does worse than :func:`last_value`; it is here
    for the comparison.
    """
    if not curve.costs:
        return math.nan
    return curve.costs[0] - 2 * curve.costs[-1]


def power_law(curve: Curve, *, factor: float = 4.0) -> float:
    """The cost expected at ``factor`` times the segment's age, by a power law.

    Ranks the start-up race: who leads after three epochs does not lead later. The slope of
    log cost against log epoch over the last half of the curve, clipped to [-1, 0], is
    continued; where a cost is not positive (a negated accuracy, say), the cost itself is
    continued in the same way, without a lower bound on its slope.
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
    """Slope of the least-squares line through ``points``; NaN for fewer than two."""
    if len(points) < 2:
        return math.nan
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    variance = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / variance
