"""The hyperparameters of each sibling of a phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Role, Segment
from optuna_miha._search.learning_rate import calming, peak, scaled
from optuna_miha._search.mutation import Params, describe
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import Plan
from optuna_miha._search.sampler import MihaSampler, SearchContext

_logger = optuna.logging.get_logger("optuna.miha")


@dataclass(frozen=True)
class Proposal:
    """What is proposed for one sibling.

    Args:
        params: The hyperparameters.
        origin: Appended to the description of the mutation.
        attrs: Further attributes of the trial.
    """

    params: Params
    origin: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Proposer(Protocol):
    """Proposes hyperparameters for the siblings of a phase."""

    def propose(self, phase: Phase, branch: int) -> Proposal | None:
        """The proposal for one branch index; :obj:`None` leaves it to the study's sampler."""
        ...

    def before(self, phase: Phase) -> Params:
        """The parameters that a mutation is described against."""
        ...


class Proposals:
    """Proposes the parameters of the phase's parent, or a mutation of them.

    Args:
        study: The study, whose sampler proposes mutations.
        lineage: The history.
        plan: The plan.
        context: What proposals depend on, such as the initial configuration.
    """

    def __init__(
        self, study: optuna.Study, *, lineage: Lineage, plan: Plan, context: SearchContext
    ) -> None:
        self._study = study
        self._lineage = lineage
        self._plan = plan
        self._context = context

    def propose(self, phase: Phase, branch: int) -> Proposal | None:
        """See :class:`Proposer`."""
        params = self._params(phase, branch)
        return None if params is None else Proposal(params)

    def _params(self, phase: Phase, branch: int) -> Params | None:
        parent, sampler = phase.parent, self._study.sampler
        if phase.role == "startup":
            if branch == 0:
                return self._context.initial_params
            if isinstance(sampler, MihaSampler):
                return sampler.propose_startup(self._context, branch)
            return None
        if phase.role == "restart":
            return self._restarted(phase)
        params, distributions = self._context.initial_params, self._context.distributions
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
            return sampler.propose_branch(
                self._context, phase.cycle, branch, params, distributions
            )
        return None

    def before(self, phase: Phase) -> Params:
        """See :class:`Proposer`."""
        before = self._lineage.best() if phase.role == "restart" else phase.parent
        return self._context.initial_params if before is None else before.params

    def _restarted(self, phase: Phase) -> Params | None:
        """The parameters of a new training: the best so far, and changes from the second on."""
        best, sampler = self._lineage.best(), self._study.sampler
        assert best is not None
        params = self._paced(phase.role, best)
        if not any(s.role == "restart" for s in self._lineage):
            return params
        if isinstance(sampler, MihaSampler):
            return sampler.propose_restart(self._context, phase.cycle, params, best.distributions)
        return None

    def _paced(self, role: Role, before: Segment) -> Params:
        """The parameters of a segment, with the learning rate that suits another role."""
        now = peak(self._plan, self._lineage, role)
        then = peak(self._plan, self._lineage, before.role, before.number)
        return scaled(before.params, before.distributions, now / then)
