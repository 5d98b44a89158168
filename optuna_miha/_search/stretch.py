"""A stretch of a run, and a phase of a stretch."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_miha._history.segment import Role, Segment


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a run that ends with a final phase.

    A run has one stretch. It gets another one each time that it is extended by a larger
    ``n_epochs`` after its end.

    Args:
        first_cycle: Number of its first cycle.
        start: Epochs spent before its start.
        end: Epochs spent at its end.
    """

    first_cycle: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The segments to train next.

    Args:
        role: Their role.
        cycle: Their cycle.
        parent: The segment whose checkpoint they start from; :obj:`None`: the initial weights.
        n_epochs: Epochs of each segment; 0 in a start-up race, whose rungs depend on ``size``.
        size: Number of siblings. For a trunk or a final phase: number of attempts, including
            earlier ones that diverged.
        rungs: Epochs of each rung, between which siblings are pruned. Empty in a plan of cycles,
            whose rungs depend on the role.
        n_left: Number of siblings that train beyond the first of several ``rungs``.
        by_step: Whether each segment is annealed by the step, and its children continue from its
            best weights.
    """

    role: Role
    cycle: int
    parent: Segment | None
    n_epochs: int
    size: int = 1
    rungs: tuple[int, ...] = ()
    n_left: int = 1
    by_step: bool = False


def all_finished(siblings: dict[int, Segment], size: int) -> bool:
    """Whether there is a finished segment for every branch index."""
    return all(branch in siblings for branch in range(size))
