"""Statistics of paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_MAX_EXACT = 20
"""Maximum number of differences for which all sign flips, about a million, are enumerated."""

_N_DRAWS = 100_000
"""Random sign flips for more differences."""

_TOLERANCE = 1e-9
"""Relative tolerance, because the rounding of a sum depends on the order of its terms."""


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (with n - 1); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean; NaN for fewer than two values."""
    return standard_deviation(values) / math.sqrt(len(values)) if values else math.nan


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p value of paired differences by the sign-flip permutation test.

    Under the null hypothesis, the two values of a pair are exchangeable, and both signs of each
    difference have equal probability. The p value is the share of all combinations of signs whose
    mean is at least as far from zero as the observed mean. The test makes no assumption about the
    distribution. The smallest possible p value is ``2 / 2**n``, for five differences 0.0625. For
    more than 20 differences, 100,000 combinations are drawn with a fixed seed.

    Args:
        differences: One finite difference per pair.

    Returns:
        The p value; NaN without differences.
    """
    if not differences:
        return math.nan
    observed = abs(math.fsum(differences)) * (1 - _TOLERANCE)
    if len(differences) <= _MAX_EXACT:
        sums = np.zeros(1)
        for difference in differences:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= observed))
    rng = np.random.default_rng(0)
    sums = np.zeros(_N_DRAWS)
    for difference in differences:
        sums += rng.choice([-difference, difference], size=_N_DRAWS)
    # The observed signs count as one combination, so that p is never zero.
    return float((np.sum(np.abs(sums) >= observed) + 1) / (_N_DRAWS + 1))
