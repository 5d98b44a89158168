"""The coordinator: the loop over the phases of a run."""

from __future__ import annotations

import time
from contextlib import suppress

import optuna
from optuna.trial import TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import position_of
from optuna_miha._run.population import Population
from optuna_miha._run.progress import Progress
from optuna_miha._run.selection import Selection
from optuna_miha._run.session import Session
from optuna_miha._run.story import log_end_of, log_result, log_start_of, log_stop, phase_label
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._search.plan import Plan
from optuna_miha._search.startup_race import race_rungs
from optuna_miha._study.optuna_internals import is_stopped
from optuna_miha._study.setup import record_progress

_logger = optuna.logging.get_logger("optuna.miha")


class Coordinator:
    """Trains the phases of a stretch, one after the other, until the budget is spent.

    Args:
        session: The session.
        lineage: The history, to which population and selection add segments.
        population: Creates the siblings of a phase and trains them.
        selection: Prunes siblings, and selects the one that the run continues.
        progress: The progress bar, which shows the current phase.
    """

    def __init__(
        self,
        session: Session,
        *,
        lineage: Lineage,
        population: Population,
        selection: Selection,
        progress: Progress,
    ) -> None:
        self._session = session
        self._study = session.study
        self._lineage = lineage
        self._population = population
        self._selection = selection
        self._progress = progress

    def run(self, stretch: Stretch, deadline: float) -> None:
        """Train until the end of a stretch, unless a callback or the timeout stops the run.

        Args:
            stretch: The stretch.
            deadline: The time of :func:`time.monotonic` after which no phase begins.
        """
        plan, lease = self._session.plan, self._session.held_lease
        try:
            while (phase := next_phase(plan, stretch, self._lineage)) is not None:
                if is_stopped(self._study) or time.monotonic() >= deadline:
                    log_stop(self._lineage, stretch)
                    break
                lease.check()
                log_start_of(phase, self._lineage, stretch)
                self._train_phase(phase, stretch)
                self._progress.finish_phase()
                log_end_of(phase, self._lineage)
                record_progress(self._study, lease, self._lineage)
                if phase.role == "branch":
                    self._session.dashboard.refresh()
            else:
                self._selection.clean_up()
                log_result(self._lineage, self._session.n_classified)
                self._report_unspent_epochs(stretch)
        finally:
            with suppress(Exception):  # Otherwise they are failed when the run is resumed.
                if lease.is_mine():  # A process that took over may be training them.
                    self._population.fail_interrupted()

    def _train_phase(self, phase: Phase, stretch: Stretch) -> None:
        """Train the siblings of a phase rung by rung, and prune some after each rung."""
        siblings = self._population.create_siblings(phase, stretch)
        rungs = rungs_of(phase, self._session.plan)
        alive, age, spent = siblings, 0, self._spent_before(phase)
        for rung, n_epochs in enumerate(rungs, start=1):
            begin, spent = spent, spent + n_epochs * (1 if _is_alone(phase) else len(alive))
            share = (min(1.0, begin / stretch.end), min(1.0, spent / stretch.end))
            self._progress.show_phase(phase_label(phase, self._lineage, len(alive)))
            self._population.train(phase, alive, n_epochs, share)
            age += n_epochs
            alive = [s for s in alive if s.survives(age)]
            if rung < len(rungs):
                self._selection.prune(phase, siblings, alive, age=age, rung=rung)
                alive = [s for s in alive if s.survives(age + 1)]
        self._selection.select(phase, alive)

    def _spent_before(self, phase: Phase) -> int:
        """The epochs of the run before a phase, the same when the run is resumed within it."""
        here = position_of(phase.role, phase.cycle, phase.size - 1 if _is_alone(phase) else 0)
        return sum(s.trained for s in self._lineage if s.position < here)

    def _report_unspent_epochs(self, stretch: Stretch) -> None:
        """Say which part of the budget is unspent, and warn if the final phase failed."""
        unspent = stretch.end - self._lineage.spent
        if unspent > 0 and self._session.plan.is_annealed:
            _logger.info(
                f"Unspent: {unspent} of {stretch.end} epochs, too few for another round. A larger "
                "`n_epochs` continues the best network."
            )
        segments = [s for s in self._lineage if s.cycle >= stretch.first_cycle]
        finals = [s for s in segments if s.role == "final"]
        if unspent <= 0 or not finals or finals[-1].state == TrialState.COMPLETE:
            return
        if self._lineage.best() is None:
            return  # The error about the missing result says more.
        last = self._study.get_trials(deepcopy=False)[finals[-1].number]
        _logger.warning(
            f"The final phase failed (trial {last.number}: {last.user_attrs[attributes.ERROR]}), "
            f"and {unspent} of {stretch.end} epochs are unspent: a larger `n_epochs` continues "
            "the best network."
        )


def _is_alone(phase: Phase) -> bool:
    """Whether the siblings of a phase are attempts at one training, after each other."""
    return phase.role in ("trunk", "final")


def rungs_of(phase: Phase, plan: Plan) -> tuple[int, ...]:
    """The number of epochs of each rung of a phase."""
    if phase.rungs:
        return phase.rungs
    if phase.role == "startup":
        return tuple(n_epochs for _, n_epochs in race_rungs(phase.size))
    return plan.branch_rungs if phase.role == "branch" else (phase.n_epochs,)
