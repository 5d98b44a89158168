"""Selection: which siblings are pruned, which one the run continues, what is kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import optuna

from optuna_miha._history.lineage import ranking
from optuna_miha._history.scalars import as_float
from optuna_miha._history.segment import make_curve
from optuna_miha._run.session import Session
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import race_rungs
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._study.retention import Retention
from optuna_miha._study.sibling import Sibling
from optuna_miha._study.trial_log import TrialLog
from optuna_miha.fitness import last_value, power_law

_logger = optuna.logging.get_logger("optuna.miha")

Refine: TypeAlias = Callable[[Sequence[Sibling]], None]
"""Changes the state of the fittest branch of a population, given all survivors by fitness."""


class Selection:
    """Prunes siblings between rungs, and chooses the fittest at the end of a phase.

    Args:
        session: The session.
        trial_log: The trials of the run.
        retention: The checkpoints of the run.
        refine: Called at the end of a population, before anything is stored.
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
        """Prune hopeless siblings after a rung, when all have finished it.

        Args:
            phase: The phase.
            siblings: All siblings.
            alive: Those that finished the rung.
            age: Epochs that each of them was trained.
            rung: Number of the rung, from 1 on.
        """
        # Decided for all before any trial is finished: independent of their order.
        for sibling in self._hopeless(phase, siblings, alive, age, rung):
            if sibling.trial is not None:  # Otherwise an earlier process finished it.
                assert sibling.state is not None
                member = self._retention.write_member(sibling.state, label(phase, sibling))
                self._retention.add_member(self._trial_log.prune(sibling, member))

    def _hopeless(
        self, phase: Phase, siblings: list[Sibling], alive: list[Sibling], age: int, rung: int
    ) -> list[Sibling]:
        if phase.role != "startup":
            # The control stays: without it, a branch that falls off later would win by default.
            first = 1 if self._plan.control else 0
            judged = [s for s in alive if s.trial is not None and s.branch >= first]
            return [s for s in judged if self._is_hopeless(s, siblings)]

        def rank(sibling: Sibling) -> tuple[float, int]:
            scores = sibling.segment.scores if sibling.segment else sibling.scores
            curve = make_curve(scores[:age], self._lineage.sign, 0, None)
            return -power_law(curve), sibling.branch

        n_left, _ = race_rungs(phase.size)[rung]
        return sorted(alive, key=rank)[n_left:]

    def _is_hopeless(self, sibling: Sibling, siblings: list[Sibling]) -> bool:
        """The decision of the study's pruner; a :class:`SlopePruner` needs no storage for it."""
        pruner = self._study.pruner
        if not isinstance(pruner, SlopePruner):
            assert sibling.trial is not None
            return sibling.trial.publish().should_prune()
        sign = self._lineage.sign
        return pruner.is_hopeless(
            sibling.costs(sign),
            [s.costs(sign) for s in siblings if s is not sibling and not s.is_failed],
            birth=sibling.birth,
            end=sibling.birth + self._plan.branch_epochs,
        )

    def select(self, phase: Phase, alive: list[Sibling]) -> None:
        """Choose the fittest, store all that trained to their end, and remove old checkpoints."""
        ranked = self._ranked(phase, alive)
        winner = ranked[0] if ranked else None
        if phase.role == "branch" and self._refine is not None:
            self._refine(ranked)
        pending = [s for s in alive if s.trial is not None and s.state is not None]
        # The winner first, then those of the lowest cost: if the run is killed in between, the
        # stored trials alone decide, and each one that they could choose has a checkpoint. At
        # most two are written.
        for sibling in sorted(pending, key=lambda s: (s is not winner, self._cost(s), s.branch)):
            self._store(phase, sibling, is_winner=sibling is winner)
        chosen = self._lineage.winner(phase.role, phase.cycle)
        self._retention.clean(chosen or phase.parent)
        if phase.role == "branch" and chosen is not None:
            _logger.info(f"Cycle {phase.cycle}: {chosen.mutation} (trial {chosen.number}).")

    def _ranked(self, phase: Phase, alive: list[Sibling]) -> list[Sibling]:
        """The siblings by fitness, the fittest first; those of NaN fitness are left out."""
        by_role = {"startup": power_law, "branch": self._fitness}
        fitness = by_role.get(phase.role, last_value)  # Without siblings, any fitness wins.
        for sibling in alive:
            if sibling.segment is not None:
                sibling.fitness = sibling.segment.fitness
                continue
            curve = make_curve(sibling.scores, self._lineage.sign, sibling.birth, sibling.parent)
            sibling.fitness = as_float(fitness(curve), "What `fitness` returns")
        by_branch = {s.branch: s for s in alive}
        return [by_branch[b] for b in ranking({b: s.fitness for b, s in by_branch.items()})]

    def _store(self, phase: Phase, sibling: Sibling, *, is_winner: bool) -> None:
        """Write what is kept of a sibling, and finish its trial."""
        state = sibling.state
        assert state is not None
        leads = self._lineage.would_be_best(
            self._cost(sibling), phase.role, phase.cycle, sibling.branch
        )
        checkpoint = None
        if self._retention.needs_checkpoint(winner=is_winner, new_best=leads):
            checkpoint = self._retention.write(state, label(phase, sibling))
        member = self._retention.write_member(state, label(phase, sibling))
        segment = self._trial_log.complete(sibling, checkpoint, member)
        self._retention.add_member(segment)
        if checkpoint is not None:
            self._retention.add(segment.number, checkpoint, state)

    def _cost(self, sibling: Sibling) -> float:
        """The best value of a sibling that trained to its end; lower is better."""
        assert sibling.state is not None
        return float(self._lineage.sign * sibling.state["best"]["value"])

    def finish(self) -> None:
        """Remove the checkpoints that nothing needs when the run is over."""
        self._retention.clean(self._lineage.best())


def label(phase: Phase, sibling: Sibling) -> str:
    """Role, cycle and branch index of a sibling, for the names of its files."""
    return f"{phase.role}-{phase.cycle:03d}-{sibling.branch}"
