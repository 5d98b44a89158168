"""The order in which the kinds of parameters mutate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optuna_miha._search.mutation_rules import REGULARIZERS

USUAL = frozenset(
    {
        "activation",
        "batch_size",
        "dropout",
        "label_smoothing",
        "loss",
        "lr",
        "momentum",
        "optimizer",
        "weight_decay",
    }
)
"""The kinds that most runs search. Whoever suggests others wants to know their effect."""

_LATE = {"activation": 3, "loss": 3, "label_smoothing": 4, "optimizer": 4}
"""Ranks of the kinds that seldom help a network that has inherited its weights."""


def order_of_kinds(
    allowed: Sequence[str], visit: int, turn: int, rng: np.random.Generator
) -> list[str]:
    """Return the kinds in the order in which a branch tries them, until one has an effect.

    Kinds beyond the usual, such as the weight of a term of the loss, come first: each gets one of
    the first mutations of a run. After that, all kinds are shuffled.

    Args:
        allowed: The kinds that may mutate, sorted.
        visit: The number of mutations before this one, over all populations of the run.
        turn: The branch index, from which the shuffled order is read.
        rng: The random generator, the same for all siblings.
    """
    order = [str(kind) for kind in rng.permutation(allowed)]
    shuffled = [order[(turn + step) % len(order)] for step in range(len(order))]
    unusual = [kind for kind in allowed if kind not in USUAL]
    if not 0 <= visit < len(unusual):
        return shuffled
    return [unusual[visit], *(kind for kind in shuffled if kind != unusual[visit])]


def order_in_rounds(
    allowed: Sequence[str], rng: np.random.Generator, *, is_overfitted: bool
) -> list[str]:
    """Return the kinds in the order in which the heirs of rounds, and restarts, try them.

    Kinds beyond the usual come first, then those that regularize, then numbers such as the
    learning rate, then activations, and last the optimizer.

    Args:
        allowed: The kinds that may mutate, sorted.
        rng: The random generator, the same for all heirs of a run.
        is_overfitted: Whether the parent overfits: label smoothing then is one of the kinds that
            regularize.
    """

    def rank(kind: str) -> int:
        if kind not in USUAL:
            return 0
        if kind in REGULARIZERS and (is_overfitted or kind not in _LATE):
            return 1
        return _LATE.get(kind, 2)

    return sorted((str(kind) for kind in rng.permutation(allowed)), key=rank)
