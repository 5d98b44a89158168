"""Restarts from the initial weights, where a network overfits early."""

from __future__ import annotations

import math

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.plan import Plan
from optuna_miha._search.stretch import Phase, Stretch

_RESTART_LENGTH = 1.5
"""Epochs of a restart, relative to those that the best network had trained. Annealing needs a few
more epochs than those after which overfitting begins without it."""

_MIN_RESTART_EPOCHS = 8
"""Epochs of the shortest restart. A shorter one cannot be annealed."""

_MIN_RESTARTS = 2
"""If fewer restarts fit into the rest of the budget, the final phase is the better use of it."""

_MAX_FAILURES = 3
"""Restarts in a row that may fail before their first epoch."""


def next_restart(
    plan: Plan, stretch: Stretch, lineage: Lineage, restarts: list[Segment]
) -> Phase | None:
    """One restart for each worker, if the plan allows it and the budget suffices.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The history.
        restarts: The restarts of this stretch so far.
    """
    cycle = _cycle(plan, lineage, restarts)
    best, earlier = lineage.best_before(cycle), [s for s in restarts if s.cycle < cycle]
    if not plan.restarts or plan.anneal is None or best is None or best.checkpoint is None:
        return None
    last = sorted(earlier, key=lambda s: s.position)[-_MAX_FAILURES:]
    if len(last) == _MAX_FAILURES and all(s.trained == 0 for s in last):
        return None  # They fail before their first epoch.
    age = int(best.checkpoint["best_epoch"])
    length = max(_MIN_RESTART_EPOCHS, math.ceil(_RESTART_LENGTH * age))
    spent = sum(s.trained for s in lineage if s.cycle < cycle)
    remaining = (stretch.end - spent) // plan.width
    if plan.width * (remaining // length) < (1 if earlier else _MIN_RESTARTS):
        return None
    # The last restart takes the epochs that do not suffice for another one.
    n_epochs = length if remaining - length >= length else remaining
    return Phase(
        role="restart",
        cycle=cycle,
        parent=None,
        n_epochs=n_epochs,
        size=plan.width,
        by_step=plan.is_annealed,
    )


def _cycle(plan: Plan, lineage: Lineage, restarts: list[Segment]) -> int:
    """The cycle of the next restarts: the last one, if a part of it is missing."""
    last = max((s.cycle for s in restarts), default=0)
    if 0 < len(lineage.group("restart", last)) < plan.width:
        return last
    return 1 + max((s.cycle for s in lineage), default=0)
