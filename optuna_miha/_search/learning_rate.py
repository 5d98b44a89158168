"""How the learning rate goes while it is annealed."""

from __future__ import annotations

import math

_WARMUP_SHARE = 0.1
"""Of the epochs. A network that goes over to a larger rate at once may stop working, without any
value that is not finite; over some epochs it finds its way to where the rate suits it."""

_FIRST = 1 / 3
"""With which part of its rate a training begins. A final phase has three times the rate of what
it continues, and goes on as that ended."""

_LEAST_RAISED = 5
"""Epochs. A shorter training would end at a rate that is still high."""


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
