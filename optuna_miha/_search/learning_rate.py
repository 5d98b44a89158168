"""The learning rate of each segment, and its course during annealing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Role, Segment
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import DEFAULT_LR, fit, lr_distribution, lr_distributions

_WARMUP_SHARE = 0.1
"""Share of the epochs over which the learning rate rises. Some networks stop learning, without
any infinite or NaN value, if it is raised at once."""

_INITIAL_FACTOR = 1 / 3
"""Factor of the learning rate in the first epoch. A final phase has three times the learning rate
of the segment that it continues, so that its first epoch has the same one."""

_MIN_WARMUP_EPOCHS = 5
"""Epochs of the shortest training with a rise. A shorter one would end at a high rate."""

_PEAK_FACTORS: Mapping[Role, float] = {"restart": 2.0, "final": 3.0}
"""Peaks of annealed learning rates, in multiples of a constant one. Over the few epochs in which
branches are compared, a small rate looks better than it is in a long annealed training."""

INITIAL_PEAK = 3.0
"""Peak of the learning rate of the initial configuration in an annealed race, in multiples of the
user's rate, which is one for a training at a constant rate."""

_HEIR_FACTOR = 1.5
"""Peak of the learning rate of heirs, relative to a training from the initial weights."""

DIVERGENCE_FACTOR = 0.3
"""The learning rate is multiplied by it when the trunk diverges."""

_MIN_MULTIPLE, _MAX_MULTIPLE = 0.1, 10
"""Bounds of the multiples of a class's default learning rate that another class takes over."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The course of the learning rate over an annealed segment, by the step.

    The rate rises along half a cosine, and then falls to zero along half a cosine. From the
    initial weights, it rises from 1/25 of its peak over 30 % of the epochs; from inherited
    weights, which tolerate more, from a quarter over 25 %.

    Reference: L. N. Smith and N. Topin, *Super-Convergence: Very Fast Training of Neural Networks
    Using Large Learning Rates*, 2019.

    Args:
        n_epochs: Epochs of the whole segment.
        begin: Epochs of the segment that were trained before.
        is_fresh: Whether the segment starts from the initial weights.
    """

    n_epochs: int
    begin: int = 0
    is_fresh: bool = True

    @property
    def initial(self) -> float:
        """The factor at the start."""
        return 1 / 25 if self.is_fresh else 1 / 4

    @property
    def rise(self) -> float:
        """The share of the epochs over which the rate rises."""
        return 0.3 if self.is_fresh else 0.25

    def factor(self, epoch: float) -> float:
        """The factor of the learning rate after ``epoch`` epochs, fractions included."""
        initial, rise = self.initial, self.rise
        progress = min((self.begin + epoch) / self.n_epochs, 1.0)
        if progress < rise:
            return initial + (1 - initial) * 0.5 * (1 - math.cos(math.pi * progress / rise))
        return 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))


def warmup_cosine(epoch: float, n_epochs: int) -> float:
    """The factor of the learning rate in an epoch of an annealed training.

    Over the first tenth of the epochs it rises from a third to one. Then it falls to zero along
    half a cosine. In a training of less than five epochs, it falls from a third without a rise.

    Reference: L. N. Smith, *A disciplined approach to neural network hyper-parameters: Part 1*,
    2018, section 4, for one rise before the fall.

    Args:
        epoch: The epoch, from 0; a fraction is possible.
        n_epochs: Epochs of the training.
    """
    if n_epochs < _MIN_WARMUP_EPOCHS:
        return _INITIAL_FACTOR * half_cosine(epoch, n_epochs)
    n_rising = math.ceil(_WARMUP_SHARE * n_epochs)
    if epoch < n_rising:
        return _INITIAL_FACTOR + (1 - _INITIAL_FACTOR) * epoch / n_rising
    return half_cosine(epoch - n_rising, n_epochs - n_rising)


