"""Selecting siblings: which are pruned, which one is continued, and what is kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optuna
from optuna.trial import TrialState

from optuna_miha._history.lineage import ranking
from optuna_miha._history.scalars import as_float
from optuna_miha._history.segment import make_curve
from optuna_miha._run.pruner_view import PrunerView, is_stateless
from optuna_miha._run.session import Session
from optuna_miha._search.phases import Phase
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.startup_race import is_extrapolated, race_rungs
from optuna_miha._study.retention import Retention
from optuna_miha._study.sibling import Sibling
from optuna_miha._study.trial_log import TrialLog
from optuna_miha._training.spool import file_label
from optuna_miha.fitness import last_value, power_law

_logger = optuna.logging.get_logger("optuna.miha")

Refine: TypeAlias = Callable[[Sequence[Sibling]], None]
"""Changes the state of the fittest branch, given all surviving branches by fitness."""


class Selection:
    """Prunes siblings between rungs, and selects the fittest at the end of a phase.

    Args:
        session: The session.
        trial_log: Starts and finishes the trials of the run.
        retention: The checkpoints of the run.
        refine: Called at the end of a population, before its trials are finished.
    """

    def __init__(
        self,
        session: Session,
        *,
        trial_log: TrialLog,
        retention: Retention,
        refine: Refine | None,
    ) -> None:
        self._study = session.study
        self._plan = session.plan
        self._fitness = session.arguments.fitness
        self._trial_log = trial_log
        self._lineage = trial_log.lineage
        self._retention = retention
        self._refine = refine

    def prune(
        self, phase: Phase, siblings: list[Sibling], alive: list[Sibling], *, age: int, rung: int
    ) -> None:
        """Prune hopeless siblings after a rung that all siblings have finished.

        Args:
            phase: The phase.
            siblings: All siblings.
            alive: The siblings that finished the rung.
            age: Number of epochs that each of them has trained.
            rung: Number of the rung, starting at 1.
        """
        for sibling in alive:
            self._trial_log.update_violation(sibling)
        # All decisions precede the first finished trial, and do not depend on completion order.
        for sibling in self._hopeless(phase, siblings, alive, age, rung):
            if sibling.trial is not None:  # Otherwise an earlier process finished it.
                self._trial_log.close(sibling, TrialState.PRUNED)
                member, state = self._write_member(phase, sibling), sibling.state
                self._retention.add_member(self._trial_log.prune(sibling, member))
                self._retention.release(state)

    def _hopeless(
        self, phase: Phase, siblings: list[Sibling], alive: list[Sibling], age: int, rung: int
    ) -> list[Sibling]:
        """The siblings to prune; see :meth:`prune`."""
        if phase.by_step:
            return self._hopeless_by_step(phase, siblings, alive, age)
        if phase.role != "startup":
            if self._has_violations(phase, alive):
                return []
            # The control is kept: otherwise a branch that gets worse later would win by default.
            first = 1 if self._plan.control else 0
            candidates = [s for s in alive if s.trial is not None and s.branch >= first]
            is_hopeless = self._rule(phase, siblings, age)
            return [sibling for sibling in candidates if is_hopeless(sibling)]

        def rank(sibling: Sibling) -> tuple[float, float, int]:
            scores = sibling.segment.scores if sibling.segment else sibling.scores
            curve = make_curve(scores[:age], self._lineage.sign, 0, None)
            return sibling.violation, -power_law(curve), sibling.branch

        n_left, _ = race_rungs(phase.size)[rung]
        return sorted(alive, key=rank)[n_left:]

    def _hopeless_by_step(
        self, phase: Phase, siblings: list[Sibling], alive: list[Sibling], age: int
    ) -> list[Sibling]:
        """The siblings to prune in a plan of rounds, at equal progress of their annealing.

        Those that the pruner finds hopeless are followed by the worst of the others, until as many
        are left as the budget allows. Infeasible siblings are worse than feasible ones.
        """
        hopeless: list[Sibling] = []
        if not self._has_violations(phase, alive):
            is_exempt = phase.role == "branch" and self._plan.control
            is_hopeless = self._rule(phase, siblings, age)
            candidates = [s for s in alive if s.branch >= is_exempt]
            hopeless = [s for s in candidates if _was_pruned(s) or (s.trial and is_hopeless(s))]

        def rank(sibling: Sibling) -> tuple[float, bool, float, int]:
            cost = self._cost_at(sibling, age)
            return sibling.violation, sibling in hopeless, cost, sibling.branch

        order = sorted(alive, key=rank)
        n_left = min(phase.n_left, max(1, len(alive) - len(hopeless)))
        return order[n_left:]

    def _has_violations(self, phase: Phase, alive: list[Sibling]) -> bool:
        """Whether constraints were violated: pruners would stop feasible branches."""
        before = (s for s in self._lineage if (s.role, s.cycle) != (phase.role, phase.cycle))
        return any(s.violation for s in before) or any(s.violation for s in alive)

    def _cost_at(self, sibling: Sibling, age: int) -> float:
        scores = sibling.segment.scores if sibling.segment else sibling.scores
        return self._lineage.sign * scores[age - 1]

    def _rule(self, phase: Phase, siblings: list[Sibling], age: int) -> Callable[[Sibling], bool]:
        """The decision of the study's pruner as a function of a sibling."""
        pruner, sign = self._study.pruner, self._lineage.sign
        if isinstance(pruner, SlopePruner):  # It needs the values of the siblings alone.
            compared = [s for s in siblings if s.survives(age) or not s.is_failed]
            return lambda sibling: pruner.is_hopeless(
                sibling.costs(sign),
                [s.costs(sign) for s in compared if s is not sibling],
                birth=sibling.birth,
                end=sibling.birth + phase.n_epochs,
            )
        if is_stateless(pruner):
            return PrunerView(self._study, self._lineage, phase, siblings, age=age).is_hopeless
        return _ask_study

    def select(self, phase: Phase, alive: list[Sibling]) -> None:
        """Select the fittest, finish the trials, and remove checkpoints that are not needed.

        Args:
            phase: The phase.
            alive: The siblings that trained to their end.
        """
        ranked = self._rank(phase, alive)
        winner = ranked[0] if ranked else None
        if phase.role == "branch" and self._refine is not None:
            self._refine(ranked)
        pending = [s for s in alive if s.trial is not None and s.state is not None]
        # The winner is finished first, then the others by cost. If the run is killed in between,
        # every finished trial that may be selected on resuming has a checkpoint. At most two
        # checkpoints are written.
        order = {s: (s is not winner, s.violation, self._best_cost(s), s.branch) for s in pending}
        for sibling in sorted(pending, key=lambda s: order[s]):
            self._finish(phase, sibling, is_winner=sibling is winner)
        chosen = self._lineage.winner(phase.role, phase.cycle)
        self._retention.clean(chosen or phase.parent)

    def _rank(self, phase: Phase, alive: list[Sibling]) -> list[Sibling]:
        """Compute fitness and violation, and sort the siblings; see :func:`ranking`."""
        fitness = last_value  # A single sibling wins with any fitness.
        if phase.role == "branch":
            fitness = self._fitness
        elif phase.role == "startup" and is_extrapolated(self._lineage, by_step=phase.by_step):
            fitness = power_law
        for sibling in alive:
            if sibling.segment is not None:
                sibling.fitness = sibling.segment.fitness
                sibling.violation = sibling.segment.violation
                continue
            curve = make_curve(sibling.scores, self._lineage.sign, sibling.birth, sibling.parent)
            sibling.fitness = as_float(fitness(curve), "The return value of `fitness`")
            self._trial_log.close(sibling, TrialState.COMPLETE)
        by_branch = {s.branch: s for s in alive}
        order = ranking({s.branch: (s.violation, s.fitness) for s in alive})
        return [by_branch[branch] for branch in order]

    def _finish(self, phase: Phase, sibling: Sibling, *, is_winner: bool) -> None:
        """Write the checkpoint and the best weights if they are needed, and finish the trial."""
        state = sibling.state
        assert state is not None
        is_best = self._lineage.would_be_best(
            sibling.violation,
            self._best_cost(sibling),
            phase.role,
            phase.cycle,
            sibling.branch,
        )
        checkpoint = None
        if self._retention.needs_checkpoint(winner=is_winner, new_best=is_best):
            checkpoint = self._retention.write(state, _file_label(phase, sibling))
        member = self._write_member(phase, sibling)
        segment = self._trial_log.complete(sibling, checkpoint, member)
        self._retention.add_member(segment)
        if checkpoint is not None:
            self._retention.add(segment.number, checkpoint, state)
        self._retention.release(state)

    def _write_member(self, phase: Phase, sibling: Sibling) -> dict[str, Any] | None:
        """Write the best weights of a closed sibling if an ensemble may need them."""
        assert sibling.state is not None
        label = _file_label(phase, sibling)
        return self._retention.write_member(sibling.state, sibling.violation, label)

    def _best_cost(self, sibling: Sibling) -> float:
        """The best value of a sibling, oriented so that lower is better."""
        assert sibling.state is not None
        return float(self._lineage.sign * sibling.state["best"]["value"])

    def clean_up(self) -> None:
        """Remove the checkpoints that are not needed after the end of the run."""
        self._retention.remove_orphans()  # Possibly of a coordinator that was suspended.
        self._retention.clean(self._lineage.best())


def _was_pruned(sibling: Sibling) -> bool:
    """Whether an earlier process pruned it."""
    return sibling.segment is not None and sibling.segment.state == TrialState.PRUNED


def _ask_study(sibling: Sibling) -> bool:
    """The decision of a pruner that may store something in the study, or is of unknown class."""
    assert sibling.trial is not None
    return sibling.trial.publish().should_prune()


def _file_label(phase: Phase, sibling: Sibling) -> str:
    """The part of a file name that identifies a sibling."""
    return file_label(phase.role, phase.cycle, sibling.branch)
