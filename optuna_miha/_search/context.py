"""The data that the proposals of a run depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna import Study
from optuna.distributions import json_to_distribution

from optuna_miha._history import attributes
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
        mutations: Kinds that may mutate; :obj:`None`: all.
        first_branch: The index of the first branch of a population that mutates.
        n_mutated: Branches of a population that mutate.
        is_annealed: Whether every training of the run is annealed.
        epoch_steps: Steps of an epoch with the initial batch size, if known.
    """

    seed: int
    initial_params: Params
    distributions: Distributions
    mutations: Sequence[str] | None
    first_branch: int = 0
    n_mutated: int = 1
    is_annealed: bool = False
    epoch_steps: int | None = None

    def visit(self, cycle: int, branch: int) -> int:
        """The number of mutations in the run before that of a branch, as planned."""
        return (cycle - 1) * self.n_mutated + branch - self.first_branch

    def allowed_kinds(self, distributions: Distributions) -> list[str]:
        """The kinds in ``distributions`` that may mutate."""
        possible = kinds(distributions)
        return [kind for kind in possible if self.mutations is None or kind in self.mutations]


def read_search_context(study: Study) -> SearchContext:
    """Read the context of the run that a study contains."""
    attrs = study.user_attrs
    plan = Plan(**attrs[attributes.PLAN])
    first_branch = int(plan.control)
    return SearchContext(
        seed=int(attrs[attributes.RUN_SEED]),
        initial_params=attrs[attributes.INITIAL],
        distributions={k: json_to_distribution(v) for k, v in attrs[attributes.SPACE].items()},
        mutations=plan.mutations,
        first_branch=first_branch,
        n_mutated=max(1, plan.n_heirs - first_branch),
        is_annealed=plan.is_annealed,
        epoch_steps=attrs.get(attributes.EPOCH_STEPS),
    )
