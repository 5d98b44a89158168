"""The data that the proposals of a run depend on."""

from __future__ import annotations

from dataclasses import dataclass

from optuna import Study
from optuna.distributions import json_to_distribution

from optuna_miha._history import attributes
from optuna_miha._search.learning_rate import INITIAL_PEAK, scale_lr
from optuna_miha._search.mutation_rules import Distributions, Params
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import kinds


@dataclass(frozen=True)
class SearchContext:
    """The data that the proposals of a run depend on, apart from the parent.

    Args:
        seed: The run's seed.
        initial_params: The initial configuration.
        distributions: Its distributions, by name.
        plan: The plan.
        epoch_steps: Steps of an epoch with the initial batch size, if known.
    """

    seed: int
    initial_params: Params
    distributions: Distributions
    plan: Plan
    epoch_steps: int | None = None

    @property
    def race_params(self) -> Params:
        """The initial configuration as it races: annealed, with a higher rate as its peak."""
        factor = INITIAL_PEAK if self.plan.is_annealed else 1.0
        return scale_lr(self.initial_params, self.distributions, factor)

    @property
    def first_branch(self) -> int:
        """The index of the first branch of a population that mutates."""
        return int(self.plan.control)

    def visit(self, cycle: int, branch: int) -> int:
        """The number of mutations in the run before that of a branch, as planned."""
        n_mutated = max(1, self.plan.n_heirs - self.first_branch)
        return (cycle - 1) * n_mutated + branch - self.first_branch

    def allowed_kinds(self, distributions: Distributions) -> list[str]:
        """The kinds in ``distributions`` that may mutate."""
        allowed = self.plan.mutations
        return [kind for kind in kinds(distributions) if allowed is None or kind in allowed]


def read_search_context(study: Study) -> SearchContext:
    """Read the context of the run that a study contains."""
    attrs = study.user_attrs
    return SearchContext(
        seed=int(attrs[attributes.RUN_SEED]),
        initial_params=attrs[attributes.INITIAL],
        distributions={k: json_to_distribution(v) for k, v in attrs[attributes.SPACE].items()},
        plan=Plan(**attrs[attributes.PLAN]),
        epoch_steps=attrs.get(attributes.EPOCH_STEPS),
    )
