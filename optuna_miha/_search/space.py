"""Properties of a hyperparameter besides its distribution: initial value, kind, defaults."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._history.scalars import as_python

DEFAULT_LR: Mapping[str, float] = {
    "adadelta": 1.0,
    "adagrad": 1e-2,
    "adam": 1e-3,
    "adamax": 2e-3,
    "adamw": 1e-3,
    "nadam": 1e-3,
    "radam": 1e-3,
    "rmsprop": 1e-3,
    "sgd": 0.03,
    "soap": 3e-3,
}
"""The default learning rate of each optimizer class. They are those of the classes, except for SGD
(1e-3 in torch) and NAdam (2e-3 in torch)."""

DEFAULT_MOMENTUM = 0.9
"""Momentum of a branch whose optimizer changes to SGD."""

OFFERED_OPTIMIZERS = ("adam", "adamw", "sgd", "adadelta")
"""Default choices of the optimizer: those of MIHA."""

OFFERED_ACTIVATIONS = (
    "relu",
    "elu",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "mish",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "tanh",
)
"""Default choices of an activation: MIHA's nine, and four that have become common since. None of
them has parameters."""

_NAME = re.compile(
    r"(\w*_)?(batch_size|dropout|label_smoothing|learning_rate|lr|momentum|wd|weight_decay)"
    r"(_\w+|\d+)?",
    re.IGNORECASE,
)

_ALIASES = {"learning_rate": "lr", "wd": "weight_decay"}

_OTHER_WORDS = frozenset(
    {"decay", "end", "eta", "eval", "factor", "final", "gamma", "init", "initial", "min", "mult"}
    | {"multiplier", "patience", "period", "power", "ratio", "scale", "schedule", "scheduler"}
    | {"start", "step", "steps", "test", "type", "valid", "warmup"}
)
"""Words in the name of a parameter that belongs to another one, such as its schedule."""

_declared: ContextVar[tuple[str, Any] | None] = ContextVar("declared_initial", default=None)


@contextmanager
def declare_initial(name: str, value: Any) -> Iterator[None]:
    """Declare the user's initial value to the sampler, for a suggestion within the context."""
    token = _declared.set((name, value))
    try:
        yield
    finally:
        _declared.reset(token)


def initial_value(name: str, distribution: BaseDistribution) -> Any:
    """The declared initial value of ``name``, or the middle of its distribution.

    The middle is the arithmetic mean of the bounds, their geometric mean on a log scale, and the
    first choice of a categorical.
    """
    declared = _declared.get()
    if declared is not None and declared[0] == name and contains(distribution, declared[1]):
        return declared[1]
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    return fit(distribution, middle)


def value_or_initial(params: Mapping[str, Any], name: str, distribution: BaseDistribution) -> Any:
    """The value in ``params`` if ``distribution`` contains it, otherwise the initial value."""
    if name in params and contains(distribution, params[name]):
        return params[name]
    return initial_value(name, distribution)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether ``value`` can be suggested from ``distribution``."""
    if isinstance(distribution, CategoricalDistribution):
        return any(_is_same(value, choice) for choice in distribution.choices)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if not distribution.low <= value <= distribution.high:
        return False
    if distribution.step is None:
        return True
    steps = (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-8  # As Optuna does.


def fit(distribution: FloatDistribution | IntDistribution, value: float) -> float | int:
    """The value of ``distribution`` nearest to ``value``, within its bounds and on its grid."""
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(value, low), high)
    if step is not None:
        value = min(low + round((value - low) / step) * step, high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def lr_distributions(
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, FloatDistribution]:
    """The distributions of all learning rates that are float parameters, by name."""
    return {
        name: distribution
        for name, distribution in distributions.items()
        if kind_of(name) == "lr" and isinstance(distribution, FloatDistribution)
    }


def lr_distribution(distributions: Mapping[str, BaseDistribution]) -> FloatDistribution | None:
    """The distribution of the learning rate if it is a float parameter, which can be scaled."""
    distribution = distributions.get("lr")
    return distribution if isinstance(distribution, FloatDistribution) else None


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    """The kind of a parameter, which is the part of its name before the first dot.

    Common names of a few kinds are recognised without a dot: ``learning_rate``, ``head_lr`` and
    ``lr_head`` are of the kind ``lr``, ``dropout_1`` is of the kind ``dropout``. Names such as
    ``lr_decay`` and ``min_lr`` are of a kind of their own.

    Args:
        name: The name, for example ``activation.fc1``, of the kind ``activation``.
    """
    first = name.split(".", 1)[0]
    found = _NAME.fullmatch(first)
    if found is None:
        return first
    prefix, kind, suffix = found.groups(default="")
    if not _OTHER_WORDS.isdisjoint((prefix + suffix).lower().split("_")):
        return first
    return _ALIASES.get(kind.lower(), kind.lower())


def kinds(distributions: Mapping[str, BaseDistribution]) -> dict[str, list[str]]:
    """Parameters with several possible values, by kind; kinds and names sorted alphabetically."""
    groups: dict[str, list[str]] = {}
    for name in sorted(distributions):
        if not distributions[name].single():
            groups.setdefault(kind_of(name), []).append(name)
    return dict(sorted(groups.items()))


def other_choices(distribution: CategoricalDistribution, value: Any) -> Sequence[Any]:
    """The choices other than ``value``. 1 and True are different choices."""
    return [choice for choice in distribution.choices if not _is_same(value, choice)]


def check_choices(distributions: Mapping[str, BaseDistribution]) -> None:
    """Check that all choices come back from a storage, which writes them as JSON, unchanged.

    Raises:
        ValueError: If one does not, for example a tuple.
    """
    for name, distribution in distributions.items():
        if not isinstance(distribution, CategoricalDistribution):
            continue
        for choice in distribution.choices:
            if not _survives_json(choice):
                raise ValueError(
                    f"The choices of {name!r} must be strings, numbers of Python, True, False or "
                    f"None, which a storage returns unchanged, got {choice!r} of type "
                    f"{type(choice).__qualname__}: suggest a name, and look the value up in a "
                    "dictionary; convert NumPy arrays with `.tolist()`."
                )


def _survives_json(choice: Any) -> bool:
    if type(choice) in (str, int, bool, type(None)):
        return True
    try:
        restored = json.loads(json.dumps(choice))
    except (TypeError, ValueError):
        return False
    # Within a list, a tuple would come back as a list, which is not equal to it.
    return _is_same(choice, restored)


def _is_same(value: Any, choice: Any) -> bool:
    """Whether two values are one choice, such as a float and the same float of NumPy."""
    value, choice = as_python(value), as_python(choice)
    return bool(type(value) is type(choice) and value == choice)


def check_names(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Check that names are known.

    Args:
        what: The object that a name denotes, for the message.
        names: The names.
        known: The known names.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"Each {what} must be one of {sorted(known)}, got {unknown[0]!r}.")
