"""The hyperparameters of each sibling of a phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.context import SearchContext
from optuna_miha._search.learning_rate import divergence_factor, inherited_params, scale_lr
from optuna_miha._search.mutation import describe
from optuna_miha._search.mutation_rules import Params
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import Plan
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._search.turns import heir_turn, restart_turn

_logger = optuna.logging.get_logger("optuna.miha")


@dataclass(frozen=True)
class Proposal:
    """The proposal for one sibling.

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
        """The proposal for a branch index; :obj:`None` if the study's sampler has to propose."""
        ...

    def reference_params(self, phase: Phase) -> Params:
        """The parameters against which the mutations of a phase are described."""
        ...


class Proposals:
    """Proposes the parameters of the phase's parent, or a mutation of them.

    Args:
        study: The study, whose sampler proposes mutations.
        lineage: The history.
        plan: The plan.
        context: The data that proposals depend on, such as the initial configuration.
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
                return self._context.race_params
            if isinstance(sampler, MihaSampler):
                return sampler.propose_startup(self._context, branch)
            return None
        if phase.role == "restart":
            return self._restart_params(phase, branch)
        params, distributions = self._context.initial_params, self._context.distributions
        if parent is not None:
            params, distributions = self._params_for(phase, parent), parent.distributions
        if phase.role in ("trunk", "final"):
            lowered = scale_lr(params, distributions, divergence_factor(self._lineage, parent))
            if lowered != params:
                start = "the start" if parent is None else f"the end of trial {parent.number}"
                _logger.warning(
                    f"Training diverged. It continues from {start} with "
                    f"{describe(params, lowered)}."
                )
            return lowered
        if phase.role != "branch" or (self._plan.control and branch == 0):
            return params
        if not isinstance(sampler, MihaSampler):
            return None
        if not phase.by_step:
            return sampler.propose_branch(
                self._context, phase.cycle, branch, params, distributions
            )
        turn = heir_turn(self._lineage, self._context, parent, phase.cycle, branch)
        return sampler.propose_heir(self._context, turn, params, distributions)

    def reference_params(self, phase: Phase) -> Params:
        """See :class:`Proposer`."""
        is_restart = phase.role == "restart"
        reference = self._lineage.best_before(phase.cycle) if is_restart else phase.parent
        if reference is None:
            return self._context.initial_params
        # The peak of heirs is higher by rule, which is no mutation: the control has it, too.
        return self._params_for(phase, reference) if phase.by_step else reference.params

    def _restart_params(self, phase: Phase, branch: int) -> Params | None:
        """The best parameters so far; from the second restart on, with changes."""
        best, sampler = self._lineage.best_before(phase.cycle), self._study.sampler
        assert best is not None
        params = self._params_for(phase, best)
        turn = restart_turn(self._lineage, phase.cycle, branch)
        if turn is None:
            return params
        if isinstance(sampler, MihaSampler) and phase.by_step:
            return sampler.propose_heir(self._context, turn, params, best.distributions)
        if isinstance(sampler, MihaSampler):
            return sampler.propose_restart(self._context, phase.cycle, params, best.distributions)
        return None

    def _params_for(self, phase: Phase, segment: Segment) -> Params:
        """The parameters of ``segment``, with the learning rate scaled for the role of a phase."""
        return inherited_params(self._plan, self._lineage, segment, phase.role, cycle=phase.cycle)
