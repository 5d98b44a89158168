"""Validation of single fields of a plan."""

from __future__ import annotations

from typing import Any

from optuna_miha._history.scalars import as_int

MAX_COUNT = 10**9
"""Upper bound of all integers in a plan: far above any real budget, and exact as a float."""

_MINIMUMS = {
    "n_epochs": 1,
    "n_workers": 1,
    "population_size": 1,
    "branch_epochs": 1,
    "fixing_epochs": 0,
    "startup": 1,
    "patience": 1,
    "runup_epochs": 0,
    "n_cycles": 0,
}
_OPTIONAL = {"n_workers", "patience", "runup_epochs", "n_cycles"}

COUNTS = tuple(_MINIMUMS)
"""The names of the integers of a plan."""


def checked_count(name: str, value: Any) -> int | None:
    """The value of an integer of a plan.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    count = as_int(value)
    if count is None and name in _OPTIONAL:
        return None
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"`{name}` must be an integer, got {count!r}.")
    if count < _MINIMUMS[name]:
        raise ValueError(f"`{name}` must be at least {_MINIMUMS[name]}, got {count}.")
    if count > MAX_COUNT:
        n_bits = count.bit_length()  # Python limits the digits of `repr`.
        shown = count if n_bits < 100 else f"a number of {n_bits} bits"
        raise ValueError(f"`{name}` must be at most {MAX_COUNT}, got {shown}.")
    return count


def checked_mutations(value: Any) -> Any:
    """The kinds that may mutate, as a tuple.

    Raises:
        TypeError: If it is a single kind.
    """
    if isinstance(value, str):
        raise TypeError(
            f"`mutations` must be a tuple of kinds, got {value!r}: write ({value!r},)."
        )
    return tuple(value) if isinstance(value, list) else value  # A list after reading JSON.
