"""Bitwise comparison and memory addresses of nested containers of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def same(one: Any, other: Any) -> bool:
    """Whether two nested containers of tensors and other values are equal, bit for bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and torch.equal(one.detach(), other.detach())
        )
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)


def memory_of(*values: Any) -> set[int]:
    """Addresses of the storages of all tensors in ``values``."""
    tensors = [t for value in values for t in tensors_of(value) if t.numel() > 0]
    return {t.untyped_storage().data_ptr() for t in tensors}
