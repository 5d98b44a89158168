"""The learning rate of each segment, and its course while it is annealed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Role, Segment
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import DEFAULT_LR, fit, scalable_rate

_WARMUP_SHARE = 0.1
"""Of the epochs. A network that goes over to a larger rate at once may stop working, without any
value that is not finite; over some epochs it finds its way to where the rate suits it."""

_FIRST = 1 / 3
"""With which part of its rate a training begins. A final phase has three times the rate of what
it continues, and goes on as that ended."""

_LEAST_RAISED = 5
"""Epochs. A shorter training would end at a rate that is still high."""


_PEAKS: Mapping[Role, float] = {"restart": 2.0, "final": 3.0}
"""What annealing rises to, in multiples of a constant learning rate. Over the few epochs that
branches are compared by a small rate looks better than it is; what is annealed has time."""

CALMING = 0.3
"""By which the learning rate is multiplied when the trunk diverged."""

_MIN_MULTIPLE, _MAX_MULTIPLE = 0.1, 10
"""Bounds of the multiples of a class's default learning rate that another class takes over."""


def pace(epoch: int, n_epochs: int) -> float:
    """The learning rate of an epoch, in multiples of the training's own.

    Over the first tenth it rises from a third to one, then falls to zero along half a cosine. A
    training of less than five epochs is too short for a rise, and falls from the third.

    Reference: L. N. Smith, *A disciplined approach to neural network hyper-parameters: Part 1*,
    2018, section 4, for one rise before the fall.

    Args:
        epoch: The epoch, from 0 on.
        n_epochs: Epochs of the training.
    """
    if n_epochs < _LEAST_RAISED:
        return _FIRST * half_cosine(epoch, n_epochs)
    n_rising = math.ceil(_WARMUP_SHARE * n_epochs)
    if epoch < n_rising:
        return _FIRST + (1 - _FIRST) * epoch / n_rising
    return half_cosine(epoch - n_rising, n_epochs - n_rising)


def half_cosine(epoch: int, n_epochs: int) -> float:
    """The same without the rise: from one towards zero.

    Reference: I. Loshchilov and F. Hutter, *SGDR: Stochastic Gradient Descent with Warm
    Restarts*, 2017, equation 5, without restarts.

    Args:
        epoch: The epoch, from 0 on.
        n_epochs: Epochs of the training.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / n_epochs))


def calming(lineage: Lineage, parent: Segment | None) -> float:
    """The learning rate after training diverged, in multiples of what it had at first.

    Args:
        lineage: The record.
        parent: At whose end the training begins; :obj:`None`: at the start.
    """
    number = None if parent is None else parent.number
    alone = (s for s in lineage if s.role in ("trunk", "final") and s.parent == number)
    return float(CALMING ** sum(s.is_diverged for s in alone))


def peak(plan: Plan, lineage: Lineage, role: Role, before: float = math.inf) -> float:
    """The highest learning rate of a training, in multiples of a constant one.

    Args:
        plan: The run's plan. Nothing is raised that is not annealed.
        lineage: The record. What has diverged is at the edge already.
        role: The role of the training.
        before: Only divergences before the trial of this number count.
    """
    if plan.anneal is None or role not in _PEAKS:
        return 1.0
    earlier = (s for s in lineage if s.role in ("trunk", "restart") and s.number < before)
    return 1.0 if any(s.is_diverged for s in earlier) else _PEAKS[role]


def scaled(
    params: dict[str, Any], distributions: Mapping[str, BaseDistribution], factor: float
) -> dict[str, Any]:
    """``params`` with the learning rate multiplied, and rounded to four digits.

    Args:
        params: The hyperparameters.
        distributions: Their distributions. The learning rate stays in its range; where that is
            none of numbers, it stays as it is.
        factor: By what.
    """
    distribution = scalable_rate(distributions)
    if factor == 1 or distribution is None:
        return params
    return params | {"lr": fit(distribution, float(f"{params['lr'] * factor:.4g}"))}


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
    distribution = scalable_rate(distributions)
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
