"""What comes next: a pure function of the plan and the record so far.

Nothing of a run's progress is kept anywhere else, so that a resumed run decides exactly as an
uninterrupted one does.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna_miha._lineage import Lineage, Role, Segment
from optuna_miha._plan import Plan

_STALE_CYCLES = 3
"""Cycles in a row without a new best after which the rest of the budget is better annealed."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of the run that ends with a final phase.

    There is one, unless a run that was over is given a larger ``n_epochs``.

    Args:
        first_cycle: Number of its first cycle.
        start: Epochs spent before it.
        end: Epochs spent when it is over.
    """

    first_cycle: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What to train next.

    Args:
        role: The role of its segments.
        cycle: The cycle.
        parent: The segment whose checkpoint they start from; :obj:`None`: from scratch.
        n_epochs: Epochs of each segment.
        size: How many siblings.
    """

    role: Role
    cycle: int
    parent: Segment | None
    n_epochs: int
    size: int = 1


def next_phase(plan: Plan, stretch: Stretch, lineage: Lineage) -> Phase | None:
    """The phase that the record calls for; :obj:`None` when the stretch is over.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The record.
    """
    if any(s.role == "final" and s.cycle >= stretch.first_cycle for s in lineage):
        return None
    cycle = stretch.first_cycle
    head = lineage.best_before(cycle)
    if cycle == 0:
        size = plan.race_size(stretch.end)
        # A budget that changed after the race does not reopen it.
        is_over = bool(lineage.group("trunk", 0) or lineage.group("branch", 1))
        if size > 1 and not is_over and not _is_decided(lineage.group("startup", 0), size):
            return Phase(role="startup", cycle=0, parent=None, n_epochs=0, size=size)
        head = lineage.winner("startup", 0)

    reserve = plan.reserve(stretch.end - stretch.start)
    available = stretch.end - lineage.spent - reserve
    length = plan.fixing_epochs if plan.runup_epochs is None else plan.runup_epochs
    while True:
        another = plan.n_cycles is None or cycle - stretch.first_cycle < plan.n_cycles
        population = plan.population_epochs if another else 0
        trunk = lineage.group("trunk", cycle)
        branches = lineage.group("branch", cycle + 1)
        if not trunk and not branches and length and available > population:
            length = min(length, available - population)
            return Phase(role="trunk", cycle=cycle, parent=head, n_epochs=length)
        head = lineage.winner("trunk", cycle) or head
        if not _is_decided(branches, plan.population_size):
            affordable = another and available >= population
            if branches or (affordable and not _is_stale(lineage, stretch, cycle)):
                return Phase(
                    role="branch",
                    cycle=cycle + 1,
                    parent=head,
                    n_epochs=plan.branch_epochs,
                    size=plan.population_size,
                )
            break
        head = lineage.winner("branch", cycle + 1) or head
        length = plan.fixing_epochs
        cycle += 1

    remaining = stretch.end - lineage.spent
    if remaining <= 0:
        return None
    parent = lineage.best() if plan.anneal is not None else head
    return Phase(role="final", cycle=cycle, parent=parent, n_epochs=remaining)


def _is_decided(siblings: dict[int, Segment], size: int) -> bool:
    """Whether each place among the siblings has its record."""
    return all(branch in siblings for branch in range(size))


def _is_stale(lineage: Lineage, stretch: Stretch, cycle: int) -> bool:
    """Whether none of the last cycles brought a new best."""
    best = lineage.best()
    oldest = cycle - _STALE_CYCLES + 1
    return oldest > stretch.first_cycle and (best is None or best.cycle < oldest)
