"""Conversion of the user's numbers to Python's types, which a study can store."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def as_float(value: Any, name: str) -> float:
    """Convert a number, a NumPy scalar or a tensor of one element to a float.

    Args:
        value: The user's value.
        name: Its name, for the message.

    Raises:
        TypeError: If the value is not a single number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # The last is torch's.
        raise TypeError(
            f"{name} must be a number, got {value!r}: give a float, or a tensor of one element, "
            "such as a mean."
        ) from error


def as_int(value: Any) -> Any:
    """Convert any integer type to ``int``. Other values are returned as they are, unchecked."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def as_python(value: Any) -> Any:
    """Convert a NumPy scalar to Python's type. Other values are returned as they are."""
    return value.item() if isinstance(value, np.generic) else value
