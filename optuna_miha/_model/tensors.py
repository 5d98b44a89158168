"""Nested containers of tensors: states, batches and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a tensor."""
    return isinstance(value, Tensor)


def map_tensors(
    value: Any,
    function: Callable[[Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = is_tensor,
) -> Any:
    """Replace every tensor in nested mappings, lists and tuples by ``function(tensor)``.

    The containers are rebuilt. Lists, tuples, named tuples and mappings keep their type, except
    that a subclass of :class:`dict`, such as the one of a state dict, becomes a plain dictionary.
    Anything else is passed through.

    Args:
        value: A tensor, a container, or any other value.
        function: Called with each leaf.
        is_leaf: Tells which values ``function`` is called with. Default: tensors.

    Returns:
        The same structure with the results of ``function`` in place of the leaves.
    """

    def mapped(part: Any) -> Any:
        return map_tensors(part, function, is_leaf=is_leaf)

    if is_leaf(value):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: mapped(part) for key, part in value.items()}
        return items if isinstance(value, dict) else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(mapped, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(mapped, value))
    return value


def is_equal(one: Any, other: Any) -> bool:
    """Whether nested containers hold equal values, NaN included.

    Of objects other than tensors, arrays, numbers and strings, only the types are compared.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # NaN marks missing targets, and is not equal to itself.
        return one.shape == other.shape and bool(((one == other) | (one != one)).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(is_equal, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other) or is_equal(one.tolist(), other.tolist())
    if isinstance(one, (bool, int, float, str, bytes, np.generic)):
        return bool(one == other or (one != one and other != other))
    return type(one) is type(other)


def n_bytes_of(value: Any) -> int:
    """The memory of the tensors in nested containers, each counted once, in bytes."""
    sizes: dict[int, int] = {}

    def add(tensor: Tensor) -> Tensor:
        sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        return tensor

    map_tensors(value, add)
    return sum(sizes.values())


def copy_tensors(value: Any) -> Any:
    """Copy nested containers, and detach and clone the tensors in them."""
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def copy_to_host(value: Any) -> Any:
    """Copy like :func:`copy_tensors`, to the memory of the host."""

    def copied(tensor: Tensor) -> Tensor:
        own = tensor.detach()
        return own.clone() if own.device.type == "cpu" else own.cpu()

    return map_tensors(value, copied)


def on_host(value: Any) -> Any:
    """Move the tensors in nested containers to the memory of the host, without other copies."""
    return map_tensors(value, Tensor.cpu)
