"""Loaders of the user: which of them are rebuilt, and the settings that they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.batches import Numbers, Stream, epochs, targets_of
from helpers.equality import same
from helpers.networks import CPU, Doubling
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from optuna_miha._training.data import evaluation_batches, training_batches


def test_loader_of_the_user_keeps_its_order() -> None:
    loader = DataLoader(Numbers(13), batch_size=4, shuffle=True)
    assert same(epochs(training_batches(loader, 4, CPU)), epochs(loader))


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_loader_without_shuffling_stays_in_order(batch_size: int) -> None:
    batches = targets_of(training_batches(DataLoader(Numbers(9), batch_size=2), batch_size, CPU))
    assert [i for batch in batches for i in batch] == list(range(9))
    assert max(map(len, batches)) == min(batch_size, 9)


def test_rebuilt_loader_keeps_drop_last() -> None:
    loader = DataLoader(Numbers(13), batch_size=2, drop_last=True, shuffle=True)
    assert [len(batch) for batch in targets_of(training_batches(loader, 5, CPU))] == [5, 5]


@pytest.mark.parametrize("sampler", [None, SubsetRandomSampler([1, 3, 5, 7])])
def test_batch_larger_than_the_data_is_not_dropped(sampler: Any) -> None:
    loader = DataLoader(Numbers(9), batch_size=2, sampler=sampler, drop_last=True)
    n_samples = 9 if sampler is None else 4
    assert [len(batch) for batch in targets_of(training_batches(loader, 64, CPU))] == [n_samples]


class WithoutLength(Sampler[int]):
    """Has no length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(7))


@pytest.mark.parametrize("skip_single", [False, True])
def test_sampler_without_a_length_is_supported(skip_single: bool) -> None:
    loader = DataLoader(Numbers(9), batch_size=2, sampler=WithoutLength())
    batches = training_batches(loader, 4, CPU, skip_single=skip_single)
    assert targets_of(batches) == [[0, 1, 2, 3], [4, 5, 6]]


def test_rebuilt_loader_keeps_its_collate_fn() -> None:
    def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        return {"x": torch.stack([x for x, _ in items]), "size": len(items)}

    loader = DataLoader(Numbers(7), batch_size=2, collate_fn=collate)
    assert [batch["size"] for batch in training_batches(loader, 3, CPU)] == [3, 3, 1]


def test_rebuilt_loader_keeps_its_sampler() -> None:
    loader = DataLoader(Numbers(9), batch_size=2, sampler=SubsetRandomSampler([1, 3, 5, 7]))
    batches = targets_of(training_batches(loader, 3, CPU))
    assert [len(batch) for batch in batches] == [3, 1]
    assert sorted(i for batch in batches for i in batch) == [1, 3, 5, 7]


@pytest.mark.parametrize("replacement", [True, False])
def test_rebuilt_loader_keeps_a_sampler_of_another_length(replacement: bool) -> None:
    sampler = RandomSampler(Numbers(9), replacement=replacement, num_samples=20)
    loader = DataLoader(Numbers(9), batch_size=2, sampler=sampler)
    assert [len(batch) for batch in targets_of(training_batches(loader, 8, CPU))] == [8, 8, 4]


def test_rebuilt_loader_keeps_its_worker_settings() -> None:
    def init(worker: int) -> None:
        pass

    loader = DataLoader(
        Numbers(9),
        batch_size=2,
        num_workers=2,
        worker_init_fn=init,
        prefetch_factor=3,
        persistent_workers=True,
        timeout=7,
        multiprocessing_context="spawn",
        in_order=False,
    )
    rebuilt = training_batches(loader, 4, CPU)._loader  # type: ignore[attr-defined]
    assert rebuilt.batch_size == 4
    for name in ("num_workers", "worker_init_fn", "prefetch_factor", "persistent_workers"):
        assert getattr(rebuilt, name) == getattr(loader, name)
    for name in ("timeout", "multiprocessing_context", "in_order"):
        assert getattr(rebuilt, name) == getattr(loader, name)


def test_loader_of_the_user_is_not_changed() -> None:
    loader = DataLoader(Numbers(9), batch_size=2, shuffle=True)
    list(training_batches(loader, 5, CPU))
    assert loader.batch_size == 2
    assert [len(batch) for batch in targets_of(loader)] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("batch_size", [2, 4])
def test_order_is_drawn_from_the_generator_of_the_loader(batch_size: int) -> None:
    def loader(batch_size: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        return DataLoader(Numbers(9), batch_size, shuffle=True, generator=generator)

    assert same(epochs(training_batches(loader(2), batch_size, CPU)), epochs(loader(batch_size)))


class Even(RandomSampler):
    """A sampler of the user's own class."""

    def __iter__(self) -> Iterator[int]:
        return (i for i in super().__iter__() if i % 2 == 0)


class Backwards(SequentialSampler):
    """Another one."""

    def __iter__(self) -> Iterator[int]:
        return reversed(range(9))


@pytest.mark.parametrize("batch_size", [2, 4])
def test_derived_sampler_is_used(batch_size: int) -> None:
    even = DataLoader(Numbers(9), batch_size=2, sampler=Even(Numbers(9)))
    batches = targets_of(training_batches(even, batch_size, CPU))
    assert sorted(i for batch in batches for i in batch) == [0, 2, 4, 6, 8]
    backwards = DataLoader(Numbers(9), batch_size=2, sampler=Backwards(Numbers(9)))
    batches = targets_of(training_batches(backwards, batch_size, CPU))
    assert [i for batch in batches for i in batch] == [*reversed(range(9))]


def test_loader_with_the_right_batch_size_is_the_users_own() -> None:
    loader = Doubling(Numbers(8), batch_size=4, shuffle=True)
    assert all((x.flatten() == 2 * y).all() for x, y in training_batches(loader, 4, CPU))
    assert training_batches(loader, 4, CPU)._loader is loader  # type: ignore[attr-defined]


def test_loader_with_a_batch_sampler_is_not_rebuilt() -> None:
    sampler = BatchSampler(SequentialSampler(range(9)), batch_size=4, drop_last=False)
    loader = DataLoader(Numbers(9), batch_sampler=sampler)
    assert targets_of(training_batches(loader, 2, CPU)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


class Named(DataLoader[Any]):
    """Has an additional argument, but does not override ``__iter__``."""

    def __init__(self, *arguments: Any, name: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.name = name


def test_loader_that_overrides_iteration_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got Doubling, .*`collate_fn`.*`batch_sampler`"):
        training_batches(Doubling(Numbers(9), batch_size=2), 4, CPU)


def test_loader_that_is_not_rebuilt_may_override_iteration() -> None:
    sampler = BatchSampler(SequentialSampler(range(9)), batch_size=5, drop_last=False)
    loaders = Doubling(Numbers(9), batch_sampler=sampler), Doubling(Stream(9), batch_size=None)
    for batches in (
        *(training_batches(loader, 4, CPU) for loader in loaders),
        evaluation_batches(Doubling(Numbers(9), batch_size=2), CPU),
    ):
        assert all((x.flatten() == 2 * y).all() for x, y in batches)


def test_subclass_of_loader_without_own_iteration_is_rebuilt() -> None:
    loader = Named(Numbers(9), batch_size=2, name="mine")
    assert targets_of(training_batches(loader, 6, CPU)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
