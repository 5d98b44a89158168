"""The number of samples in a batch of any form."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from optuna_miha._model.batches import TARGETS


def batch_length(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its targets.

    The targets are the last part of a tuple or list. In a dictionary, they are the part named
    ``"labels"``, ``"targets"`` or ``"y"``; without one, all parts must be of equal length. Objects
    such as graphs and packed sequences state their number of samples themselves.

    Raises:
        TypeError: If there is nothing that has a length.
        ValueError: If parts of the batch differ in length, and none of them is the targets.
    """
    if isinstance(batch, (list, tuple)) and batch and not _is_whole(batch):
        if _is_one_for_each_sample(batch[-1]):
            return len(batch[-1])
        if len(batch) > 1 and all(isinstance(part, (list, tuple, Mapping)) for part in batch):
            # Samples that no `collate_fn` has combined have no common first dimension.
            lengths = {_tensor_length(leaf) for part in batch for leaf in _leaves(part)}
            return lengths.pop() or len(batch) if len(lengths) == 1 else len(batch)
        for part in reversed(batch):
            length = _length(part)
            if length is not None:
                return length
    length = _length(batch)
    if length is None:
        raise TypeError(
            "A batch must hold a tensor of at least one dimension, got none in a "
            f"{type(batch).__qualname__}: let the `collate_fn` of the DataLoader make one."
        )
    return length


def _length(part: Any) -> int | None:
    """The number of samples in a part of a batch; :obj:`None` if it has none."""
    if isinstance(part, Tensor):
        return _tensor_length(part)
    stated = _stated_length(part)
    if stated is not None:
        return stated
    if isinstance(part, str | bytes):
        return None
    if isinstance(part, Mapping):
        for name in TARGETS:
            if name in part and _length(part[name]) is not None:
                return _length(part[name])
        return _common_length(list(part.values()))
    if isinstance(part, (list, tuple)):
        return len(part) if _is_one_for_each_sample(part) else _common_length(part)
    has_length = isinstance(part, Sized) and getattr(part, "ndim", None) != 0
    return len(part) if has_length else None


def _is_one_for_each_sample(part: Any) -> bool:
    """Whether a part of a batch is a list of one string or dictionary for each sample."""
    is_list = isinstance(part, (list, tuple)) and len(part) > 0
    return is_list and all(isinstance(sample, str | Mapping) for sample in part)


def _common_length(parts: Any) -> int | None:
    lengths = {length for part in parts if (length := _length(part)) is not None}
    if len(lengths) > 1:
        raise ValueError(
            "The number of samples in a batch must be clear, got parts of lengths "
            f"{sorted(lengths)}: let the `collate_fn` put the targets last in a tuple, name them "
            '"labels" in a dictionary, or return an object with an attribute `batch_size`.'
        )
    return lengths.pop() if lengths else None


def _stated_length(part: Any) -> int | None:
    """The number of samples according to an object of another kind than tensors."""
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])
    for name in ("num_graphs", "batch_size"):
        stated = getattr(part, name, None)
        if isinstance(stated, tuple) and stated:  # As of a tensordict.
            stated = stated[0]
        if isinstance(stated, int):
            return stated
    return None


def _is_whole(batch: Any) -> bool:
    return _stated_length(batch) is not None


def _tensor_length(part: Any) -> int | None:
    return len(part) if isinstance(part, Tensor) and part.ndim > 0 else None


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]
