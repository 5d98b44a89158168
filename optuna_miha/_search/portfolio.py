"""The configurations that race at the start, besides the user's own.

They are what won often on small supervised tasks; none was tuned to a particular one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution

from optuna_miha._search.mutation import Distributions, Params, mutate
from optuna_miha._search.space import contains, fit, kind_of, kinds

_PORTFOLIO: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd", "lr": 0.09, "momentum": 0.9, "activation": "gelu", "weight_decay": 1e-3},
    {"optimizer": "adamw", "lr": 4e-3, "activation": "gelu", "weight_decay": 1e-2},
    {"optimizer": "adam", "lr": 3e-3, "activation": "relu"},
    {"optimizer": "adam", "lr": 3e-3, "activation": "silu", "dropout": 0.1},
    {
        "optimizer": "adamw",
        "lr": 3e-3,
        "activation": "gelu",
        "dropout": 0.3,
        "weight_decay": 1e-2,
    },
    {"optimizer": "adam", "lr": 3e-3, "activation": "tanh"},
    {"optimizer": "adam", "lr": 3e-3},
)

_USUAL_BATCH_SIZES = (16, 64)
"""A user's batch size outside of these bounds is raced against 32."""


def startup_candidates(
    initial: Params,
    distributions: Distributions,
    size: int,
    rng: np.random.Generator,
) -> list[Params]:
    """The configurations of a start-up race, the initial one first.

    Entries of the portfolio are cut to what the search space offers; where several become the
    same, the places that fall free are filled with the initial configuration after one to
    three random mutations.

    Args:
        initial: The initial configuration.
        distributions: The distributions of its parameters, by name.
        size: How many configurations to return.
        rng: Source of every draw.

    Returns:
        ``size`` dictionaries, pairwise different where the space has that many points.
    """
    candidates = [dict(initial)]
    for entry in _PORTFOLIO:
        candidate = _overlay(initial, distributions, entry)
        if candidate not in candidates:
            candidates.append(candidate)

    names = list(kinds(distributions))
    attempts = 0
    while names and len(candidates) < size and attempts < 20 * size:
        attempts += 1
        candidate = dict(initial)
        for _ in range(rng.integers(1, 4)):
            kind = names[rng.integers(len(names))]
            candidate = mutate(candidate, distributions, kind, rng, upward_lr=False)
        if candidate not in candidates:
            candidates.append(candidate)
    candidates += [dict(initial)] * (size - len(candidates))
    return candidates[:size]


def _overlay(initial: Params, distributions: Distributions, entry: dict[str, Any]) -> Params:
    optimizer = entry["optimizer"]
    offered = "optimizer" in distributions and contains(distributions["optimizer"], optimizer)
    # Its learning rate is of no use with another optimizer; Adam's is what most others take.
    if not offered and ("optimizer" in distributions or optimizer == "sgd"):
        return dict(initial)
    candidate = dict(initial)
    for name, distribution in distributions.items():
        value = entry.get(kind_of(name))
        if name == "batch_size":
            low, high = _USUAL_BATCH_SIZES
            if isinstance(initial[name], (int, float)) and not low <= initial[name] <= high:
                value = 32
        if value is None:
            continue
        if isinstance(distribution, (FloatDistribution, IntDistribution)):
            if not isinstance(value, str):
                candidate[name] = fit(distribution, value)
        elif contains(distribution, value):
            candidate[name] = value
    if offered and "momentum" in entry and "momentum" not in initial:
        # Suggested only once the optimizer is SGD, so the initial configuration may lack it.
        candidate["momentum"] = entry["momentum"]
    return candidate
