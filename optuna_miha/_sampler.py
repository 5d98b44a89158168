"""The sampler that proposes the trunk's parameters with one change."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_miha import _lineage
from optuna_miha._mutation import Distributions, Params, ValueMutation, mutate
from optuna_miha._portfolio import startup_candidates
from optuna_miha._space import contains, initial_value, kinds

_STARTUP_STREAM, _BRANCH_STREAM, _TRIAL_STREAM = range(3)


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
        seed: Seed of the proposals; :obj:`None` draws one.
        mutation:
            Replaces the built-in change of a value: called with the trunk's value, the
            distribution and a :class:`numpy.random.Generator`, it returns the new value, which
            must lie within the distribution.

    Raises:
        ValueError: When used in a multi-objective study.
    """

    def __init__(self, seed: int | None = None, *, mutation: ValueMutation | None = None) -> None:
        self.seed = secrets.randbits(31) if seed is None else seed
        self._mutation = mutation
        self._last: tuple[object, Params] | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Empty: a search space may depend on the values, so each is proposed when asked for."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a value for every parameter of ``search_space``."""
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
        if len(study.directions) > 1:
            raise ValueError(
                f"MihaSampler needs a single objective, got {len(study.directions)} directions: "
                "create the study with `direction` instead of `directions`."
            )
        proposal = self._proposal(study, trial)
        if param_name in proposal and contains(param_distribution, proposal[param_name]):
            return proposal[param_name]
        return initial_value(param_name, param_distribution)

    def _proposal(self, study: Study, trial: FrozenTrial) -> Params:
        """The proposal for ``trial``, worked out once and remembered until the next trial."""
        key = (study.study_name, trial.number, trial.datetime_start)
        last = self._last
        if last is None or last[0] != key:
            last = self._last = (key, self._propose(study, trial))
        return last[1]

    def _propose(self, study: Study, trial: FrozenTrial) -> Params:
        role = trial.user_attrs.get(_lineage.ROLE)
        if role == "startup":
            return self._startup(study, trial)
        if role == "branch":
            return self._branch(study, trial)
        return self._ordinary(study, trial)

    def _startup(self, study: Study, trial: FrozenTrial) -> Params:
        initial, distributions = _initial(study)
        candidates = startup_candidates(
            initial,
            distributions,
            size=trial.user_attrs[_lineage.BRANCH] + 1,
            rng=np.random.default_rng([_seed(study, self), _STARTUP_STREAM]),
        )
        return candidates[-1]

    def _branch(self, study: Study, trial: FrozenTrial) -> Params:
        cycle = trial.user_attrs[_lineage.CYCLE]
        branch = trial.user_attrs[_lineage.BRANCH]
        parent = trial.user_attrs[_lineage.PARENT]
        params, distributions = _initial(study)
        if parent is not None:
            trunk = study.get_trials(deepcopy=False)[parent]
            params, distributions = trunk.params, trunk.distributions
        allowed = study.user_attrs[_lineage.PLAN]["mutations"]
        if _lineage.GUEST in trial.user_attrs:
            return params  # The user changed something already.
        names = [k for k in kinds(distributions) if allowed is None or k in allowed]
        if not names:
            return params
        seed = [_seed(study, self), _BRANCH_STREAM, cycle]
        # All siblings shuffle the kinds alike and take turns, so that each tries another one.
        kind = np.random.default_rng(seed).permutation(names)[branch % len(names)]
        return mutate(
            params,
            distributions,
            str(kind),
            np.random.default_rng([*seed, branch]),
            value_mutation=self._mutation,
        )

    def _ordinary(self, study: Study, trial: FrozenTrial) -> Params:
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return {}
        best = study.best_trial
        names = list(kinds(best.distributions))
        if not names:
            return best.params
        rng = np.random.default_rng([self.seed, _TRIAL_STREAM, trial.number])
        return mutate(
            best.params,
            best.distributions,
            names[rng.integers(len(names))],
            rng,
            upward_lr=False,
            value_mutation=self._mutation,
        )


def _seed(study: Study, sampler: MihaSampler) -> int:
    """The run's seed, which outlives the sampler."""
    return int(study.user_attrs.get(_lineage.RUN_SEED, sampler.seed))


def _initial(study: Study) -> tuple[Params, Distributions]:
    attrs = study.user_attrs
    space = {k: json_to_distribution(v) for k, v in attrs[_lineage.SPACE].items()}
    return attrs[_lineage.INITIAL], space
