"""A run in words, read from its record alone."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.mutation import NO_CHANGE, describe

_ROLES = {"startup": "start-up race", "restart": "new training"}
"""Roles whose own word is not that of the pages."""


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """One cycle that had a population.

    Args:
        number: The cycle.
        winner: The fittest branch; :obj:`None` if every branch was pruned or failed.
        before: The value at the end of the winner's parent; :obj:`None` if it has none.
        after: The value at the end of the winner; :obj:`None` without one.
        n_branches: Branches of the population.
        n_pruned: Those of them that were cut.
        n_failed: Those of them that failed.
    """

    number: int
    winner: Segment | None
    before: float | None
    after: float | None
    n_branches: int
    n_pruned: int
    n_failed: int

    @property
    def change(self) -> str:
        """What the winner changed, in words."""
        if self.winner is None:
            return "every branch was pruned or failed"
        return "the control" if self.winner.mutation == NO_CHANGE else self.winner.mutation

    @property
    def course(self) -> str:
        """The values before and after it: ``"0.42 -> 0.39"``."""
        values = [value for value in (self.before, self.after) if value is not None]
        return " -> ".join(f"{value:.4g}" for value in values)


def cycles_of(lineage: Lineage) -> list[Cycle]:
    """The cycles of a run that had branches."""
    last = max((segment.cycle for segment in lineage), default=0)
    cycles = []
    for number in range(1, last + 1):
        branches = lineage.group("branch", number).values()
        if not branches:
            continue
        winner = lineage.winner("branch", number)
        parent = None if winner is None else lineage.parent(winner)
        states = [branch.state for branch in branches]
        cycles.append(
            Cycle(
                number=number,
                winner=winner,
                before=None if parent is None else parent.last_score,
                after=None if winner is None else winner.last_score,
                n_branches=len(states),
                n_pruned=states.count(TrialState.PRUNED),
                n_failed=states.count(TrialState.FAIL),
            )
        )
    return cycles


def race_line(lineage: Lineage) -> str | None:
    """The start-up race in words; :obj:`None` if there was none."""
    winner = lineage.winner("startup", 0)
    if winner is None:
        return None
    change = "the initial configuration" if winner.mutation == NO_CHANGE else winner.mutation
    return f"start-up race of {len(lineage.group('startup', 0))}: {change}"


def restarts_line(lineage: Lineage) -> str | None:
    """The new trainings in words; :obj:`None` if there were none."""
    restarts = [s for s in lineage if s.role == "restart"]
    if not restarts:
        return None
    line = f"{len(restarts)} new trainings from the initial weights"
    able = [s for s in restarts if s.value is not None]
    if able:
        best = min(able, key=lambda s: (lineage.cost(s), s.number))  # As the model is chosen.
        change = "the best parameters so far" if best.mutation == NO_CHANGE else best.mutation
        line += f", the best: {change} ({best.value:.4g}, trial {best.number})"
    return line


def best_line(lineage: Lineage, best: Segment) -> str:
    """The best network of a run in words.

    Args:
        lineage: The record.
        best: The segment that the network comes from.
    """
    age = best.end if best.checkpoint is None else best.checkpoint["best_epoch"]
    role = _ROLES.get(best.role, best.role)
    return (
        f"best value {best.value:.6g} in trial {best.number} ({role}) after "
        f"{age} epochs of its lineage; {lineage.spent} epochs trained in all"
    )


def sentences(lineage: Lineage, best: Segment) -> list[str]:
    """The best network of a run, its race and its new trainings, for a page.

    Args:
        lineage: The record.
        best: The segment that the network comes from.
    """
    lines = [best_line(lineage, best), race_line(lineage), restarts_line(lineage)]
    return [f"{line[:1].upper()}{line[1:]}." for line in lines if line is not None]


def describe_run(lineage: Lineage, best: Segment) -> str:
    """The race, the best change of every cycle and the best network, a line each.

    Args:
        lineage: The record.
        best: The segment that the best network comes from.
    """
    lines = [race_line(lineage)]
    for cycle in cycles_of(lineage):
        line = f"cycle {cycle.number}: {cycle.change}"
        if cycle.winner is not None:
            line += f" ({cycle.course}, trial {cycle.winner.number})"
        lines.append(line)
    lines += [restarts_line(lineage), best_line(lineage, best)]
    lines.append(f"its parameters: {describe({}, best.params)}")
    return "\n".join(line for line in lines if line is not None)
