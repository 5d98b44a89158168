"""Nested containers of tensors: states, batches and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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


def copy_tensors(value: Any) -> Any:
    """Copy nested containers, and detach and clone the tensors in them."""
    return map_tensors(value, lambda tensor: tensor.detach().clone())
