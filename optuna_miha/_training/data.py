"""Batches of the training and validation data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from typing import Any

import optuna
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from optuna_miha._model.recipe import Data, takes_batch_size
from optuna_miha._model.tensors import map_tensors
from optuna_miha._training.batch_stream import Batches

_logger = optuna.logging.get_logger("optuna.miha")

EVALUATION_BATCH_SIZE = 512
"""The default, the same for all branches, so that values do not depend on their batch size."""


def training_batches(
    data: Data, batch_size: int, device: torch.device, *, skip_single: bool = False
) -> Batches:
    """Create an iterable over training batches; each iteration is one shuffled epoch.

    Tensors are kept in memory on ``device``, and are gathered once per epoch, in the order of
    ``DataLoader(TensorDataset(*data), batch_size, shuffle=True)`` after the same
    ``torch.manual_seed``.

    Args:
        data: The recipe's training data.
        batch_size: Samples per batch; the last batch of an epoch may be smaller.
        device: The device of the batches.
        skip_single:
            Leave out a last batch of a single sample, for which batch normalization cannot
            compute a variance. A mutated batch size may cause one where the user's does not.

    Raises:
        TypeError: If a loader must be rebuilt, but its class overrides ``__iter__``.
    """
    tensors = tensors_of(data)
    if tensors is not None:
        drop_last = skip_single and _leaves_single_sample(len(tensors[0]), batch_size)
        return _ShuffledTensors(tensors, batch_size, device, drop_last=drop_last)
    if isinstance(data, DataLoader):
        if data.batch_size is None:  # It has a batch sampler, or loads whole batches.
            return _OnDevice(data, device)
        return _OnDevice(with_batch_size(data, batch_size, skip_single), device)
    shuffle = not isinstance(data, IterableDataset)
    loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]
    return _OnDevice(with_batch_size(loader, batch_size, skip_single), device)


def evaluation_batches(
    data: Data, device: torch.device, batch_size: int | None = None
) -> Iterable[Any]:
    """Create an iterable over validation batches, in order; they may be changed in place.

    Args:
        data: The validation data.
        device: The device of the batches.
        batch_size: Samples per batch, unless a loader forms them. :obj:`None`: 512.
    """
    batch_size = batch_size or EVALUATION_BATCH_SIZE
    tensors = tensors_of(data)
    if tensors is not None:
        return _OrderedTensors([tensor.to(device) for tensor in tensors], batch_size)
    if isinstance(data, DataLoader):
        return _OnDevice(data, device)
    return _OnDevice(DataLoader(data, batch_size=batch_size), device)  # type: ignore[arg-type]


def n_batches_of(batches: Iterable[Any]) -> int | None:
    """Return the number of batches of an epoch; :obj:`None` if it is unknown."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def tensors_of(data: Data) -> tuple[Tensor, ...] | None:
    """Return the tensors of data that consist of tensors only; :obj:`None` for other data."""
    if isinstance(data, tuple):
        return data
    # A derived class may transform its tensors.
    return data.tensors if type(data) is TensorDataset else None


def move_data(data: Data, device: torch.device) -> Data:
    """Move data that consist of tensors to ``device``; other data are returned unchanged."""
    tensors = tensors_of(data)
    if tensors is None:
        return data
    moved = tuple(tensor.to(device) for tensor in tensors)
    return moved if isinstance(data, tuple) else TensorDataset(*moved)


class _ShuffledTensors:
    """Training batches of tensors, in a new order in each iteration."""

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

    def __len__(self) -> int:
        n_samples = len(self._tensors[0])
        return max(1, math.ceil(n_samples / self._batch_size) - self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # The same draws as in torch give the same order: DataLoader draws a base seed for its
        # workers, then RandomSampler draws one for its own generator.
        torch.empty((), dtype=torch.int64).random_()
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._tensors[0]), generator=generator)
        gathered = (t.index_select(0, order.to(t.device)) for t in self._tensors)
        batches = list(zip(*(torch.split(t, self._batch_size) for t in gathered), strict=True))
        return iter(batches[:-1] if self._drop_last else batches)

    def rest(self, n_batches: int) -> Iterator[tuple[Tensor, ...]]:
        """Begin a pass, and leave out the first batches."""
        return itertools.islice(iter(self), n_batches, None)


class _OrderedTensors:
    """Validation batches of tensors, in order.

    The batches are copies: a network that starts with an operation in place would otherwise
    change the user's data.
    """

    def __init__(self, tensors: list[Tensor], batch_size: int) -> None:
        self._tensors = tensors
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        parts = (torch.split(tensor, self._batch_size) for tensor in self._tensors)
        for batch in zip(*parts, strict=True):
            yield tuple(part.clone() for part in batch)


