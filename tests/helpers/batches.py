"""Small data sets, and what their batches hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset


class Numbers(Dataset[Any]):
    """Each sample is its index, as input and as target."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([float(index)]), torch.tensor(index)


class Stream(IterableDataset[Any]):
    """The same samples without random access."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(torch.tensor([float(i)]), torch.tensor(i)) for i in range(self.n)])


def epochs(batches: Iterable[Any], n_epochs: int = 2, seed: int = 3) -> list[list[Any]]:
    """The batches of several epochs, after seeding torch."""
    torch.manual_seed(seed)
    return [list(batches) for _ in range(n_epochs)]


def targets_of(batches: Iterable[Any]) -> list[list[int]]:
    """The targets of each batch of one epoch."""
    return [batch[-1].tolist() for batch in batches]
