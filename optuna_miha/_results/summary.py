"""Descriptions of a run, generated from its history."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.control import is_without_effect
from optuna_miha._search.mutation import NO_CHANGE, describe

_ROLE_NAMES = {"startup": "start-up race"}
"""Names of roles in descriptions, if they differ from the roles."""


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A cycle with a population.

    Args:
        number: The number of the cycle.
        winner: The branch that the run continued; :obj:`None` if all were pruned or failed.
        before: The value at the end of the winner's parent; :obj:`None` without a parent.
        after: The value at the end of the winner; :obj:`None` without a winner.
        n_branches: The number of branches.
        n_pruned: The number of pruned branches.
        n_failed: The number of failed branches.
        n_without_effect: The number of branches that equal the control bit for bit.
    """

    number: int
    winner: Segment | None
    before: float | None
    after: float | None
    n_branches: int
    n_pruned: int
    n_failed: int
    n_without_effect: int

    @property
    def change(self) -> str:
        """A description of the winner's mutation."""
        if self.winner is None:
            return "every branch was pruned or failed"
        return "the control" if self.winner.mutation == NO_CHANGE else self.winner.mutation

    @property
    def course(self) -> str:
        """The values before and after the cycle, such as ``"0.42 -> 0.39"``."""
        values = [value for value in (self.before, self.after) if value is not None]
        return " -> ".join(f"{value:.4g}" for value in values)


def cycles_of(lineage: Lineage) -> list[Cycle]:
    """The cycles of a run with branches."""
    last = max((segment.cycle for segment in lineage), default=0)
    cycles = []
    for number in range(1, last + 1):
        branches = lineage.group("branch", number).values()
        if not branches:
            continue
        winner = lineage.continued("branch", number)
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
                n_without_effect=sum(is_without_effect(lineage, b) for b in branches),
            )
        )
    return cycles


def race_line(lineage: Lineage) -> str | None:
    """Describe the start-up race; :obj:`None` without one."""
    winner = lineage.continued("startup", 0)
    if winner is None:
        return None
    change = "the initial configuration" if winner.mutation == NO_CHANGE else winner.mutation
    return f"start-up race of {len(lineage.group('startup', 0))}: {change}"


def restarts_line(lineage: Lineage) -> str | None:
    """Describe the restarts; :obj:`None` without any."""
    restarts = [s for s in lineage if s.role == "restart"]
    if not restarts:
        return None
    line = f"{len(restarts)} restarts from the initial weights"
    complete = [s for s in restarts if s.value is not None]
    if complete:
        # The model is selected by the same criterion.
        best = min(complete, key=lambda s: (lineage.cost(s), s.number))
        change = "the best parameters so far" if best.mutation == NO_CHANGE else best.mutation
        line += f", the best: {change} ({best.value:.4g}, trial {best.number})"
    return line


def final_line(lineage: Lineage) -> str | None:
    """Describe where the final phase starts; :obj:`None` if it continues the end of the trunk."""
    finals = [s for s in lineage if s.role == "final"]
    start = lineage.parent(finals[-1]) if finals else None
    if start is None:
        return None
    trunk = [
        s.position
        for s in lineage
        if s.role in ("startup", "branch", "trunk") and lineage.continued(s.role, s.cycle) is s
    ]
    if start.role != "restart" and start.position == max(trunk, default=None):
        return None
    place = f" of cycle {start.cycle}" if start.role in ("branch", "trunk") else ""
    role = _ROLE_NAMES.get(start.role, start.role)
    return (
        f"final phase: continues trial {start.number} ({role}{place}), which was the best so far"
    )


def best_line(lineage: Lineage, best: Segment) -> str:
    """Describe the best network of a run.

    Args:
        lineage: The history.
        best: The segment of the network.
    """
    age = best.end if best.checkpoint is None else best.checkpoint["best_epoch"]
    role = _ROLE_NAMES.get(best.role, best.role)
    return (
        f"best value {best.value:.6g} in trial {best.number} ({role}) after "
        f"{age} epochs of its lineage; {lineage.spent} epochs trained in all"
    )


def sentences(lineage: Lineage, best: Segment) -> list[str]:
    """Sentences on the best network of a run, the race and the restarts, for reports.

    Args:
        lineage: The history.
        best: The segment of the best network.
    """
    lines = [best_line(lineage, best), race_line(lineage)]
    lines += [restarts_line(lineage), final_line(lineage)]
    return [f"{line[:1].upper()}{line[1:]}." for line in lines if line is not None]


def describe_run(lineage: Lineage, best: Segment) -> str:
    """Describe the race, the best change of every cycle and the best network, one line each.

    Args:
        lineage: The history.
        best: The segment of the best network.
    """
    lines = [race_line(lineage)]
    for cycle in cycles_of(lineage):
        line = f"cycle {cycle.number}: {cycle.change}"
        if cycle.winner is not None:
            line += f" ({cycle.course}, trial {cycle.winner.number})"
        lines.append(line)
    lines += [restarts_line(lineage), final_line(lineage), best_line(lineage, best)]
    lines.append(f"its parameters: {describe({}, best.params)}")
    return "\n".join(line for line in lines if line is not None)