class _OnDevice:
    """The batches of a loader, moved to a device."""

    def __init__(self, loader: DataLoader[Any], device: torch.device) -> None:
        self._loader = loader
        self._device = device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._moved(iter(self._loader), _max_batches(self._loader))

    def rest(self, n_batches: int) -> Iterator[Any]:
        """Begin a pass, and leave out the first batches, without loading them if possible."""
        loader = self._loader
        is_stream = isinstance(loader.dataset, IterableDataset)
        if is_stream or loader.batch_sampler is None or not _has_own_iterator(loader):
            batches = iter(loader)
            next(itertools.islice(batches, n_batches - 1, None), None)
            limit = _max_batches(loader)
            return self._moved(batches, None if limit is None else limit - n_batches)
        # The same draws as at the beginning of a pass: a base seed, then those of the sampler.
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        indices = iter(loader.batch_sampler)
        next(itertools.islice(indices, n_batches - 1, None), None)
        settings = _settings(loader)
        for name in ("batch_size", "drop_last"):
            del settings[name]
        rest = DataLoader(loader.dataset, batch_sampler=_Once(indices), **settings)
        return self._moved(iter(rest), None)

    def _moved(self, batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
        for index, batch in enumerate(batches):
            if index == limit:
                _warn_of_length(type(self._loader.dataset).__qualname__)
                return
            yield map_tensors(batch, self._move, is_leaf=_can_be_moved)

    def _move(self, part: Any) -> Any:
        return part.to(self._device)


def _max_batches(loader: DataLoader[Any]) -> int | None:
    """Return the most batches of a stream with a length; :obj:`None` for other data.

    Torch does not end a stream at its length. Each worker may end with an incomplete batch.
    """
    if not isinstance(loader.dataset, IterableDataset) or not _has_own_iterator(loader):
        return None
    try:
        return len(loader) + loader.num_workers
    except (TypeError, NotImplementedError):
        return None


@cache
def _warn_of_length(name: str) -> None:
    _logger.warning(
        f"The stream {name} yields more samples than its length, at which an epoch ends: end the "
        "iteration there, or return the right number in `__len__`."
    )


def _has_own_iterator(loader: DataLoader[Any]) -> bool:
    return type(loader).__iter__ is DataLoader.__iter__


class _Once:
    """The rest of an iterator as a batch sampler of one pass."""

    def __init__(self, rest: Iterator[list[Any]]) -> None:
        self._rest = rest

    def __iter__(self) -> Iterator[list[Any]]:
        return self._rest


def _can_be_moved(part: Any) -> bool:
    """Whether a part of a batch has a method ``to``, as tensors and, for example, graphs do."""
    return hasattr(part, "to")


def with_batch_size(
    loader: DataLoader[Any], batch_size: int, skip_single: bool = False
) -> DataLoader[Any]:
    """Return a loader with this batch size: the user's own, or one with the same settings."""
    drop_last = loader.drop_last
    if isinstance(loader.sampler, Sized):  # Those of streams and of users may have no length.
        n_samples = len(loader.sampler)
        drop_last = drop_last or (skip_single and _leaves_single_sample(n_samples, batch_size))
        # With `drop_last`, a batch size above the number of samples would leave no batch.
        batch_size = max(1, min(batch_size, n_samples)) if drop_last else batch_size
    is_as_it_is = (batch_size, drop_last) == (loader.batch_size, loader.drop_last)
    if is_as_it_is and not loader.persistent_workers:  # These would outlive the segment.
        return loader
    if not takes_batch_size(loader):
        raise TypeError(
            "`train_data` must be a DataLoader with the `__iter__` of torch, got "
            f"{type(loader).__qualname__}, which overrides it: the loader is rebuilt from its "
            f"dataset to have a batch size of {batch_size} instead of {loader.batch_size}. Move "
            "the work to the dataset or the `collate_fn`, keep its batch size, or give the "
            "loader a `batch_sampler`: it is then used as it is."
        )
    settings = _settings(loader) | {"batch_size": batch_size, "drop_last": drop_last}
    if not isinstance(loader.dataset, IterableDataset):
        settings["sampler"] = loader.sampler
    return DataLoader(loader.dataset, **settings)


def _settings(loader: DataLoader[Any]) -> dict[str, Any]:
    """The settings of a loader that do not depend on its sampler."""
    return {
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "generator": loader.generator,
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "persistent_workers": loader.persistent_workers,
        "prefetch_factor": loader.prefetch_factor,
        "in_order": loader.in_order,
    }


def _leaves_single_sample(n_samples: int, batch_size: int) -> bool:
    """Whether the last of several batches holds a single sample."""
    return n_samples > batch_size and n_samples % batch_size == 1
