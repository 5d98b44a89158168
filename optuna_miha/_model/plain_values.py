"""Plain values of objects: numbers, strings and arrays, as a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Scalar = (bool, int, float, complex, str, bytes, type(None), np.generic)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a string or an array, or a list or tuple of numbers."""
    if type(value) in (list, tuple):
        return all(isinstance(part, Scalar) for part in value)
    return isinstance(value, (*Scalar, Tensor, np.ndarray))


def copied(value: Any) -> Any:
    """Copy a tensor, an array or a list; other plain values cannot change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if isinstance(value, list | np.ndarray) else value


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are of one type and equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other)


def as_stored(value: Any) -> Any:
    """Convert NumPy's numbers and arrays, also in containers, to what a checkpoint can hold."""
    if isinstance(value, Mapping):
        return {key: as_stored(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_stored, value))
    if isinstance(value, np.ndarray):
        # Torch has few operations on unsigned integers; 64 bits keep all of theirs.
        return torch.from_numpy(value.astype(np.int64 if value.dtype.kind == "u" else value.dtype))
    return value.item() if isinstance(value, np.generic) else value


def like(stored: Any, present: Any) -> Any:
    """Convert what :func:`as_stored` returned back, to the types of ``present``."""
    if isinstance(present, Mapping):
        return {key: like(stored[key], part) for key, part in present.items()}
    return stored.numpy().astype(present.dtype) if isinstance(present, np.ndarray) else stored


def assign(attributes: dict[str, Any], name: str, value: Any) -> None:
    """Set an attribute; in place if it is a list or array, which other objects may share."""
    present: Any = attributes.get(name)
    if isinstance(value, Tensor):
        value = like(value, present)
    if type(present) is list and type(value) is list:
        present[:] = value
    elif (
        isinstance(present, Tensor | np.ndarray)
        and type(present) is type(value)
        and present.shape == value.shape
    ):
        present[...] = value  # type: ignore[assignment]
    else:
        attributes[name] = copied(value)
