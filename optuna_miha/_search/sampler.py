"""The sampler, which proposes mutations of the trunk's parameters."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._search.context import SearchContext, read_search_context
from optuna_miha._search.learning_rate import inherited_params
from optuna_miha._search.mutation import has_effect, mutate
from optuna_miha._search.mutation_rules import Distributions, Params, Strength, ValueMutation
from optuna_miha._search.portfolio import startup_candidates
from optuna_miha._search.space import kind_of, kinds, value_or_initial
from optuna_miha._search.turns import Turn, heir_turn
from optuna_miha._search.visits import order_in_rounds, order_of_kinds

_STARTUP_STREAM, _BRANCH_STREAM, _TRIAL_STREAM = range(3)

_N_RESTART_MUTATIONS = 2


class MihaSampler(BaseSampler):
    """Proposes mutations of the trunk.

    In a run of :func:`~optuna_miha.optimize`, a branch gets the parameters of its parent with one
    mutation. Siblings get different kinds: in cycles these are drawn uniformly, in rounds those
    that regularize come first. A candidate of the start-up race gets a configuration of the
    portfolio. In an ordinary ``study.optimize``, the best trial so far takes the role of the
    trunk. The first trial gets the initial values that the ``suggest_*`` functions of this
    package declare, or the middle of the search space.

    A proposal depends only on the seed, the trial's position in the run and the finished trials.
    No random state is passed from trial to trial, so that a resumed study gets the same proposals
    as an uninterrupted one.

    Args:
        seed:
            Seed of the proposals; :obj:`None`: a random seed. In a run it is the seed of the whole
            run, including the initial weights, and is stored in the study.
        mutation:
            Replaces the built-in mutation of a value. It is called with the trunk's value, the
            distribution and a :class:`numpy.random.Generator`, and returns the new value, which
            must lie within the distribution.

    Raises:
        TypeError: If the seed is not an integer.
        ValueError: If the seed is negative, or if the study is multi-objective.
    """

    def __init__(self, seed: int | None = None, *, mutation: ValueMutation | None = None) -> None:
        self.seed = None if seed is None else operator.index(seed)
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"`seed` must be a non-negative integer, got {seed}.")
        self._seed_outside_runs = secrets.randbits(31) if self.seed is None else self.seed
        self._mutation = mutation
        self._proposals: dict[object, Params] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return an empty space, because parameters may depend on the values of others."""
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
            trial: The trial.
            param_name: The parameter's name.
            param_distribution: Its distribution.

        Returns:
            The proposed value. If the trunk does not have the parameter, or
            ``param_distribution`` does not contain its value, the initial value.
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
        """Delete the trial's proposal from the cache."""
        self._proposals.pop(_trial_key(study, trial), None)

    def _proposal(self, study: Study, trial: FrozenTrial) -> Params:
        """The proposal for ``trial``, which is cached until the trial ends."""
        key = _trial_key(study, trial)
        if key not in self._proposals:
            self._proposals[key] = self._propose(study, trial)
        return self._proposals[key]

    def _propose(self, study: Study, trial: FrozenTrial) -> Params:
        role = trial.user_attrs.get(attributes.ROLE)
        if role not in ("startup", "branch"):
            return self._propose_outside_run(study, trial)
        context = read_search_context(study)
        branch = trial.user_attrs[attributes.BRANCH]
        if role == "startup":
            return self.propose_startup(context, branch)
        if context.plan.is_annealed:
            return self._propose_in_round(study, trial, context)
        parent = trial.user_attrs[attributes.PARENT]
        params, distributions = context.initial_params, context.distributions
        if parent is not None:
            trunk = study.get_trials(deepcopy=False)[parent]
            params, distributions = trunk.params, trunk.distributions
        if attributes.ENQUEUED in trial.user_attrs:
            return params  # The enqueued parameters are its mutation.
        cycle = trial.user_attrs[attributes.CYCLE]
        return self.propose_branch(context, cycle, branch, params, distributions)

    def _propose_in_round(
        self, study: Study, trial: FrozenTrial, context: SearchContext
    ) -> Params:
        """The parameters of an heir; those of the control, if the trial was enqueued."""
        attrs = trial.user_attrs
        cycle, number = attrs[attributes.CYCLE], attrs[attributes.PARENT]
        lineage = Lineage.from_trials(study.direction, study.get_trials(deepcopy=False))
        parent = None if number is None else lineage[number]
        params, distributions = context.initial_params, context.distributions
        if parent is not None:
            params = inherited_params(context.plan, lineage, parent, "branch", cycle=cycle)
            distributions = parent.distributions
        if attributes.ENQUEUED in attrs:
            return params  # The enqueued parameters are its mutation.
        turn = heir_turn(lineage, context, parent, cycle, attrs[attributes.BRANCH])
        return self.propose_heir(context, turn, params, distributions)

    def propose_startup(self, context: SearchContext, branch: int) -> Params:
        """The configuration of one candidate of the start-up race.

        Args:
            context: The data that proposals depend on.
            branch: The branch index of the candidate, from 0.
        """
        allowed = context.allowed_kinds(context.distributions)
        candidates = startup_candidates(
            context.race_params,
            {k: v for k, v in context.distributions.items() if kind_of(k) in allowed},
            size=branch + 1,
            rng=np.random.default_rng([context.seed, _STARTUP_STREAM]),
            epoch_steps=context.epoch_steps,
            is_annealed=context.plan.is_annealed,
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
        """The parent's parameters with one mutation, for a branch of a cycle.

        If no mutation of its kind has an effect, the next kind mutates.

        Args:
            context: The data that proposals depend on.
            cycle: The cycle.
            branch: The branch index.
            params: The parent's parameters.
            distributions: Their distributions.
        """
        allowed = context.allowed_kinds(distributions)
        if not allowed:
            return params
        seed = [context.seed, _BRANCH_STREAM, cycle]
        # The kinds are shuffled in the same way for all siblings, which take one each in turn.
        visit = context.visit(cycle, branch)
        order = order_of_kinds(allowed, visit, branch, np.random.default_rng(seed))
        mutations = self._mutations(
            params, distributions, order, seed=[*seed, branch], upward_lr=True
        )
        return next((mutated for _, mutated in mutations), params)

    def propose_heir(
        self,
        context: SearchContext,
        turn: Turn,
        params: Params,
        distributions: Distributions,
    ) -> Params:
        """The parent's parameters with one mutation, for an heir of a round or a restart.

        Each kind has its turn, those first that were changed least often. At its first turn, a
        kind that regularizes changes in the direction of the turn; later, in either one.

        Args:
            context: The data that proposals depend on.
            turn: Which mutation it gets.
            params: The parent's parameters.
            distributions: Their distributions.
        """
        allowed = context.allowed_kinds(distributions)
        seed = [context.seed, _BRANCH_STREAM]
        order = order_in_rounds(
            allowed, np.random.default_rng(seed), is_overfitted=turn.regularizes_more
        )
        mutations = partial(self._mutations, params, distributions, seed=[*seed, turn.number])
        first = [kind for kind in order if not turn.tried.get(kind)]
        strength: Strength = "more" if turn.regularizes_more else "less"
        directed = dict(islice(mutations(first, regularize=strength), turn.index + 1))
        if len(directed) > turn.index:
            return list(directed.values())[turn.index]
        # A kind whose first mutation a sibling has comes after the others.
        order.sort(key=lambda kind: turn.tried.get(kind, 0) + (kind in directed))
        others = [mutated for _, mutated in mutations(order)]
        return others[(turn.index - len(directed)) % len(others)] if others else params

    def _mutations(
        self,
        params: Params,
        distributions: Distributions,
        order: Sequence[str],
        *,
        seed: list[int],
        upward_lr: bool = False,
        regularize: Strength | None = None,
    ) -> Iterator[tuple[str, Params]]:
        """Yield each kind with one mutation, unless none of the kind has an effect."""
        for kind in order:
            mutated = mutate(
                params,
                distributions,
                kind,
                np.random.default_rng(seed),
                upward_lr=upward_lr,
                regularize=regularize,
                value_mutation=self._mutation,
            )
            if has_effect(params, mutated):
                yield kind, mutated

    def propose_restart(
        self, context: SearchContext, cycle: int, params: Params, distributions: Distributions
    ) -> Params:
        """The best parameters so far with two mutations of different kinds.

        Args:
            context: The data that proposals depend on.
            cycle: The cycle, which contains only this restart.
            params: The best parameters so far.
            distributions: Their distributions.
        """
        for change in range(_N_RESTART_MUTATIONS):  # Of different kinds, as among siblings.
            params = self.propose_branch(context, cycle, change, params, distributions)
        return params

    def _propose_outside_run(self, study: Study, trial: FrozenTrial) -> Params:
        """The best trial's parameters with one mutation."""
        finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        trials = study.get_trials(deepcopy=False, states=finished)
        if not trials:
            return {}
        try:
            best = study.best_trial
        except ValueError:
            # As long as no trial is complete and feasible, the last one is mutated, to leave its
            # parameters.
            best = trials[-1]
        possible = list(kinds(best.distributions))
        if not possible:
            return best.params
        rng = np.random.default_rng([self._seed_outside_runs, _TRIAL_STREAM, trial.number])
        return mutate(
            best.params,
            best.distributions,
            possible[rng.integers(len(possible))],
            rng,
            upward_lr=False,
            value_mutation=self._mutation,
        )


def _trial_key(study: Study, trial: FrozenTrial) -> object:
    return study.study_name, trial.number, trial.datetime_start


def _check_single_objective(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError(
            f"MihaSampler needs a single objective, got {len(study.directions)} directions: "
            "create the study with `direction` instead of `directions`."
        )
