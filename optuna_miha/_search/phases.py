"""The next phase of a run, as a function of its plan and its history.

The progress of a run is stored nowhere else, so that a resumed run makes the same decisions as an
uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Role, Segment
from optuna_miha._search.learning_rate import DIVERGENCE_FACTOR, scale_lr
from optuna_miha._search.plan import Plan

_MAX_STALE_CYCLES = 3
"""Cycles in a row without a new best after which the rest of the budget is annealed. A plan
without annealing trains all its cycles."""

_RESTART_LENGTH = 1.5
"""Epochs of a restart, relative to those that the best network had trained. Annealing needs a few
more epochs than those after which overfitting begins without it."""

_MIN_RESTART_EPOCHS = 8
"""Epochs of the shortest restart. A shorter one cannot be annealed."""

_MAX_RETRIES = 3
"""Retries of a phase in which the trunk diverged. The learning rate is then at a thirtieth, or at
a tenth if it had been raised. If training still diverges, the cause is a different one."""

_MIN_RESTARTS = 2
"""If fewer restarts fit into the rest of the budget, the final phase is the better use of it."""


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
    """

    role: Role
    cycle: int
    parent: Segment | None
    n_epochs: int
    size: int = 1


def next_phase(plan: Plan, stretch: Stretch, lineage: Lineage) -> Phase | None:
    """The next phase; :obj:`None` at the end of the stretch.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The history.
    """
    present = [s for s in lineage if s.cycle >= stretch.first_cycle]
    finals = [s for s in present if s.role == "final"]
    if finals:
        return _retry_final(stretch, lineage, finals)
    restarts = sorted((s for s in present if s.role == "restart"), key=lambda s: s.cycle)
    if restarts:
        cycle = restarts[-1].cycle
        restart = _restart(plan, stretch, lineage, restarts)
        return restart or _final(stretch, lineage, cycle, lineage.best())
    cycle = stretch.first_cycle
    head = lineage.best_before(cycle)
    if cycle == 0:
        size = plan.race_size(stretch.end)
        # A budget that changed after the race does not extend the race.
        is_over = bool(lineage.group("trunk", 0) or lineage.group("branch", 1))
        if size > 1 and not is_over and not _all_finished(lineage.group("startup", 0), size):
            return Phase(role="startup", cycle=0, parent=None, n_epochs=0, size=size)
        head = lineage.winner("startup", 0)

    while _all_finished(lineage.group("branch", cycle + 1), plan.population_size):
        cycle += 1
    head = _last_winner(lineage, stretch.first_cycle, cycle) or head
    is_runup = cycle == stretch.first_cycle and plan.runup_epochs is not None
    length = plan.runup_epochs if is_runup else plan.fixing_epochs

    reserve = plan.reserve(stretch.end - stretch.start)
    available = stretch.end - lineage.spent - reserve
    is_cycle_allowed = plan.n_cycles is None or cycle - stretch.first_cycle < plan.n_cycles
    population = plan.population_epochs if is_cycle_allowed else 0
    trunk = lineage.group("trunk", cycle)
    branches = lineage.group("branch", cycle + 1)
    if not branches and length and available > population and (not trunk or _may_retry(trunk)):
        length, size = min(length, available - population), len(trunk) + 1
        return Phase(role="trunk", cycle=cycle, parent=head, n_epochs=length, size=size)
    head = lineage.winner("trunk", cycle) or head
    is_affordable = is_cycle_allowed and available >= population
    restart = _restart(plan, stretch, lineage, [])
    # If restarts are possible, they are better than waiting for the trunk to recover.
    max_stale = _MAX_STALE_CYCLES if restart is None else 1
    # Without annealing, the rest of the budget is of no more use to a final phase.
    is_stale = plan.anneal is not None and _is_stale(lineage, stretch, cycle, max_stale)
    if branches or (is_affordable and not is_stale):
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
    """The segment that the latest finished cycle selected; :obj:`None` if there is none."""
    for past in range(cycle, first_cycle, -1):
        winner = lineage.winner("branch", past) or lineage.winner("trunk", past - 1)
        if winner is not None:
            return winner
    return None


def _may_retry(attempts: dict[int, Segment]) -> bool:
    """Whether the last attempt diverged and another one is allowed.

    Without a learning rate that can be lowered, there is no retry, because it would diverge in
    the same way.
    """
    last = attempts[max(attempts)]
    if last.state != TrialState.FAIL or not last.is_diverged or len(attempts) > _MAX_RETRIES:
        return False
    return scale_lr(last.params, last.distributions, DIVERGENCE_FACTOR) != last.params


def _retry_final(stretch: Stretch, lineage: Lineage, finals: list[Segment]) -> Phase | None:
    """A retry of a diverged final phase with the rest of the budget, if it is possible."""
    last = finals[-1]
    attempts = lineage.group("final", last.cycle)
    if not _may_retry(attempts):
        return None
    parent = None if last.parent is None else lineage[last.parent]
    phase = _final(stretch, lineage, last.cycle, parent)
    return None if phase is None else replace(phase, size=len(attempts) + 1)


def _final(stretch: Stretch, lineage: Lineage, cycle: int, parent: Segment | None) -> Phase | None:
    """A final phase with the rest of the budget; :obj:`None` if the budget is spent."""
    remaining = stretch.end - lineage.spent
    if remaining <= 0:
        return None
    return Phase(role="final", cycle=cycle, parent=parent, n_epochs=remaining)


def _restart(
    plan: Plan, stretch: Stretch, lineage: Lineage, earlier: list[Segment]
) -> Phase | None:
    """A restart, if the plan allows it and the budget suffices.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The history.
        earlier: The restarts of this stretch so far, in order.
    """
    best, remaining = lineage.best(), stretch.end - lineage.spent
    if not plan.restarts or plan.anneal is None or best is None or best.checkpoint is None:
        return None
    last = earlier[-_MAX_STALE_CYCLES:]
    if len(last) == _MAX_STALE_CYCLES and all(s.trained == 0 for s in last):
        return None  # They fail before their first epoch.
    age = int(best.checkpoint["best_epoch"])
    length = max(_MIN_RESTART_EPOCHS, math.ceil(_RESTART_LENGTH * age))
    if remaining < length * (1 if earlier else _MIN_RESTARTS):
        return None
    # The last restart takes the epochs that do not suffice for another one.
    n_epochs = length if remaining - length >= length else remaining
    cycle = 1 + max(s.cycle for s in lineage)
    return Phase(role="restart", cycle=cycle, parent=None, n_epochs=n_epochs)


def _all_finished(siblings: dict[int, Segment], size: int) -> bool:
    """Whether there is a finished segment for every branch index."""
    return all(branch in siblings for branch in range(size))


def _is_stale(lineage: Lineage, stretch: Stretch, cycle: int, max_stale: int) -> bool:
    """Whether none of the last ``max_stale`` cycles brought a new best."""
    best = lineage.best()
    oldest = cycle - max_stale + 1
    return oldest > stretch.first_cycle and (best is None or best.cycle < oldest)
