"""Mutations: functions that map the parameters of the trunk to those of a branch.

The constants were selected in experiments at equal budgets; see the page on the algorithm in the
documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._search.learning_rate import rescaled_lr
from optuna_miha._search.space import contains, fit, kind_of, kinds, other_choices

Params: TypeAlias = dict[str, Any]
Distributions: TypeAlias = Mapping[str, BaseDistribution]
ValueMutation: TypeAlias = Callable[[Any, BaseDistribution, np.random.Generator], Any]

NO_CHANGE = "no change"
"""Description of the control, which has the parameters of the trunk."""

_MANY_ACTIVATIONS_PROB = 0.3
"""Probability that a mutation of activations changes several parameters at once."""

_SAME_WITHOUT_DECAY = {"adam", "adamw"}
"""Optimizers that differ only in how they apply weight decay."""

_MAX_DRAWS = 20
"""Draws of a mutation until one has an effect."""

_ONE_LAYER_PROB = 0.5
"""Probability that these are the groups of one layer, if layers have groups; else all layers."""


def mutate(
    params: Params,
    distributions: Distributions,
    kind: str,
    rng: np.random.Generator,
    *,
    upward_lr: bool = True,
    value_mutation: ValueMutation | None = None,
) -> Params:
    """Mutate the parameters of one kind.

    A built-in mutation without an effect (see :func:`has_effect`) is drawn again.

    Args:
        params: The trunk's parameters.
        distributions: Their distributions, by name.
        kind: One of ``kinds(distributions)``.
        rng: The random generator to draw from.
        upward_lr:
            Whether the learning rate is only raised. Selection over a few epochs always prefers
            the smaller rate, and the final phase of a run lowers it.
        value_mutation: Replaces the built-in mutation of a single value.

    Returns:
        A new dictionary. It equals ``params`` only if no mutation of the kind has an effect, for
        example at the upper bound of the learning rate, or if ``value_mutation`` keeps the value.

    Raises:
        ValueError: If ``value_mutation`` returns a value outside of its distribution.
    """
    for _ in range(_MAX_DRAWS):
        mutated = _draw(params, distributions, kind, rng, upward_lr, value_mutation)
        if value_mutation is not None or has_effect(params, mutated):
            return mutated
    return dict(params)


def has_effect(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a change of parameters can affect training, as far as it can be known before.

    Without weight decay, Adam and AdamW are the same.
    """
    changed = {n for n in old.keys() | new.keys() if _differs(n, old, new)}
    if (
        {old.get("optimizer"), new.get("optimizer")} == _SAME_WITHOUT_DECAY
        and "weight_decay" in new
        and new["weight_decay"] == 0
    ):
        changed.remove("optimizer")
        # Both have the same default rate, but converting the rate may change its last digit.
        if "lr" in changed and math.isclose(old["lr"], new["lr"], rel_tol=1e-6):
            changed.remove("lr")
    return bool(changed)


