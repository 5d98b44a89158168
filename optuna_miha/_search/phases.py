"""What comes next: a pure function of the plan and the record so far.

Nothing of a run's progress is kept anywhere else, so that a resumed run decides exactly as an
uninterrupted one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Role, Segment
from optuna_miha._search.learning_rate import CALMING, scaled
from optuna_miha._search.plan import Plan

_STALE_CYCLES = 3
"""Cycles in a row without a new best after which the rest of the budget is better annealed."""

_RESTART_LENGTH = 1.5
"""Epochs of a new training, in those that the best network had behind it. Annealing pays at a
little more than the age at which overfitting begins without it."""

_LEAST_RESTART = 8
"""Epochs. Shorter trainings cannot anneal."""

_RETRIES = 3
"""Of a phase in which the trunk diverged. The rate is then at a thirtieth, or at a tenth if it had
been raised; what diverges even so has another cause."""

_LEAST_RESTARTS = 2
"""With room for fewer, the final phase is the better use of the budget."""


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
        size: How many siblings. Of a trunk or a final phase: how many attempts, those that
            diverged before included.
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
    present = [s for s in lineage if s.cycle >= stretch.first_cycle]
    finals = [s for s in present if s.role == "final"]
    if finals:
        return _final_again(stretch, lineage, finals)
    restarts = sorted((s for s in present if s.role == "restart"), key=lambda s: s.cycle)
    if restarts:
        cycle = restarts[-1].cycle
        again = _restart(plan, stretch, lineage, restarts)
        return again or _final(stretch, lineage, cycle, lineage.best())
    cycle = stretch.first_cycle
    head = lineage.best_before(cycle)
    if cycle == 0:
        size = plan.race_size(stretch.end)
        # A budget that changed after the race does not reopen it.
        is_over = bool(lineage.group("trunk", 0) or lineage.group("branch", 1))
        if size > 1 and not is_over and not _is_decided(lineage.group("startup", 0), size):
            return Phase(role="startup", cycle=0, parent=None, n_epochs=0, size=size)
        head = lineage.winner("startup", 0)

    while _is_decided(lineage.group("branch", cycle + 1), plan.population_size):
        cycle += 1
    head = _last_winner(lineage, stretch.first_cycle, cycle) or head
    runs_up = cycle == stretch.first_cycle and plan.runup_epochs is not None
    length = plan.runup_epochs if runs_up else plan.fixing_epochs

    reserve = plan.reserve(stretch.end - stretch.start)
    available = stretch.end - lineage.spent - reserve
    another = plan.n_cycles is None or cycle - stretch.first_cycle < plan.n_cycles
    population = plan.population_epochs if another else 0
    trunk = lineage.group("trunk", cycle)
    branches = lineage.group("branch", cycle + 1)
    if not branches and length and available > population and (not trunk or _may_retry(trunk)):
        length, size = min(length, available - population), len(trunk) + 1
        return Phase(role="trunk", cycle=cycle, parent=head, n_epochs=length, size=size)
    head = lineage.winner("trunk", cycle) or head
    affordable = another and available >= population
    restart = _restart(plan, stretch, lineage, [])
    # Where restarts pay, they pay more than waiting for the trunk to recover.
    patience = _STALE_CYCLES if restart is None else 1
    if branches or (affordable and not _is_stale(lineage, stretch, cycle, patience)):
        return Phase(
            role="branch",
            cycle=cycle + 1,
            parent=head,
            n_epochs=plan.branch_epochs,
            size=plan.population_size,
        )

    if restart is not None:
        return restart
    head = lineage.best() if plan.anneal is not None else head
    return _final(stretch, lineage, cycle, head)


def _last_winner(lineage: Lineage, first_cycle: int, cycle: int) -> Segment | None:
    """Where the cycles that are over have led; :obj:`None` if none of them led anywhere."""
    for past in range(cycle, first_cycle, -1):
        winner = lineage.winner("branch", past) or lineage.winner("trunk", past - 1)
        if winner is not None:
            return winner
    return None


def _may_retry(attempts: dict[int, Segment]) -> bool:
    """Whether the trunk diverged, and has not done so too often.

    Nor is it tried again where the learning rate is not to be changed, or as low as it gets:
    what diverged once would do so again.
    """
    last = attempts[max(attempts)]
    if last.state != TrialState.FAIL or not last.is_diverged or len(attempts) > _RETRIES:
        return False
    return scaled(last.params, last.distributions, CALMING) != last.params


def _final_again(stretch: Stretch, lineage: Lineage, finals: list[Segment]) -> Phase | None:
    """A final phase that diverged, with what is left of the budget."""
    last = finals[-1]
    attempts = lineage.group("final", last.cycle)
    if not _may_retry(attempts):
        return None
    parent = None if last.parent is None else lineage[last.parent]
    phase = _final(stretch, lineage, last.cycle, parent)
    return None if phase is None else replace(phase, size=len(attempts) + 1)


def _final(stretch: Stretch, lineage: Lineage, cycle: int, parent: Segment | None) -> Phase | None:
    """What is left of the budget, if anything is."""
    remaining = stretch.end - lineage.spent
    if remaining <= 0:
        return None
    return Phase(role="final", cycle=cycle, parent=parent, n_epochs=remaining)


def _restart(
    plan: Plan, stretch: Stretch, lineage: Lineage, earlier: list[Segment]
) -> Phase | None:
    """A new training, if the budget has room for one of sensible length.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The record.
        earlier: The restarts of this stretch, in their order.
    """
    best, remaining = lineage.best(), stretch.end - lineage.spent
    if not plan.restarts or plan.anneal is None or best is None or best.checkpoint is None:
        return None
    if len(earlier) >= _STALE_CYCLES and all(s.trained == 0 for s in earlier[-_STALE_CYCLES:]):
        return None  # They cannot even begin.
    age = int(best.checkpoint["best_epoch"])
    length = max(_LEAST_RESTART, math.ceil(_RESTART_LENGTH * age))
    if remaining < length * (1 if earlier else _LEAST_RESTARTS):
        return None
    # The last one takes what would be too short for another.
    n_epochs = length if remaining - length >= length else remaining
    cycle = 1 + max(s.cycle for s in lineage)
    return Phase(role="restart", cycle=cycle, parent=None, n_epochs=n_epochs)


def _is_decided(siblings: dict[int, Segment], size: int) -> bool:
    """Whether each place among the siblings has its record."""
    return all(branch in siblings for branch in range(size))


def _is_stale(lineage: Lineage, stretch: Stretch, cycle: int, patience: int) -> bool:
    """Whether none of the last ``patience`` cycles brought a new best."""
    best = lineage.best()
    oldest = cycle - patience + 1
    return oldest > stretch.first_cycle and (best is None or best.cycle < oldest)
