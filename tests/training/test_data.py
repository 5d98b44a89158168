"""Batches of tensors, datasets and streams."""

from __future__ import annotations

import itertools
from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.batches import Numbers, Stream, epochs, targets_of
from helpers.equality import same
from helpers.networks import CPU, network, recipe, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    TensorDataset,
)

from optuna_miha._training.data import (
    evaluation_batches,
    move_data,
    training_batches,
)
from optuna_miha._training.trainer import evaluate

META = torch.device("meta")
"""A device that is always available, and to which data must be moved."""

Pair = namedtuple("Pair", ["x", "y"])


@given(n=st.integers(1, 40), batch_size=st.integers(1, 45), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=25)
def test_tensors_are_shuffled_as_by_a_loader(n: int, batch_size: int, seed: int) -> None:
    data = samples(n)
    ours = epochs(training_batches(data, batch_size, CPU), seed=seed)
    after_ours = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*data), batch_size=batch_size, shuffle=True)
    theirs = epochs(loader, seed=seed)
    assert same(ours, theirs)
    # The next random numbers, for example for dropout, are the same too.
    assert torch.equal(after_ours, torch.get_rng_state())


def test_every_epoch_has_a_new_order_and_each_sample_once() -> None:
    data = samples(23)[0], torch.arange(23)
    first, second = epochs(training_batches(data, 5, CPU))
    assert [len(batch[0]) for batch in first] == [5, 5, 5, 5, 3]
    one = [i for batch in targets_of(first) for i in batch]
    other = [i for batch in targets_of(second) for i in batch]
    assert sorted(one) == sorted(other) == list(range(23))
    assert one != other
    assert all(torch.equal(x, data[0][y]) for x, y in first)


def test_tensor_dataset_equals_its_tensors() -> None:
    data = samples(11)
    of_tensors = epochs(training_batches(data, 4, CPU))
    of_dataset = epochs(training_batches(TensorDataset(*data), 4, CPU))
    assert same(of_tensors, of_dataset)


class Shifted(TensorDataset):
    """Transforms its samples."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + 100, y


def test_subclass_of_tensor_dataset_provides_its_own_samples() -> None:
    data = Shifted(*samples(11))
    for batches in (training_batches(data, 4, CPU), evaluation_batches(data, CPU)):
        assert all((x > 50).all() for x, _ in batches)
    assert move_data(data, META) is data


def test_moved_data_keep_their_type() -> None:
    x, y = samples(11)
    assert [t.device for t in move_data((x, y), META)] == [META, META]
    moved = move_data(TensorDataset(x, y), META)
    assert type(moved) is TensorDataset
    assert [t.device for t in moved.tensors] == [META, META]


def test_training_data_are_not_changed() -> None:
    data = samples(11)
    before = [tensor.clone() for tensor in data]
    epochs(training_batches(data, 4, CPU))
    assert same(before, list(data))


def test_dataset_is_shuffled_as_by_a_loader() -> None:
    ours = epochs(training_batches(Numbers(13), 4, CPU))
    theirs = epochs(DataLoader(Numbers(13), batch_size=4, shuffle=True))
    assert same(ours, theirs)
    assert targets_of(ours[0]) != targets_of(ours[1])


def test_iterable_dataset_keeps_its_order() -> None:
    assert targets_of(training_batches(Stream(7), 3, CPU)) == [[0, 1, 2], [3, 4, 5], [6]]
    loader = DataLoader(Stream(7), batch_size=2, drop_last=True)
    assert targets_of(training_batches(loader, 3, CPU)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "collate",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"x": x, "nested": {"y": (y, "a name")}},
        lambda x, y: Pair(x, y),
        lambda x, y: UserDict(x=x, y=y),
    ],
    ids=["tuple", "list", "dict", "namedtuple", "mapping"],
)
@pytest.mark.parametrize("make_batches", [training_batches, evaluation_batches])
def test_batches_of_any_structure_are_moved(collate: Any, make_batches: Any) -> None:
    def of_items(items: list[Any]) -> Any:
        return collate(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))

    loader = DataLoader(Numbers(5), batch_size=3, collate_fn=of_items)
    arguments = (loader, 3, META) if make_batches is training_batches else (loader, META)
    for batch, original in zip(make_batches(*arguments), loader, strict=True):
        assert type(batch) is type(original)
        if isinstance(batch, (dict, UserDict)):
            assert batch["x"].device.type == "meta"
            inner = batch["nested"]["y"] if "nested" in batch else (batch["y"],)
            assert inner[0].device.type == "meta"
            assert inner[1:] in ((), ("a name",))
        else:
            assert [part.device.type for part in batch] == ["meta", "meta"]


def test_batches_of_tensors_are_moved() -> None:
    for batches in (training_batches(samples(5), 2, META), evaluation_batches(samples(5), META)):
        assert {part.device.type for batch in batches for part in batch} == {"meta"}


@pytest.mark.parametrize("of", [lambda d: d, lambda d: TensorDataset(*d)])
def test_evaluation_batches_of_tensors_are_in_order(of: Any) -> None:
    x, y = samples(600)
    batches = list(evaluation_batches(of((x, y)), CPU))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), y)


def test_evaluation_batches_are_copies() -> None:
    data = samples(600)
    before = [tensor.clone() for tensor in data]
    batches = evaluation_batches(data, CPU)
    for x, y in batches:
        x += 100
        y += 100
    assert same(before, list(data))
    assert torch.equal(torch.cat([x for x, _ in batches]), before[0])


def test_evaluation_batches_of_datasets_and_loaders_are_in_order() -> None:
    for data in (Numbers(7), Stream(7), DataLoader(Numbers(7), batch_size=2)):
        batches = targets_of(evaluation_batches(data, CPU))
        assert [i for batch in batches for i in batch] == list(range(7))


@pytest.mark.parametrize(
    "of",
    [
        lambda d: d,
        lambda d: torch.utils.data.Subset(TensorDataset(*d), range(len(d[0]))),
        lambda d: DataLoader(TensorDataset(*d), batch_size=7),
    ],
    ids=["tensors", "dataset", "loader"],
)
def test_validation_does_not_depend_on_the_batch_size(of: Any) -> None:
    torch.manual_seed(0)
    model = network()
    values = {
        str(evaluate(recipe(model=model, valid_data=of(samples(50)), batch_size=size), model))
        for size in (1, 3, 64)
    }
    assert len(values) == 1


class Cycle(IterableDataset[Any]):
    """Never ends, although it has a length."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(zip(*samples(7), strict=True))

    def __len__(self) -> int:
        return 10


@pytest.mark.parametrize("batches", [training_batches, evaluation_batches])
@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_epoch_of_a_stream_with_a_length_ends(batches: Any, n_workers: int) -> None:
    loader = DataLoader(Cycle(), batch_size=4, num_workers=n_workers)
    arguments = (loader, CPU) if batches is evaluation_batches else (loader, 4, CPU)
    lengths = [len(targets) for _, targets in batches(*arguments)]
    assert lengths == [4] * (3 + n_workers)
