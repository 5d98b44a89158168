"""Descriptions of a run, generated from its history.

The log of a run, ``Result.describe``, the report and the note in optuna-dashboard use the same
sentences, which name each turn of the run with its reason and its values.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment, place_of
from optuna_miha._search.control import control_of, is_initial, is_without_effect
from optuna_miha._search.mutation import NO_CHANGE, describe
from optuna_miha._search.startup_race import is_extrapolated


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A cycle with a population.

    Args:
        number: The number of the cycle.
        kind: ``round`` if its branches are annealed by the step, else ``cycle``.
        winner: The branch that the run continued; :obj:`None` if all were pruned or failed.
        before: The value at the end of the winner's parent; :obj:`None` without a parent.
        after: The value at the end of the winner; :obj:`None` without a winner.
        control: The last value of the control; :obj:`None` if it is the winner, or absent.
        at_pruning: The value of the winner at the epoch at which the control was pruned;
            :obj:`None` if it was not.
        is_continued: Whether the run continued from the winner, or has nothing later yet.
        n_branches: The number of branches.
        n_pruned: The number of pruned branches.
        n_failed: The number of failed branches.
        n_without_effect: The number of branches that equal the control bit for bit.
    """

    number: int
    kind: str
    winner: Segment | None
    before: float | None
    after: float | None
    control: float | None
    at_pruning: float | None
    is_continued: bool
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

    @property
    def comparison(self) -> str:
        """The value of the control, and that of the winner at its last epoch if it was pruned."""
        if self.control is None:
            return ""
        at_pruning = (
            "" if self.at_pruning is None else f" against {self.at_pruning:.4g} when it was pruned"
        )
        return f"{self.control:.4g}{at_pruning}"

    @property
    def line(self) -> str:
        """The cycle in one line: its best change, the values, and whether the run continued it."""
        line = f"{self.kind} {self.number}: {self.change}"
        if self.winner is None:
            return line
        control = "" if self.control is None else f", the control {self.comparison}"
        line += f" ({self.course}{control}, trial {self.winner.number})"
        return line if self.is_continued else f"{line}, not continued"


def cycles_of(lineage: Lineage) -> list[Cycle]:
    """The cycles of a run with branches."""
    last = max((segment.cycle for segment in lineage), default=0)
    end = max((segment.position for segment in lineage), default=None)
    parents, best = {segment.parent for segment in lineage}, lineage.best()
    cycles = []
    for number in range(1, last + 1):
        branches = lineage.group("branch", number).values()
        if not branches:
            continue
        winner = lineage.continued("branch", number)
        parent = None if winner is None else lineage.parent(winner)
        control = control_of(lineage, number)
        is_last = end is not None and max(b.position for b in branches) == end
        states = [branch.state for branch in branches]
        if control is winner:
            control = None
        cycles.append(
            Cycle(
                number=number,
                kind="round" if any(branch.by_step for branch in branches) else "cycle",
                winner=winner,
                before=None if parent is None else parent.last_score,
                after=None if winner is None else winner.last_score,
                control=None if control is None else control.last_score,
                at_pruning=_score_at_pruning(winner, control),
                is_continued=(
                    is_last or winner is best or (winner is not None and winner.number in parents)
                ),
                n_branches=len(states),
                n_pruned=states.count(TrialState.PRUNED),
                n_failed=states.count(TrialState.FAIL),
                n_without_effect=sum(is_without_effect(lineage, b) for b in branches),
            )
        )
    return cycles


def _score_at_pruning(winner: Segment | None, control: Segment | None) -> float | None:
    """The score of a winner at the last epoch of a control that was pruned.

    Both are annealed in parallel: only values at the same epoch can be compared.
    """
    if winner is None or control is None or control.state != TrialState.PRUNED:
        return None
    if len(winner.scores) < len(control.scores):
        return None
    return winner.scores[len(control.scores) - 1]


def race_line(lineage: Lineage) -> str | None:
    """Describe the start-up race; :obj:`None` without one."""
    winner = lineage.continued("startup", 0)
    if winner is None:
        return None
    candidates = lineage.group("startup", 0)
    initial = next((s for s in candidates.values() if is_initial(s) and s.scores), None)
    change = winner.mutation
    if is_initial(winner):
        peak = "" if winner.mutation == NO_CHANGE else f", {winner.mutation}"
        change = f"the initial configuration{peak}"
    race = f"start-up race of {len(candidates)}" if len(candidates) > 1 else "no start-up race"
    line = f"{race}: {change} ({winner.value:.4g}"
    if initial is not None and initial is not winner:
        line += f", the initial configuration {initial.last_score:.4g} after {initial.end} epochs"
    line += f", trial {winner.number}"
    best = min(candidates.values(), key=lambda s: (s.violation, lineage.cost(s)))
    if lineage.cost(best) < lineage.cost(winner):
        is_guess = is_extrapolated(lineage, by_step=winner.by_step)
        how = "extrapolated" if is_guess else "at its end"
        line += f"; {how} better than trial {best.number}, whose best epoch has {best.value:.4g}"
    return f"{line})"


