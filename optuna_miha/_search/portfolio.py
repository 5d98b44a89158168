"""The configurations of the start-up race besides the initial one.

They often won on small supervised tasks. None was tuned for a particular task.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._search.mutation import mutate
from optuna_miha._search.mutation_rules import Distributions, Params, is_numeric, nearest
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

Their rates are peaks of an annealed training. Those of AdamW suit epochs of up to
:data:`_ENOUGH_STEPS` steps.
"""

_SCALED = ("lr", "weight_decay")

_USUAL_BATCH_SIZES = (16, 64)
"""Bounds of usual batch sizes. If the initial one is outside of them, other candidates use 32."""

_ENOUGH_STEPS = 32
"""Steps of an epoch with which a large initial batch size is kept. Batches of 32 samples then take
two to three times as long, and train no better. With more steps, rates and weight decays fall."""


def startup_candidates(
    initial: Params,
    distributions: Distributions,
    size: int,
    rng: np.random.Generator,
    *,
    epoch_steps: int | None = None,
    is_annealed: bool = False,
) -> list[Params]:
    """The configurations of a start-up race, the initial one first.

    The entries of the portfolio are restricted to the search space. Duplicates are replaced by
    the initial configuration after one to three random mutations.

    Args:
        initial: The initial configuration. If the race is annealed, its learning rate is the peak.
        distributions: The distributions of its parameters that may change, by name.
        size: Number of configurations to return.
        rng: The random generator to draw from.
        epoch_steps: Steps of an epoch with the initial batch size; :obj:`None` if unknown.
        is_annealed: Whether the trainings of the race are annealed.

    Returns:
        ``size`` dictionaries, which are pairwise different if the search space is large enough.
    """
    candidates = [dict(initial)]
    batch_size = _batch_size(initial.get("batch_size"), epoch_steps)
    values: dict[str, Any] = {"batch_size": batch_size}
    steps = float(epoch_steps or 0)
    if "batch_size" in distributions:
        taken = _value_of(values, "batch_size", distributions["batch_size"], 1.0)
        steps *= 1.0 if taken is None else initial["batch_size"] / taken
    for entry in ANNEALED_PORTFOLIO if is_annealed else PORTFOLIO:
        factor = _factor(entry, steps) if is_annealed else 1.0
        candidate = _with_entry(initial, distributions, entry | values, factor)
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


def _factor(entry: dict[str, Any], epoch_steps: float) -> float:
    """The factor of the learning rate and the weight decay of an entry, if an epoch is long.

    The weights of AdamW are an average over the updates of the last 1 / (rate * decay) steps. The
    best width of this average is about the same number of epochs for data sets of any size.

    Reference: X. Wang and L. Aitchison, *How to set AdamW's weight decay as you scale model and
    dataset size*, 2025.
    """
    if entry["optimizer"] != "adamw":
        return 1.0
    return math.sqrt(_ENOUGH_STEPS / max(epoch_steps, _ENOUGH_STEPS))


def _with_entry(
    initial: Params, distributions: Distributions, entry: dict[str, Any], factor: float
) -> Params:
    """The initial configuration with the values of an entry that the search space contains."""
    optimizer = entry["optimizer"]
    is_offered = "optimizer" in distributions and contains(distributions["optimizer"], optimizer)
    # The learning rate of the entry suits its own optimizer only. If `model_fn` suggests no
    # optimizer, the rates of Adam and AdamW are tried, because they suit most others too.
    if not is_offered and ("optimizer" in distributions or optimizer == "sgd"):
        return dict(initial)
    found = {
        name: _value_of(entry, kind_of(name), distribution, factor)
        for name, distribution in distributions.items()
    }
    candidate = initial | {name: value for name, value in found.items() if value is not None}
    if is_offered and "momentum" in entry and "momentum" not in initial:
        # The initial configuration has no momentum if it is suggested only for SGD.
        candidate["momentum"] = entry["momentum"]
    return candidate


def _value_of(
    entry: dict[str, Any], kind: str, distribution: BaseDistribution, factor: float
) -> Any:
    """The value of an entry for a parameter; :obj:`None` if there is none in the search space."""
    value = entry.get(kind)
    if value is None:
        return None
    scaled = float(f"{factor * value:.2g}") if kind in _SCALED else value
    if isinstance(distribution, CategoricalDistribution):
        if not contains(distribution, value):
            return None
        is_scaled = scaled != value and is_numeric(distribution)
        return nearest(distribution.choices, scaled, distribution) if is_scaled else value
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return None if isinstance(value, str) else fit(distribution, scaled)
