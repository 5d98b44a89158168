"""With which parameters each place of a phase is trained."""

from __future__ import annotations

import optuna

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Role, Segment
from optuna_miha._search.crossover import AverageWeights, Child, Crossover, cross_fittest
from optuna_miha._search.mutation import Params, describe
from optuna_miha._search.phases import Phase, calming, peak, scaled
from optuna_miha._search.plan import Plan
from optuna_miha._search.sampler import MihaSampler, Run

_logger = optuna.logging.get_logger("optuna.miha")


class Proposals:
    """Gives every place its parameters: those of the phase's parent, or what is proposed.

    Args:
        study: The study, whose sampler proposes.
        lineage: The record.
        plan: The plan.
        run: What proposals depend on, the initial configuration among it.
        crossover: What becomes of the two fittest branches together.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        lineage: Lineage,
        plan: Plan,
        run: Run,
        crossover: Crossover | AverageWeights | None,
    ) -> None:
        self._study = study
        self._lineage = lineage
        self._plan = plan
        self._run = run
        self._crossover = crossover

    def of(self, phase: Phase, branch: int) -> Params | None:
        """The parameters for one place; :obj:`None` if they are up to a sampler of Optuna's."""
        parent, sampler = phase.parent, self._study.sampler
        if phase.role == "startup":
            if branch == 0:
                return self._run.initial_params
            if isinstance(sampler, MihaSampler):
                return sampler.propose_startup(self._run, branch)
            return None
        if phase.role == "restart":
            return self._restarted(phase)
        params, distributions = self._run.initial_params, self._run.distributions
        if parent is not None:
            params, distributions = self._paced(phase.role, parent), parent.distributions
        if phase.role in ("trunk", "final"):
            calmer = scaled(params, distributions, calming(self._lineage, parent))
            if calmer != params:
                whence = "the start" if parent is None else f"the end of trial {parent.number}"
                _logger.warning(
                    f"Training diverged; it goes on from {whence} with {describe(params, calmer)}."
                )
            return calmer
        if phase.role != "branch" or (self._plan.control and branch == 0):
            return params
        if isinstance(sampler, MihaSampler):
            return sampler.propose_branch(self._run, phase.cycle, branch, params, distributions)
        return None

    def child(self, phase: Phase, branch: int) -> Child | None:
        """The child of the two fittest of the cycle before, if this is its place."""
        crossover, trunk, is_last = self._crossover, phase.parent, branch == phase.size - 1
        if phase.role != "branch" or trunk is None or not is_last:
            return None
        if crossover is None or isinstance(crossover, AverageWeights):
            return None
        return cross_fittest(
            crossover, self._lineage, trunk, run=self._run, cycle=phase.cycle, branch=branch
        )

    def before(self, phase: Phase) -> Params:
        """The parameters that a change is told against."""
        before = self._lineage.best() if phase.role == "restart" else phase.parent
        return self._run.initial_params if before is None else before.params

    def _restarted(self, phase: Phase) -> Params | None:
        """The parameters of a new training: the best so far, and changes from the second on."""
        best, sampler = self._lineage.best(), self._study.sampler
        assert best is not None
        params = self._paced(phase.role, best)
        if not any(s.role == "restart" for s in self._lineage):
            return params
        if isinstance(sampler, MihaSampler):
            return sampler.propose_restart(self._run, phase.cycle, params, best.distributions)
        return None

    def _paced(self, role: Role, before: Segment) -> Params:
        """The parameters of a segment, with the learning rate that suits another role."""
        now = peak(self._plan, self._lineage, role)
        then = peak(self._plan, self._lineage, before.role, before.number)
        return scaled(before.params, before.distributions, now / then)
