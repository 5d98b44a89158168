"""The next phase of a run, as a function of its plan and its history.

The progress of a run is stored nowhere else, so that a resumed run makes the same decisions as an
uninterrupted one.
"""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.learning_rate import DIVERGENCE_FACTOR, scale_lr
from optuna_miha._search.plan import Plan
from optuna_miha._search.restarts import next_restart
from optuna_miha._search.rounds import next_round
from optuna_miha._search.stretch import Phase, Stretch, all_finished

__all__ = ["Phase", "Stretch", "next_phase"]

_MAX_STALE_CYCLES = 3
"""Cycles in a row without a new best after which the rest of the budget is annealed. A plan
without annealing trains all its cycles."""

_MAX_RETRIES = 3
"""Retries of a phase in which the trunk diverged. The learning rate is then at a thirtieth, or at
a tenth if it had been raised. If training still diverges, the cause is a different one."""


def next_phase(plan: Plan, stretch: Stretch, lineage: Lineage) -> Phase | None:
    """The next phase; :obj:`None` at the end of the stretch.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The history.
    """
    if plan.is_annealed:
        return next_round(plan, stretch, lineage)
    present = [s for s in lineage if s.cycle >= stretch.first_cycle]
    finals = [s for s in present if s.role == "final"]
    if finals:
        return _retry_final(stretch, lineage, finals)
    restarts = sorted((s for s in present if s.role == "restart"), key=lambda s: s.cycle)
    if restarts:
        cycle = restarts[-1].cycle
        restart = next_restart(plan, stretch, lineage, restarts)
        return restart or _final(stretch, lineage, cycle, lineage.best())
    cycle = stretch.first_cycle
    head = lineage.best_before(cycle)
    if cycle == 0:
        size = plan.race_size(stretch.end)
        # A budget that changed after the race does not extend the race.
        is_over = bool(lineage.group("trunk", 0) or lineage.group("branch", 1))
        if size > 1 and not is_over and not all_finished(lineage.group("startup", 0), size):
            return Phase(role="startup", cycle=0, parent=None, n_epochs=0, size=size)
        head = lineage.winner("startup", 0)

    while all_finished(lineage.group("branch", cycle + 1), plan.population_size):
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
    restart = next_restart(plan, stretch, lineage, [])
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


def _is_stale(lineage: Lineage, stretch: Stretch, cycle: int, max_stale: int) -> bool:
    """Whether none of the last ``max_stale`` cycles brought a new best."""
    best = lineage.best()
    oldest = cycle - max_stale + 1
    return oldest > stretch.first_cycle and (best is None or best.cycle < oldest)
