"""Batches of the recipe's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from optuna_miha._model.recipe import Data
from optuna_miha._model.tensors import iter_tensors, map_tensors

EVALUATION_BATCH_SIZE = 512
"""One size for every branch, whatever its own: so that values do not depend on it."""


def training_batches(
    data: Data, batch_size: int, device: torch.device, *, skip_single: bool = False
) -> Iterable[Any]:
    """An iterable over the training batches; each iteration over it is one shuffled epoch.

    Tensors are kept in memory, on ``device``, and gathered once per epoch, in the order in
    which ``DataLoader(TensorDataset(*data), batch_size, shuffle=True)`` would visit them after
    the same ``torch.manual_seed``.

    Args:
        data: The recipe's training data.
        batch_size: Objects per batch; the last batch of an epoch may be smaller.
        device: Where the batches are wanted.
        skip_single:
            Leave out a last batch of one object, of which batch normalization cannot take a
            variance. Batch sizes change, so that one may come up that the user never met.

    Raises:
        TypeError: If a loader has an ``__iter__`` of its own, which would be lost.
    """
    tensors = _tensors(data)
    if tensors is not None:
        drop_last = skip_single and _leaves_single(len(tensors[0]), batch_size)
        return _ShuffledTensors(tensors, batch_size, device, drop_last=drop_last)
    if isinstance(data, DataLoader):
        if data.batch_size is None:  # A sampler of whole batches: its own affair.
            return _OnDevice(data, device)
        return _OnDevice(_with_batch_size(data, batch_size, skip_single), device)
    shuffle = not isinstance(data, IterableDataset)
    loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]
    return _OnDevice(_with_batch_size(loader, batch_size, skip_single), device)


def evaluation_batches(data: Data, device: torch.device) -> Iterable[Any]:
    """An iterable over the validation batches, in order; the network may change their values."""
    tensors = _tensors(data)
    if tensors is not None:
        return _Copies([tensor.to(device) for tensor in tensors])
    if isinstance(data, DataLoader):
        return _OnDevice(data, device)
    return _OnDevice(DataLoader(data, batch_size=EVALUATION_BATCH_SIZE), device)  # type: ignore[arg-type]


def batch_length(batch: Any) -> int:
    """Number of objects of a batch: the length of the first tensor in it.

    Raises:
        TypeError: If there is no tensor that has a length.
    """
    for tensor in iter_tensors(batch):
        if tensor.ndim > 0:
            return len(tensor)
    raise TypeError(
        f"A batch must hold a tensor of at least one dimension, got {type(batch).__qualname__} "
        "without: let the `collate_fn` of the DataLoader make one."
    )


def _tensors(data: Data) -> tuple[Tensor, ...] | None:
    if isinstance(data, tuple):
        return data
    # A class derived from it may do something else with its tensors.
    return data.tensors if type(data) is TensorDataset else None


def tensors_to(data: Data, device: torch.device) -> Data:
    """Tensors moved to ``device``; another dataset or a loader as it is."""
    tensors = _tensors(data)
    if tensors is None:
        return data
    moved = tuple(tensor.to(device) for tensor in tensors)
    return moved if isinstance(data, tuple) else TensorDataset(*moved)


class _ShuffledTensors:
    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        batch_size: int,
        device: torch.device,
        *,
        drop_last: bool,
    ) -> None:
        self._tensors = [tensor.to(device) for tensor in tensors]
        self._batch_size = batch_size
        self._drop_last = drop_last

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # DataLoader draws a base seed for its workers, then RandomSampler one for its own
        # generator: the same draws give the same order.
        torch.empty((), dtype=torch.int64).random_()
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._tensors[0]), generator=generator)
        gathered = (t.index_select(0, order.to(t.device)) for t in self._tensors)
        batches = list(zip(*(torch.split(t, self._batch_size) for t in gathered), strict=True))
        return iter(batches[:-1] if self._drop_last else batches)


class _Copies:
    """Parts of tensors, in order, one at a time.

    They are copied, since a network that begins with an operation in place would change the
    user's data otherwise.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        parts = (torch.split(tensor, EVALUATION_BATCH_SIZE) for tensor in self._tensors)
        for batch in zip(*parts, strict=True):
            yield tuple(part.clone() for part in batch)


class _OnDevice:
    def __init__(self, loader: DataLoader[Any], device: torch.device) -> None:
        self._loader = loader
        self._device = device

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield map_tensors(batch, self._move, is_leaf=_can_be_moved)

    def _move(self, part: Any) -> Any:
        return part.to(self._device)


def _can_be_moved(part: Any) -> bool:
    """Whether a part of a batch has the method ``to``: a tensor, or for instance a graph."""
    return hasattr(part, "to")


def _with_batch_size(
    loader: DataLoader[Any], batch_size: int, skip_single: bool
) -> DataLoader[Any]:
    """The user's loader with another batch size.

    Its ``generator`` is left out: its state is not in our checkpoints, and the global random
    state, which is, takes its place.
    """
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise TypeError(
            "`train_data` must be a DataLoader that iterates as torch's does, got "
            f"{type(loader).__qualname__}, which has an `__iter__` of its own: batch sizes "
            "change, so that the loader is built anew from its dataset. Do the work in the "
            "dataset or the `collate_fn`, or give the loader a `batch_sampler`: it is then used "
            "as it is."
        )
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "drop_last": loader.drop_last,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "persistent_workers": loader.persistent_workers,
        "prefetch_factor": loader.prefetch_factor,
        "in_order": loader.in_order,
    }
    if isinstance(loader.dataset, IterableDataset):
        pass
    elif _is_plain_shuffle(loader):
        settings["shuffle"] = True
    else:
        settings["sampler"] = loader.sampler
    if isinstance(loader.sampler, Sized):  # A stream's is not, nor need one of the user's be.
        n_samples = len(loader.sampler)
        # Nothing would be left of fewer objects, where the last batch is dropped.
        settings["batch_size"] = max(1, min(batch_size, n_samples))
        if skip_single and _leaves_single(n_samples, batch_size):
            settings["drop_last"] = True
    return DataLoader(loader.dataset, **settings)


def _leaves_single(n_samples: int, batch_size: int) -> bool:
    return n_samples > batch_size and n_samples % batch_size == 1


def _is_plain_shuffle(loader: DataLoader[Any]) -> bool:
    sampler = loader.sampler
    return (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
