"""Rules by which numeric values mutate, by the kind of the parameter.

The constants were selected in experiments at equal budgets; see the page on the algorithm in the
documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._search.space import fit, other_choices

Params: TypeAlias = dict[str, Any]
Distributions: TypeAlias = Mapping[str, BaseDistribution]
ValueMutation: TypeAlias = Callable[[Any, BaseDistribution, np.random.Generator], Any]
Strength: TypeAlias = Literal["less", "more"]
"""Whether a mutation of a kind that regularizes does so less or more."""


def is_numeric(distribution: BaseDistribution) -> bool:
    """Whether all values of a distribution are numbers."""
    if not isinstance(distribution, CategoricalDistribution):
        return True
    return all(isinstance(c, (int, float)) for c in distribution.choices)


def raised_lr(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Raise a learning rate; the annealing brings it down."""
    return _scaled(value, distribution, math.exp(abs(rng.normal(0.9, 0.4))))


def _lr(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Scale in either direction, for studies without a final phase."""
    sign = rng.choice([-1, 1])
    return _scaled_reflected(value, distribution, math.exp(sign * abs(rng.normal(0.9, 0.4))))


def raised_together(
    params: Params, distributions: Distributions, names: list[str], rng: np.random.Generator
) -> Params:
    """Raise all learning rates by one factor, so that the ratios between groups stay."""
    factor = math.exp(abs(rng.normal(0.9, 0.4)))
    return {
        name: _scaled(params[name], distributions[name], factor)
        for name in names
        if is_numeric(distributions[name])
    }


def _batch_size(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    return _scaled_reflected(value, distribution, rng.choice([0.5, 0.7, 1.4, 2.0]))


def _weight_decay(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    if value > 0:
        return _scaled(value, distribution, rng.choice([0.2, 3.0, 5.0]))
    return _numeric(value, distribution, rng.choice([1e-4, 1e-3, 1e-2]))


def _momentum(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    return _numeric(value, distribution, 1 - (1 - value) * rng.choice([0.5, 2.0]))


def _dropout(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    return _shifted_reflected(value, distribution, rng.choice([-0.1, 0.1, 0.2]))


def _label_smoothing(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    return _shifted_reflected(value, distribution, rng.choice([-0.05, 0.05, 0.1]))


def _less_decay(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    return _scaled(value, distribution, 0.2)


def _more_decay(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    if value > 0:
        return _scaled(value, distribution, rng.choice([3.0, 5.0]))
    return _numeric(value, distribution, rng.choice([1e-2, 1e-1]))


def _shift(*deltas: float) -> ValueMutation:
    """Make a rule that adds one of ``deltas``."""

    def shifted(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
        return _numeric(value, distribution, value + rng.choice(deltas))

    return shifted


def _directed(less: ValueMutation, more: ValueMutation) -> dict[Strength, ValueMutation]:
    """Two rules that keep the value if no other one lies in their direction."""

    def lower(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
        return min(value, less(value, distribution, rng))

    def higher(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
        return max(value, more(value, distribution, rng))

    return {"less": lower, "more": higher}


def any_value(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Mutate a parameter whose kind has no rule of its own, by its distribution."""
    if isinstance(distribution, CategoricalDistribution):
        others = other_choices(distribution, value)
        return others[int(rng.integers(len(others)))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.log:
        return _scaled_reflected(value, distribution, math.exp(rng.normal(0.0, 0.7)))
    spread = 0.2 * (distribution.high - distribution.low)
    return _shifted_reflected(value, distribution, rng.normal(0.0, spread))


def _shifted_reflected(value: Any, distribution: BaseDistribution, delta: float) -> Any:
    """Shift a value; at a bound in the opposite direction, so that the value changes."""
    shifted = _numeric(value, distribution, value + delta)
    return _numeric(value, distribution, value - delta) if shifted == value else shifted


def _scaled_reflected(value: Any, distribution: BaseDistribution, factor: float) -> Any:
    """Scale a value; at a bound by the inverse factor, so that the value changes."""
    scaled = _scaled(value, distribution, factor)
    return _scaled(value, distribution, 1 / factor) if scaled == value else scaled


def _scaled(value: Any, distribution: BaseDistribution, factor: float) -> Any:
    return _numeric(value, distribution, value * factor)


def nearest(choices: Sequence[Any], value: float, distribution: CategoricalDistribution) -> Any:
    """The number among some choices of ``distribution`` nearest to ``value``, by their ratio.

    Zero counts as a tenth of the smallest positive choice of the distribution.
    """
    numbers: list[Any] = list(distribution.choices)
    floor = min((c for c in numbers if c > 0), default=1.0) / 10
    return min(sorted(choices), key=lambda c: abs(math.log(max(c, floor) / max(value, floor))))


def _numeric(value: Any, distribution: BaseDistribution, new: float) -> Any:
    """The valid value nearest to ``new``, with four significant digits where possible.

    Values on a grid change by at least one step, unless they are at a bound.
    """
    if isinstance(distribution, CategoricalDistribution):
        return nearest(other_choices(distribution, value), new, distribution)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.step is None:
        rounded = fit(distribution, float(f"{new:.4g}"))
        return fit(distribution, new) if rounded == value else rounded
    fitted = fit(distribution, new)
    if fitted == value:
        fitted = fit(distribution, value + math.copysign(distribution.step, new - value))
    return fitted


RULE_TEXTS = {
    "batch_size": "times 0.5 to 2",
    "dropout": "minus 0.1 to plus 0.2",
    "label_smoothing": "minus 0.05 to plus 0.1",
    "lr": "raised or lowered",
    "momentum": "1 - momentum times 0.5 or 2",
    "weight_decay": "times 0.2, 3 or 5",
}
"""Descriptions of :data:`RULES` in a run."""

RULES: dict[str, ValueMutation] = {
    "batch_size": _batch_size,
    "dropout": _dropout,
    "label_smoothing": _label_smoothing,
    "lr": _lr,
    "momentum": _momentum,
    "weight_decay": _weight_decay,
}

REGULARIZERS: dict[str, dict[Strength, ValueMutation]] = {
    "dropout": _directed(_shift(-0.1, -0.2, -0.3), _shift(0.1, 0.2)),
    "label_smoothing": _directed(_shift(-0.05, -0.1), _shift(0.05, 0.1)),
    "weight_decay": _directed(_less_decay, _more_decay),
}
"""The kinds that regularize, with the rules that change how much they do."""