def half_cosine(epoch: float, n_epochs: int) -> float:
    """The factor of the learning rate without a rise: it falls from one towards zero.

    Reference: I. Loshchilov and F. Hutter, *SGDR: Stochastic Gradient Descent with Warm
    Restarts*, 2017, equation 5, without restarts.

    Args:
        epoch: The epoch, from 0; a fraction is possible.
        n_epochs: Epochs of the training.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / n_epochs))


def divergence_factor(lineage: Lineage, parent: Segment | None) -> float:
    """The factor of the learning rate after training diverged; 1 if it did not diverge.

    Args:
        lineage: The history.
        parent: The segment from whose end training starts; :obj:`None`: the initial weights.
    """
    number = None if parent is None else parent.number
    attempts = (s for s in lineage if s.role in ("trunk", "final") and s.parent == number)
    return float(DIVERGENCE_FACTOR ** sum(s.is_diverged for s in attempts))


def peak_factor(
    plan: Plan, lineage: Lineage, role: Role, *, cycle: int, before: float = math.inf
) -> float:
    """The peak of the learning rate of a training, in multiples of a constant learning rate.

    Args:
        plan: The run's plan. Without annealing, the learning rate is not raised.
        lineage: The history. After the trunk or a restart diverged, the learning rate is not
            raised.
        role: The role of the training.
        cycle: The cycle of the training. In rounds, only divergences of earlier cycles count,
            so that siblings do not depend on each other.
        before: In cycles, only divergences of trials with a lower number count.
    """
    if plan.is_annealed:
        controls = (s for s in lineage if s.role in ("branch", "restart") and s.cycle < cycle)
        is_raised = role == "branch" and not any(s.is_diverged for s in controls)
        return _HEIR_FACTOR if is_raised else 1.0
    if plan.anneal is None or role not in _PEAK_FACTORS:
        return 1.0
    earlier = (s for s in lineage if s.role in ("trunk", "restart") and s.number < before)
    return 1.0 if any(s.is_diverged for s in earlier) else _PEAK_FACTORS[role]


def inherited_params(
    plan: Plan, lineage: Lineage, segment: Segment, role: Role, *, cycle: int
) -> dict[str, Any]:
    """The parameters of a segment, with its learning rate scaled for another role.

    Args:
        plan: The run's plan.
        lineage: The history.
        segment: The segment.
        role: The role of the training that takes the parameters.
        cycle: Its cycle.
    """
    new = peak_factor(plan, lineage, role, cycle=cycle)
    old = peak_factor(plan, lineage, segment.role, cycle=segment.cycle, before=segment.number)
    return scale_lr(segment.params, segment.distributions, new / old)


def scale_lr(
    params: dict[str, Any], distributions: Mapping[str, BaseDistribution], factor: float
) -> dict[str, Any]:
    """``params`` with a multiple of the learning rates, rounded to four significant digits.

    Args:
        params: The hyperparameters.
        distributions: Their distributions. A learning rate is clipped to its range. One that is
            not a float parameter does not change.
        factor: The factor.
    """
    if factor == 1:
        return params
    return params | {
        name: fit(distribution, float(f"{params[name] * factor:.4g}"))
        for name, distribution in lr_distributions(distributions).items()
        if name in params
    }


def rescaled_lr(
    params: dict[str, Any], optimizer: Any, distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """The learning rate of ``params``, converted to another optimizer class.

    The multiple of the class's default stays the same if it lies in [0.1, 10]. A more extreme
    multiple is taken as specific to the old class, and the new class starts at its default.

    Args:
        params: Parameters with the old class and its learning rate.
        optimizer: The new class.
        distributions: The distributions. The learning rate is clipped to its range.

    Returns:
        ``{"lr": ...}``; an empty dictionary if the class is the same, if one of the two has no
        known default, or if the learning rate is not a float parameter.
    """
    distribution = lr_distribution(distributions)
    old_optimizer: Any = params.get("optimizer")
    old_default, new_default = DEFAULT_LR.get(old_optimizer), DEFAULT_LR.get(optimizer)
    if distribution is None or "lr" not in params or optimizer == old_optimizer:
        return {}
    if old_default is None or new_default is None:
        return {}
    multiple = params["lr"] / old_default
    if not _MIN_MULTIPLE <= multiple <= _MAX_MULTIPLE:
        multiple = 1.0
    return {"lr": fit(distribution, new_default * multiple)}