def _differs(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a parameter has another value. 1 and True are different values."""
    if name not in old or name not in new:
        return True
    return type(old[name]) is not type(new[name]) or bool(old[name] != new[name])


def _draw(
    params: Params,
    distributions: Distributions,
    kind: str,
    rng: np.random.Generator,
    upward_lr: bool,
    value_mutation: ValueMutation | None,
) -> Params:
    """Draw a mutation, which may have no effect; see :func:`mutate`."""
    names = kinds(distributions)[kind]
    mutated = dict(params)
    if kind == "activation" and rng.random() < _MANY_ACTIVATIONS_PROB:
        chosen = names
        layers = list(_groups_by_layer(names).values())
        if layers and rng.random() < _ONE_LAYER_PROB:
            chosen = layers[rng.integers(len(layers))]
    else:
        chosen = [names[rng.integers(len(names))]]

    if value_mutation is not None:
        for name in chosen:
            mutated[name] = value_mutation(params[name], distributions[name], rng)
            if not contains(distributions[name], mutated[name]):
                raise ValueError(
                    f"`mutation` must return a value of {distributions[name]} for {name!r}, got "
                    f"{mutated[name]!r}."
                )
        return mutated
    if kind == "lr" and upward_lr and len(names) > 1:
        return mutated | _raised_together(params, distributions, names, rng)
    if len(chosen) > 1:
        return mutated | _same_activation(params, distributions, chosen, rng)
    name, distribution = chosen[0], distributions[chosen[0]]
    rule: ValueMutation = _any_value
    if _is_numeric(distribution):
        rule = _raised_lr if kind == "lr" and upward_lr else _RULES.get(kind, _any_value)
    mutated[name] = rule(params[name], distribution, rng)
    if name == "optimizer":
        mutated |= rescaled_lr(params, mutated[name], distributions)
    return mutated


def _groups_by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """The layers with several groups of neurons, and the parameters of these groups.

    A layer ``activation.fc`` has groups if ``names`` contains ``activation.fc.0``,
    ``activation.fc.1`` and so on without a gap, at least two of them.
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        layer, _, group = name.rpartition(".")
        if group.isdecimal() and "." in layer:
            layers.setdefault(layer, []).append(name)
    return {
        layer: groups
        for layer, groups in layers.items()
        if len(groups) > 1 and set(groups) == {f"{layer}.{n}" for n in range(len(groups))}
    }


def _same_activation(
    params: Params, distributions: Distributions, names: list[str], rng: np.random.Generator
) -> Params:
    """Draw an activation that changes at least one of ``names``, for all that offer it."""
    name = names[rng.integers(len(names))]
    new = _any_value(params[name], distributions[name], rng)
    return {name: new for name in names if contains(distributions[name], new)}


def _is_numeric(distribution: BaseDistribution) -> bool:
    if not isinstance(distribution, CategoricalDistribution):
        return True
    return all(isinstance(c, (int, float)) for c in distribution.choices)


def _raised_lr(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    return _scaled(value, distribution, math.exp(abs(rng.normal(0.9, 0.4))))


def _lr(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Scale in either direction, for studies without a final phase."""
    sign = rng.choice([-1, 1])
    return _scaled_reflected(value, distribution, math.exp(sign * abs(rng.normal(0.9, 0.4))))


def _raised_together(
    params: Params, distributions: Distributions, names: list[str], rng: np.random.Generator
) -> Params:
    """Raise all learning rates by one factor, so that the ratios between groups stay."""
    factor = math.exp(abs(rng.normal(0.9, 0.4)))
    return {
        name: _scaled(params[name], distributions[name], factor)
        for name in names
        if _is_numeric(distributions[name])
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


def _any_value(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
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


def _numeric(value: Any, distribution: BaseDistribution, new: float) -> Any:
    """The valid value nearest to ``new``, with four significant digits where possible.

    Values on a grid change by at least one step, unless they are at a bound.
    """
    if isinstance(distribution, CategoricalDistribution):
        numbers = sorted(other_choices(distribution, value))
        choices: list[Any] = list(distribution.choices)
        # Distances are logarithmic. Zero counts as a tenth of the smallest positive choice.
        floor = min((c for c in choices if c > 0), default=1.0) / 10
        return min(numbers, key=lambda c: abs(math.log(max(c, floor) / max(new, floor))))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.step is None:
        rounded = fit(distribution, float(f"{new:.4g}"))
        return fit(distribution, new) if rounded == value else rounded
    fitted = fit(distribution, new)
    if fitted == value:
        fitted = fit(distribution, value + math.copysign(distribution.step, new - value))
    return fitted


_RULE_TEXTS = {
    "batch_size": "times 0.5 to 2",
    "dropout": "minus 0.1 to plus 0.2",
    "label_smoothing": "minus 0.05 to plus 0.1",
    "lr": "raised",
    "momentum": "1 - momentum times 0.5 or 2",
    "weight_decay": "times 0.2, 3 or 5",
}
"""Descriptions of ``_RULES``, for a run."""

_RULES: dict[str, ValueMutation] = {
    "batch_size": _batch_size,
    "dropout": _dropout,
    "label_smoothing": _label_smoothing,
    "lr": _lr,
    "momentum": _momentum,
    "weight_decay": _weight_decay,
}


def describe(old: Params, new: Params) -> str:
    """Describe a change of parameters: ``"lr 0.001 -> 0.0027, batch_size 32 -> 64"``.

    If all groups of neurons of a layer change alike, the layer is named instead of its groups.

    Args:
        old: The parent's parameters.
        new: The branch's parameters. A parameter that the parent does not have is listed with its
            value.

    Returns:
        The description; ``"no change"`` for the control.
    """
    changes: dict[str, list[str]] = {}
    for name, value in new.items():
        if name not in old:
            changes.setdefault(f"{_text(value)}", []).append(name)
        elif old[name] != value:
            changes.setdefault(f"{_text(old[name])} -> {_text(value)}", []).append(name)
    layers = _groups_by_layer(name for name in new if kind_of(name) == "activation")
    parts = [_join(_merged(names, layers), change) for change, names in changes.items()]
    return ", ".join(parts) or NO_CHANGE


def describe_rules(distributions: Distributions, allowed: Iterable[str]) -> str:
    """List all parameters with the rule that mutates them.

    Args:
        distributions: Their distributions, by name.
        allowed: The kinds that may mutate.
    """
    parts = []
    mutable = {k: names for k, names in kinds(distributions).items() if k in set(allowed)}
    for kind, names in mutable.items():
        numeric = [name for name in names if _is_numeric(distributions[name])]
        rule = _RULE_TEXTS.get(kind, "scaled or shifted")
        if numeric:
            together = " together" if kind == "lr" and len(names) > 1 else ""
            parts.append(_join(numeric, f"({rule}{together})"))
        if len(numeric) < len(names):
            others = [name for name in names if name not in numeric]
            parts.append(_join(others, "(another choice)"))
    fixed = [n for n in distributions if not any(n in names for names in mutable.values())]
    parts += [_join(fixed, "(fixed)")] if fixed else []
    return ", ".join(parts)


def _merged(names: list[str], layers: dict[str, list[str]]) -> list[str]:
    """``names``, in which the name of a layer replaces those of all its groups."""
    layer_of = {
        group: layer
        for layer, groups in layers.items()
        if set(groups) <= set(names)
        for group in groups
    }
    return list(dict.fromkeys(layer_of.get(name, name) for name in names))


def _join(names: list[str], change: str) -> str:
    if len(names) > 3:
        names = [names[0], "…", names[-1]]
    return f"{' and '.join(names) if len(names) == 2 else ' '.join(names)} {change}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
