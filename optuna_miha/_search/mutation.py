"""Mutations: functions that map the parameters of the trunk to those of a branch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from optuna_miha._search.learning_rate import rescaled_lr
from optuna_miha._search.mutation_rules import (
    REGULARIZERS,
    RULE_TEXTS,
    RULES,
    Distributions,
    Params,
    Strength,
    ValueMutation,
    any_value,
    is_numeric,
    raised_lr,
    raised_together,
)
from optuna_miha._search.space import contains, kind_of, kinds

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
    regularize: Strength | None = None,
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
        regularize:
            The direction of a mutation of dropout, label smoothing or weight decay. :obj:`None`:
            either.
        value_mutation: Replaces the built-in mutation of a single value.

    Returns:
        A new dictionary. It equals ``params`` only if no mutation of the kind has an effect, for
        example at the upper bound of the learning rate or if there is no dropout to lower, or if
        ``value_mutation`` keeps the value.

    Raises:
        ValueError: If ``value_mutation`` returns a value outside of its distribution.
    """
    for _ in range(_MAX_DRAWS):
        mutated = _draw(params, distributions, kind, rng, upward_lr, regularize, value_mutation)
        if value_mutation is not None or has_effect(params, mutated):
            return mutated
    return dict(params)


def has_effect(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a change of parameters can affect training, as far as it can be known before.

    Without weight decay, Adam and AdamW are the same.
    """
    changed = changed_names(old, new)
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


def changed_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """The names of the parameters that have another value, or that only one of the two has."""
    return {name for name in old.keys() | new.keys() if _differs(name, old, new)}


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
    regularize: Strength | None,
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
        return mutated | raised_together(params, distributions, names, rng)
    if len(chosen) > 1:
        return mutated | _same_activation(params, distributions, chosen, rng)
    name, distribution = chosen[0], distributions[chosen[0]]
    rule: ValueMutation = any_value
    if is_numeric(distribution):
        rule = raised_lr if kind == "lr" and upward_lr else RULES.get(kind, any_value)
        if regularize is not None and kind in REGULARIZERS:
            rule = REGULARIZERS[kind][regularize]
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
    new = any_value(params[name], distributions[name], rng)
    return {name: new for name in names if contains(distributions[name], new)}


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


def describe_rules(
    distributions: Distributions, allowed: Iterable[str], *, upward_lr: bool = True
) -> str:
    """List all parameters with the rule that mutates them.

    Args:
        distributions: Their distributions, by name.
        allowed: The kinds that may mutate.
        upward_lr: Whether the learning rate is only raised, as in cycles.
    """
    parts = []
    mutable = {k: names for k, names in kinds(distributions).items() if k in set(allowed)}
    for kind, names in mutable.items():
        numeric = [name for name in names if is_numeric(distributions[name])]
        rule, together = RULE_TEXTS.get(kind, "scaled or shifted"), ""
        if kind == "lr" and upward_lr:
            rule, together = "raised", " together" if len(names) > 1 else ""
        if numeric:
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
