"""Suggestions of your own parameters, with an initial value and a kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalChoiceType

from optuna_miha._search.space import declare_initial, kind_of


def suggest_float(
    trial: optuna.trial.BaseTrial,
    name: str,
    low: float,
    high: float,
    *,
    initial: float | None = None,
    kind: str | None = None,
    log: bool = False,
    step: float | None = None,
) -> float:
    """Suggest a float, as ``trial.suggest_float``, with an initial value and a kind.

    Args:
        trial: The trial.
        name: The name of the parameter.
        low: The lower bound.
        high: The upper bound.
        initial: The initial value. :obj:`None`: the middle of the range.
        kind:
            The kind that determines how the parameter mutates, such as ``"lr"``; the parameter is
            then named ``<kind>.<name>``. A kind without a rule of its own, such as the name
            itself, mutates by its range. :obj:`None`: the kind that the name suggests.
        log: Whether the range is logarithmic.
        step: The step of a grid.

    Returns:
        The value.

    Raises:
        ValueError: If the initial value is out of range, or the kind contains a dot.
    """
    name = _named(name, kind)
    _check_initial(name, initial, low, high)
    with declare_initial(name, initial):
        return trial.suggest_float(name, low, high, log=log, step=step)


def suggest_int(
    trial: optuna.trial.BaseTrial,
    name: str,
    low: int,
    high: int,
    *,
    initial: int | None = None,
    kind: str | None = None,
    log: bool = False,
    step: int = 1,
) -> int:
    """Suggest an integer, as ``trial.suggest_int``, with an initial value and a kind.

    Args:
        trial: The trial.
        name: The name of the parameter.
        low: The lower bound.
        high: The upper bound.
        initial: The initial value. :obj:`None`: the middle of the range.
        kind: As in :func:`suggest_float`.
        log: Whether the range is logarithmic.
        step: The step of a grid.

    Returns:
        The value.

    Raises:
        ValueError: If the initial value is out of range, or the kind contains a dot.
    """
    name = _named(name, kind)
    _check_initial(name, initial, low, high)
    with declare_initial(name, initial):
        return trial.suggest_int(name, low, high, log=log, step=step)


def suggest_categorical(
    trial: optuna.trial.BaseTrial,
    name: str,
    choices: Sequence[CategoricalChoiceType],
    *,
    initial: CategoricalChoiceType = None,
    kind: str | None = None,
) -> Any:
    """Suggest a choice, as ``trial.suggest_categorical``, with an initial value and a kind.

    Args:
        trial: The trial.
        name: The name of the parameter.
        choices: The choices.
        initial: The initial choice. :obj:`None`: the first one.
        kind: As in :func:`suggest_float`.

    Returns:
        The choice.

    Raises:
        ValueError: If the initial value is not a choice, or the kind contains a dot.
    """
    name = _named(name, kind)
    if initial is not None and initial not in choices:
        raise ValueError(
            f"The initial value of {name!r} must be one of {list(choices)}, got {initial!r}."
        )
    with declare_initial(name, initial):
        return trial.suggest_categorical(name, choices)


def _named(name: str, kind: str | None) -> str:
    """The name that has a kind."""
    if kind is not None and (not kind or "." in kind):
        raise ValueError(f"`kind` must be a word without a dot, got {kind!r}.")
    if kind is None or (kind_of(name) == kind and name.split(".", 1)[0] == kind):
        return name
    return f"{kind}.{name}"


def _check_initial(name: str, initial: float | None, low: float, high: float) -> None:
    if initial is not None and not low <= initial <= high:
        raise ValueError(
            f"The initial value of {name!r} must lie between {low} and {high}, got {initial!r}."
        )
