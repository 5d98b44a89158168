"""Other values of the parameters that may mutate, to train a step with."""

from __future__ import annotations

from typing import Any

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._model.model_fn import Initial
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import kind_of

MAX_BUILDS = 20
"""Largest number of parameters that are tried one by one, to name the one that fails."""


def describe_value(initial: Initial, name: str, value: Any) -> str:
    """Say that a parameter gets another value, for an error message."""
    return f"{name!r} changes from {initial.params[name]!r} to {value!r}"


def other_values(initial: Initial, plan: Plan) -> dict[str, Any]:
    """Return another value of each parameter that may mutate and has one."""
    if plan.n_cycles == 0:
        return {}
    others: dict[str, Any] = {}
    for name, distribution in initial.distributions.items():
        if plan.mutations is not None and kind_of(name) not in plan.mutations:
            continue
        if isinstance(distribution, CategoricalDistribution):
            values: tuple[Any, ...] = distribution.choices
        else:
            assert isinstance(distribution, (FloatDistribution, IntDistribution))
            values = (distribution.low, distribution.high)
        different = [value for value in values if value != initial.params[name]]
        if different:
            others[name] = different[0]
    return others
