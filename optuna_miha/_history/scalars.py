"""Numbers that the user hands over, as Python's own, which alone can be written to a study."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def as_float(value: Any, name: str) -> float:
    """A float of NumPy's or a tensor's, as Python's.

    Args:
        value: What the user gave.
        name: What it is, for the message.

    Raises:
        TypeError: If it is not one number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # The last is torch's.
        raise TypeError(
            f"{name} must be a number, got {value!r}: give a float, or a tensor of one element, "
            "for instance a mean."
        ) from error


def as_int(value: Any) -> Any:
    """An integer of any kind as Python's; anything else as it is, for its own check to refuse."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def as_python(value: Any) -> Any:
    """A scalar of NumPy's as Python's, unless it counts as one already; all else as it is."""
    is_foreign = isinstance(value, np.generic) and not isinstance(value, (float, str))
    return value.item() if is_foreign else value
