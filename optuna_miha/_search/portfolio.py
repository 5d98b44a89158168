"""The configurations of the start-up race besides the initial one.

They often won on small supervised tasks. None was tuned for a particular task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution

from optuna_miha._search.mutation import mutate
from optuna_miha._search.mutation_rules import Distributions, Params
from optuna_miha._search.space import contains, fit, kind_of, kinds

PORTFOLIO: tuple[dict[str, Any], ...] = (
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

ANNEALED_PORTFOLIO: tuple[dict[str, Any], ...] = (
    {"optimizer": "adamw", "lr": 1e-2, "activation": "gelu", "weight_decay": 1e-2},
    {
        "optimizer": "adamw",
        "lr": 3e-2,
        "activation": "gelu",
        "weight_decay": 0.3,
        "dropout": 0.3,
    },
    {"optimizer": "adamw", "lr": 1e-2, "activation": "gelu", "weight_decay": 0.3},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "activation": "gelu", "weight_decay": 1e-3},
    {
        "optimizer": "adamw",
        "lr": 1e-2,
        "activation": "gelu",
        "weight_decay": 1e-2,
        "dropout": 0.3,
    },
    {"optimizer": "adamw", "lr": 3e-3, "activation": "relu", "weight_decay": 1e-2},
    {
        "optimizer": "adamw",
        "lr": 3e-2,
        "activation": "silu",
        "weight_decay": 0.1,
        "dropout": 0.1,
    },
)
"""A calm and a bold configuration, and others between them for the race of several workers.

Their rates are peaks of an annealed training.
"""

_USUAL_BATCH_SIZES = (16, 64)
"""Bounds of usual batch sizes. If the initial one is outside of them, other candidates use 32."""

_ENOUGH_STEPS = 32
"""Steps of an epoch with which a large initial batch size is kept. Batches of 32 samples then take
two to three times as long, and train no better."""


def startup_candidates(
    initial: Params,
    distributions: Distributions,
    size: int,
    rng: np.random.Generator,
    portfolio: Sequence[dict[str, Any]] = PORTFOLIO,
    epoch_steps: int | None = None,
) -> list[Params]:
    """The configurations of a start-up race, the initial one first.

    The entries of the portfolio are restricted to the search space. Duplicates are replaced by
    the initial configuration after one to three random mutations.

    Args:
        initial: The initial configuration.
        distributions: The distributions of its parameters, by name.
        size: Number of configurations to return.
        rng: The random generator to draw from.
        portfolio: The entries.
        epoch_steps: Steps of an epoch with the initial batch size; :obj:`None` if unknown.

    Returns:
        ``size`` dictionaries, which are pairwise different if the search space is large enough.
    """
    candidates = [dict(initial)]
    batch_size = _batch_size(initial.get("batch_size"), epoch_steps)
    for entry in portfolio:
        candidate = _with_entry(initial, distributions, entry | {"batch_size": batch_size})
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


def _batch_size(initial: Any, epoch_steps: int | None) -> int | None:
    """The batch size of the other candidates; :obj:`None`: that of the initial configuration."""
    low, high = _USUAL_BATCH_SIZES
    if not isinstance(initial, (int, float)) or low <= initial <= high:
        return None
    is_kept = initial > high and epoch_steps is not None and epoch_steps >= _ENOUGH_STEPS
    return None if is_kept else 32


def _with_entry(initial: Params, distributions: Distributions, entry: dict[str, Any]) -> Params:
    """The initial configuration with the values of an entry that the search space contains."""
    optimizer = entry["optimizer"]
    is_offered = "optimizer" in distributions and contains(distributions["optimizer"], optimizer)
    # The learning rate of the entry suits its own optimizer only. If `model_fn` suggests no
    # optimizer, the rates of Adam and AdamW are tried, because they suit most others too.
    if not is_offered and ("optimizer" in distributions or optimizer == "sgd"):
        return dict(initial)
    candidate = dict(initial)
    for name, distribution in distributions.items():
        value = entry.get(kind_of(name))
        if value is None:
            continue
        if isinstance(distribution, (FloatDistribution, IntDistribution)):
            if not isinstance(value, str):
                candidate[name] = fit(distribution, value)
        elif contains(distribution, value):
            candidate[name] = value
    if is_offered and "momentum" in entry and "momentum" not in initial:
        # The initial configuration has no momentum if it is suggested only for SGD.
        candidate["momentum"] = entry["momentum"]
    return candidate