def overfitting_line(lineage: Lineage, cycle: int | None = None) -> str | None:
    """Describe why restarts follow; :obj:`None` without restarts.

    Args:
        lineage: The history.
        cycle: The cycle of the first restarts. By default, the first one of the history.
    """
    if cycle is None:
        cycle = min((s.cycle for s in lineage if s.role == "restart"), default=None)
    best = None if cycle is None else lineage.best_before(cycle)
    if best is None:
        return None
    epoch = best.end if best.checkpoint is None else best.checkpoint["best_epoch"]
    return (
        f"the trunk has not improved since epoch {epoch} ({best.value:.4g}, trial {best.number}): "
        "it overfits, and the rest of the budget is spent on restarts from the initial weights"
    )


def restart_line(lineage: Lineage, restart: Segment) -> str:
    """Describe a restart: its number, its change, and its value."""
    restarts = sorted((s for s in lineage if s.role == "restart"), key=lambda s: s.position)
    change = _restart_change(restart)
    line = f"restart {restarts.index(restart) + 1}: {change}"
    if restart.value is None:
        outcome = "pruned" if restart.state == TrialState.PRUNED else "failed"
        return f"{line} ({outcome}, trial {restart.number})"
    news = ", the best so far" if lineage.best() is restart else ""
    return f"{line} ({restart.value:.4g}{news}, trial {restart.number})"


def restarts_line(lineage: Lineage) -> str | None:
    """Describe the restarts; :obj:`None` without any."""
    restarts = [s for s in lineage if s.role == "restart"]
    if not restarts:
        return None
    plural = "" if len(restarts) == 1 else "s"
    line = f"{len(restarts)} restart{plural} from the initial weights"
    complete = [s for s in restarts if s.value is not None]
    if complete:
        # The model is selected by the same criterion.
        best = min(complete, key=lambda s: (lineage.cost(s), s.number))
        line += f", the best with {_restart_change(best)} ({best.value:.4g}, trial {best.number})"
    return line


def _restart_change(restart: Segment) -> str:
    return "the best parameters so far" if restart.mutation == NO_CHANGE else restart.mutation


def final_line(lineage: Lineage) -> str | None:
    """Describe the final phase: where it starts, and its value; :obj:`None` without one."""
    finals = [s for s in lineage if s.role == "final"]
    if not finals:
        return None
    start, last = lineage.parent(finals[-1]), finals[-1]
    values = [] if start is None else [start.last_score]
    if last.value is not None:
        values.append(last.value)
    course = " -> ".join(f"{value:.4g}" for value in values)
    return f"final phase of {last.trained} epochs: {start_of_final(lineage, start)} ({course})"


def start_of_final(lineage: Lineage, start: Segment | None) -> str:
    """Describe the segment that a final phase continues.

    Args:
        lineage: The history.
        start: The segment; :obj:`None`: the phase starts from the initial weights.
    """
    if start is None:
        return "from the initial weights"
    trunk = [
        s.position
        for s in lineage
        if s.role in ("startup", "branch", "trunk") and lineage.continued(s.role, s.cycle) is s
    ]
    if start.role != "restart" and start.position == max(trunk, default=None):
        return f"continues the end of the trunk, trial {start.number}"
    return f"continues trial {start.number} ({place_of(start)}), which was the best so far"


def best_line(lineage: Lineage, best: Segment) -> str:
    """Describe the best network of a run.

    Args:
        lineage: The history.
        best: The segment of the network.
    """
    age = best.end if best.checkpoint is None else best.checkpoint["best_epoch"]
    return (
        f"best value {best.value:.6g} in trial {best.number} ({place_of(best)}) after "
        f"{age} epochs of its lineage; {lineage.spent} epochs trained in all"
    )


def sentences(lineage: Lineage, best: Segment) -> list[str]:
    """Sentences on the best network of a run, the race and the restarts, for reports.

    Args:
        lineage: The history.
        best: The segment of the best network.
    """
    lines = [best_line(lineage, best), race_line(lineage), overfitting_line(lineage)]
    lines += [restarts_line(lineage), final_line(lineage)]
    return [as_sentence(line) for line in lines if line is not None]


def as_sentence(line: str) -> str:
    """A line with a capital letter and a full stop."""
    return f"{line[:1].upper()}{line[1:]}."


def describe_run(lineage: Lineage, best: Segment) -> str:
    """Describe the race, the best change of every cycle and the best network, one line each.

    Args:
        lineage: The history.
        best: The segment of the best network.
    """
    lines = [race_line(lineage), *(cycle.line for cycle in cycles_of(lineage))]
    lines += [overfitting_line(lineage), restarts_line(lineage), final_line(lineage)]
    lines += [best_line(lineage, best), f"its parameters: {describe({}, best.params)}"]
    return "\n".join(line for line in lines if line is not None)
