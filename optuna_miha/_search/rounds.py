"""The phases of the default plan: an annealed race, then rounds of heirs or restarts.

Like :mod:`~optuna_miha._search.phases`, a pure function of plan and history.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.plan import MIN_EPOCHS, MIN_EPOCHS_PER_WORKER, Plan
from optuna_miha._search.restarts import next_restart
from optuna_miha._search.stretch import Phase, Stretch, all_finished

_OVERFITTED_SHARE = 0.85
"""If the best weights came before this share of a training, the network overfits: more epochs of
the same weights do not help it."""

_WIDE_SHARE = 0.24
"""Longest training in the race of several workers, as a share of the epochs of one worker."""

_CUT = 6
"""Epochs that an heir of a round trains after the cut, relative to those before it. A comparison
after a seventh predicts the end as well as one after a third."""

_INNER_SHARE = 0.37
"""Share of the remaining epochs that a round takes which is not the last one."""


def next_round(plan: Plan, stretch: Stretch, lineage: Lineage) -> Phase | None:
    """The next phase of a plan of rounds; :obj:`None` at the end of the stretch.

    Args:
        plan: The run's plan.
        stretch: The present stretch.
        lineage: The history.
    """
    first = max(stretch.first_cycle, 1)
    if stretch.first_cycle == 0:
        race = _race(plan, stretch.end)
        # A budget that changed after the race does not extend the race.
        is_over = bool(lineage.group("branch", 1) or lineage.group("restart", 1))
        if not is_over and not all_finished(lineage.group("startup", 0), race.size):
            return race
    restarts = [s for s in lineage if s.role == "restart" and s.cycle >= first]
    if restarts:
        restart = next_restart(plan, stretch, lineage, restarts)
        return restart or _tail(plan, stretch, lineage, max(s.cycle for s in restarts) + 1)
    n_rounds = plan.n_rounds(stretch.end - stretch.start)
    for cycle in range(first, first + n_rounds):
        parent, rest = _parent(lineage, cycle), _rest(stretch, lineage, cycle)
        has_begun = bool(lineage.group("branch", cycle))
        # An extension by a few epochs occupies some of the workers.
        least = MIN_EPOCHS * (1 if cycle == first else plan.width)
        if rest <= 0 or (rest < least and not has_begun and parent is not None):
            return None
        if not has_begun and parent is not None and is_overfitted(lineage, parent):
            restart = next_restart(plan, stretch, lineage, [])
            if restart is not None:
                return restart
        share = 1.0 if cycle == first + n_rounds - 1 else _INNER_SHARE
        phase = _round(plan, cycle, parent, max(1, math.floor(share * rest)))
        if not all_finished(lineage.group("branch", cycle), phase.size):
            return phase
    return _tail(plan, stretch, lineage, first + n_rounds)


def is_overfitted(lineage: Lineage, segment: Segment) -> bool:
    """Whether the lowest validation loss of an annealed segment came long before its end.

    A value that is minimized counts as a loss. An accuracy that is maximized stays level at the
    end of a training, so that its best epoch may be any of these: the loss beside it counts. A
    return without a loss shows no overfitting.
    """
    if segment.checkpoint is None:
        return False
    age = int(segment.checkpoint["best_epoch"]) - segment.birth
    if lineage.sign < 0:
        losses = [math.inf if v is None else v for v in segment.metrics.get("loss", ())]
        lowest = min(losses, default=math.inf)
        age = 1 + losses.index(lowest) if lowest < math.inf else segment.trained
    return age < _OVERFITTED_SHARE * segment.trained


def _tail(plan: Plan, stretch: Stretch, lineage: Lineage, cycle: int) -> Phase | None:
    """One more round for epochs that failures or restarts left; :obj:`None` for a few of them."""
    rest = _rest(stretch, lineage, cycle)
    if rest < MIN_EPOCHS * plan.width:
        return None
    phase = _round(plan, cycle, _parent(lineage, cycle), rest)
    is_finished = all_finished(lineage.group("branch", cycle), phase.size)
    return None if is_finished else phase


def _parent(lineage: Lineage, cycle: int) -> Segment | None:
    """The segment whose best weights the heirs of ``cycle`` continue.

    After the race it is its winner, even if another network was better before its end: that one
    overfits, and is not the one to train further.
    """
    winner = lineage.winner("startup", 0) if cycle == 1 else None
    return winner or lineage.best_before(cycle)


def _rest(stretch: Stretch, lineage: Lineage, cycle: int) -> int:
    """Epochs of the stretch that are left for ``cycle`` and later ones."""
    return stretch.end - sum(s.trained for s in lineage if s.cycle < cycle)


def _race(plan: Plan, n_epochs: int) -> Phase:
    """The race: annealed trainings from the initial weights, some of them cut half-way.

    Where every worker has one of them, none is cut: its worker would idle.
    """
    size = plan.race_size(n_epochs)
    width = min(plan.width, size)
    n_left = size // 2 + 1 if width == 1 else width * math.ceil(size / (2 * width))
    # The shortest budgets do not suffice for heirs.
    share = plan.startup_share if n_epochs >= MIN_EPOCHS_PER_WORKER else 1.0
    affordable = math.floor(share * n_epochs / width)

    def cost(length: int) -> int:
        """Epochs of the race that follow each other."""
        first = math.ceil(length / 2)
        return math.ceil(size / width) * first + math.ceil(n_left / width) * (length - first)

    length = max(1, bisect_right(range(1, n_epochs + 1), affordable, key=cost))
    if plan.width > 1:
        length = min(length, max(MIN_EPOCHS, math.floor(_WIDE_SHARE * n_epochs / plan.width)))
    first = math.ceil(length / 2)
    is_cut = size > width and plan.prune and length > 1
    return Phase(
        role="startup",
        cycle=0,
        parent=None,
        n_epochs=length,
        size=size,
        rungs=(first, length - first) if is_cut else (length,),
        n_left=n_left,
        by_step=True,
    )


def _round(plan: Plan, cycle: int, parent: Segment | None, n_epochs: int) -> Phase:
    """A round of heirs: all train for a seventh of its length, and the best train the rest.

    As many train the rest as there are workers. Where every worker has one heir, none is cut.

    Args:
        plan: The run's plan.
        cycle: Its cycle.
        parent: The segment whose best weights the heirs continue.
        n_epochs: Epochs of all heirs together.
    """
    size = plan.whole_waves(plan.population_size, n_epochs // MIN_EPOCHS)
    width = min(plan.width, size)
    is_cut = size > width and plan.prune
    first = max(1, n_epochs // (size + _CUT * width))
    length = first + (n_epochs - size * first) // width if is_cut else n_epochs // size
    return Phase(
        role="branch",
        cycle=cycle,
        parent=parent,
        n_epochs=length,
        size=size,
        rungs=(first, length - first) if is_cut else (length,),
        n_left=width,
        by_step=True,
    )
