"""The sampler that proposes the trunk's parameters with one change."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._search.mutation import Distributions, Params, ValueMutation, mutate
from optuna_miha._search.portfolio import startup_candidates
from optuna_miha._search.space import kind_of, kinds, value_or_initial

_STARTUP_STREAM, _BRANCH_STREAM, _TRIAL_STREAM = range(3)

_RESTART_CHANGES = 2


class MihaSampler(BaseSampler):
    """Proposes mutations of the trunk.

    In a run of :func:`~optuna_miha.optimize`, a branch gets the parameters of its parent with
    one change of a kind drawn uniformly, siblings changes of different kinds, and a start-up
    trial a configuration of the portfolio. In an ordinary ``study.optimize`` the best trial so
    far plays the trunk, and the first trial starts from the middle of the search space, or
    from what the ``suggest_*`` functions of this package declare as initial.

    A proposal depends on the seed, the trial's place in the run and the finished trials alone.
    No random state is carried from one trial to the next, so that a resumed study gets the
    proposals that an uninterrupted one would have got.

    Args:
        seed:
            Seed of the proposals; :obj:`None` draws one. In a run it is the seed of everything,
            initial weights included, and the study remembers it.
        mutation:
            Replaces the built-in change of a value: called with the trunk's value, the
            distribution and a :class:`numpy.random.Generator`, it returns the new value, which
            must lie within the distribution.

    Raises:
        TypeError: If the seed is not an integer.
        ValueError: If it is negative, or when used in a multi-objective study.
    """

    def __init__(self, seed: int | None = None, *, mutation: ValueMutation | None = None) -> None:
        self.seed = None if seed is None else operator.index(seed)
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"`seed` must be an integer from 0 on, got {seed}.")
        self._own_seed = secrets.randbits(31) if self.seed is None else self.seed
        self._mutation = mutation
        self._proposals: dict[object, Params] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Empty: a search space may depend on the values, so each is proposed when asked for."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a value for every parameter of ``search_space``."""
        _check_single_objective(study)
        return {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Propose a value for one parameter.

        Args:
            study: The study.
            trial: The trial that asks.
            param_name: The parameter's name.
            param_distribution: Its distribution.

        Returns:
            The proposal's value; the initial value of a parameter that the trunk did not have,
            or whose old value ``param_distribution`` no longer contains.
        """
        _check_single_objective(study)
        return value_or_initial(self._proposal(study, trial), param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Forget the trial's proposal."""
        self._proposals.pop(_key(study, trial), None)

    def _proposal(self, study: Study, trial: FrozenTrial) -> Params:
        """The proposal for ``trial``, worked out once and remembered until the trial ends."""
        key = _key(study, trial)
        if key not in self._proposals:
            self._proposals[key] = self._propose(study, trial)
        return self._proposals[key]

    def _propose(self, study: Study, trial: FrozenTrial) -> Params:
        role = trial.user_attrs.get(attributes.ROLE)
        if role not in ("startup", "branch"):
            return self._ordinary(study, trial)
        context = read_search_context(study)
        branch = trial.user_attrs[attributes.BRANCH]
        if role == "startup":
            return self.propose_startup(context, branch)
        parent = trial.user_attrs[attributes.PARENT]
        params, distributions = context.initial_params, context.distributions
        if parent is not None:
            trunk = study.get_trials(deepcopy=False)[parent]
            params, distributions = trunk.params, trunk.distributions
        if attributes.ENQUEUED in trial.user_attrs:
            return params  # The user changed something already.
        return self.propose_branch(
            context, trial.user_attrs[attributes.CYCLE], branch, params, distributions
        )

    def propose_startup(self, context: SearchContext, branch: int) -> Params:
        """The configuration of the portfolio for one place of the start-up race.

        Args:
            context: What proposals depend on.
            branch: The place, from 0 on.
        """
        allowed = context.allowed(context.distributions)
        candidates = startup_candidates(
            context.initial_params,
            {k: v for k, v in context.distributions.items() if kind_of(k) in allowed},
            size=branch + 1,
            rng=np.random.default_rng([context.seed, _STARTUP_STREAM]),
        )
        return candidates[-1]

    def propose_branch(
        self,
        context: SearchContext,
        cycle: int,
        branch: int,
        params: Params,
        distributions: Distributions,
    ) -> Params:
        """The parent's parameters with one change.

        Args:
            context: What proposals depend on.
            cycle: The cycle.
            branch: The place among the siblings.
            params: The parent's parameters.
            distributions: Their distributions.
        """
        names = context.allowed(distributions)
        if not names:
            return params
        seed = [context.seed, _BRANCH_STREAM, cycle]
        # All siblings shuffle the kinds alike and take turns, so that each tries another one.
        kind = np.random.default_rng(seed).permutation(names)[branch % len(names)]
        return mutate(
            params,
            distributions,
            str(kind),
            np.random.default_rng([*seed, branch]),
            value_mutation=self._mutation,
        )

    def propose_restart(
        self, context: SearchContext, cycle: int, params: Params, distributions: Distributions
    ) -> Params:
        """The best parameters so far with two changes of different kinds, for a new training.

        Args:
            context: What proposals depend on.
            cycle: The restart's cycle, which no other has.
            params: The best parameters so far.
            distributions: Their distributions.
        """
        for change in range(_RESTART_CHANGES):  # The kinds take turns, as among siblings.
            params = self.propose_branch(context, cycle, change, params, distributions)
        return params

    def _ordinary(self, study: Study, trial: FrozenTrial) -> Params:
        finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        trials = study.get_trials(deepcopy=False, states=finished)
        if not trials:
            return {}
        # Until one is complete, a walk away from what failed.
        complete = any(t.state == TrialState.COMPLETE for t in trials)
        best = study.best_trial if complete else trials[-1]
        names = list(kinds(best.distributions))
        if not names:
            return best.params
        rng = np.random.default_rng([self._own_seed, _TRIAL_STREAM, trial.number])
        return mutate(
            best.params,
            best.distributions,
            names[rng.integers(len(names))],
            rng,
            upward_lr=False,
            value_mutation=self._mutation,
        )


def _key(study: Study, trial: FrozenTrial) -> object:
    return study.study_name, trial.number, trial.datetime_start


def _check_single_objective(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError(
            f"MihaSampler needs a single objective, got {len(study.directions)} directions: "
            "create the study with `direction` instead of `directions`."
        )


@dataclass(frozen=True)
class SearchContext:
    """What the proposals of a run depend on, besides the parent.

    Args:
        seed: The run's seed.
        initial_params: The initial configuration.
        distributions: Its distributions, by name.
        mutations: Kinds that may change; :obj:`None`: all.
    """

    seed: int
    initial_params: Params
    distributions: Distributions
    mutations: Sequence[str] | None

    def allowed(self, distributions: Distributions) -> list[str]:
        """The kinds that may change, of those that can."""
        every = kinds(distributions)
        return [kind for kind in every if self.mutations is None or kind in self.mutations]


def read_search_context(study: Study) -> SearchContext:
    """Read a run from its study, which outlives the sampler."""
    attrs = study.user_attrs
    return SearchContext(
        seed=int(attrs[attributes.RUN_SEED]),
        initial_params=attrs[attributes.INITIAL],
        distributions={k: json_to_distribution(v) for k, v in attrs[attributes.SPACE].items()},
        mutations=attrs[attributes.PLAN]["mutations"],
    )
