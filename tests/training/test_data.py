"""Batches: order, size, and that the user's loader keeps its settings."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.networks import CPU, Doubling, network, objects, recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from optuna_miha._training.data import (
    batch_length,
    evaluation_batches,
    tensors_to,
    training_batches,
)
from optuna_miha._training.trainer import evaluate

META = torch.device("meta")
"""A device that every machine has, and that data must be moved to."""

Pair = namedtuple("Pair", ["x", "y"])


class Name(str):
    """A string, which must not be taken for a container."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("searched a string for tensors")


class Numbers(Dataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([float(index)]), torch.tensor(index)


class Stream(IterableDataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(torch.tensor([float(i)]), torch.tensor(i)) for i in range(self.n)])


def epochs(batches: Iterable[Any], n_epochs: int = 2, seed: int = 3) -> list[list[Any]]:
    """The batches of some epochs after a seed."""
    torch.manual_seed(seed)
    return [list(batches) for _ in range(n_epochs)]


def visited(batches: Iterable[Any]) -> list[list[int]]:
    """The targets of each batch of one epoch."""
    return [batch[-1].tolist() for batch in batches]


@given(n=st.integers(1, 40), batch_size=st.integers(1, 45), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=25)
def test_tensors_are_visited_in_the_order_of_a_shuffling_loader(
    n: int, batch_size: int, seed: int
) -> None:
    data = objects(n)
    ours = epochs(training_batches(data, batch_size, CPU), seed=seed)
    after_ours = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*data), batch_size=batch_size, shuffle=True)
    theirs = epochs(loader, seed=seed)
    assert same(ours, theirs)
    # What is drawn next, dropout for instance, agrees too.
    assert torch.equal(after_ours, torch.get_rng_state())


def test_every_epoch_has_its_own_order_and_every_object_once() -> None:
    data = objects(23)[0], torch.arange(23)
    first, second = epochs(training_batches(data, 5, CPU))
    assert [len(batch[0]) for batch in first] == [5, 5, 5, 5, 3]
    one = [i for batch in visited(first) for i in batch]
    other = [i for batch in visited(second) for i in batch]
    assert sorted(one) == sorted(other) == list(range(23))
    assert one != other
    assert all(torch.equal(x, data[0][y]) for x, y in first)


def test_a_tensor_dataset_counts_as_its_tensors() -> None:
    data = objects(11)
    of_tensors = epochs(training_batches(data, 4, CPU))
    of_dataset = epochs(training_batches(TensorDataset(*data), 4, CPU))
    assert same(of_tensors, of_dataset)


class Shifted(TensorDataset):
    """Does more with its tensors than hand them out."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + 100, y


def test_a_class_derived_from_tensor_dataset_is_asked_for_its_objects() -> None:
    data = Shifted(*objects(11))
    for batches in (training_batches(data, 4, CPU), evaluation_batches(data, CPU)):
        assert all((x > 50).all() for x, _ in batches)
    assert tensors_to(data, META) is data


def test_tensors_are_moved_once_and_stay_what_they_were() -> None:
    x, y = objects(11)
    assert [t.device for t in tensors_to((x, y), META)] == [META, META]
    moved = tensors_to(TensorDataset(x, y), META)
    assert type(moved) is TensorDataset
    assert [t.device for t in moved.tensors] == [META, META]


def test_training_data_are_not_changed() -> None:
    data = objects(11)
    before = [tensor.clone() for tensor in data]
    epochs(training_batches(data, 4, CPU))
    assert same(before, list(data))


def test_a_plain_dataset_is_shuffled_as_a_loader_would() -> None:
    ours = epochs(training_batches(Numbers(13), 4, CPU))
    theirs = epochs(DataLoader(Numbers(13), batch_size=4, shuffle=True))
    assert same(ours, theirs)
    assert visited(ours[0]) != visited(ours[1])


def test_a_stream_keeps_its_order() -> None:
    assert visited(training_batches(Stream(7), 3, CPU)) == [[0, 1, 2], [3, 4, 5], [6]]
    loader = DataLoader(Stream(7), batch_size=2, drop_last=True)
    assert visited(training_batches(loader, 3, CPU)) == [[0, 1, 2], [3, 4, 5]]


def test_a_loader_of_the_users_is_visited_in_its_own_order() -> None:
    loader = DataLoader(Numbers(13), batch_size=4, shuffle=True)
    assert same(epochs(training_batches(loader, 4, CPU)), epochs(loader))


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_a_loader_that_does_not_shuffle_goes_on_in_order(batch_size: int) -> None:
    batches = visited(training_batches(DataLoader(Numbers(9), batch_size=2), batch_size, CPU))
    assert [i for batch in batches for i in batch] == list(range(9))
    assert max(map(len, batches)) == min(batch_size, 9)


def test_a_rebuilt_loader_keeps_dropping_the_last_batch() -> None:
    loader = DataLoader(Numbers(13), batch_size=2, drop_last=True, shuffle=True)
    assert [len(batch) for batch in visited(training_batches(loader, 5, CPU))] == [5, 5]


@pytest.mark.parametrize("sampler", [None, SubsetRandomSampler([1, 3, 5, 7])])
def test_a_batch_larger_than_the_data_is_not_dropped(sampler: Any) -> None:
    loader = DataLoader(Numbers(9), batch_size=2, sampler=sampler, drop_last=True)
    n_samples = 9 if sampler is None else 4
    assert [len(batch) for batch in visited(training_batches(loader, 64, CPU))] == [n_samples]


class Unmeasured(Sampler[int]):
    """Does not say how many objects it visits."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(7))


@pytest.mark.parametrize("skip_single", [False, True])
def test_a_sampler_need_not_have_a_length(skip_single: bool) -> None:
    loader = DataLoader(Numbers(9), batch_size=2, sampler=Unmeasured())
    batches = training_batches(loader, 4, CPU, skip_single=skip_single)
    assert visited(batches) == [[0, 1, 2, 3], [4, 5, 6]]


def test_a_rebuilt_loader_keeps_its_collate_fn() -> None:
    def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        return {"x": torch.stack([x for x, _ in items]), "size": len(items)}

    loader = DataLoader(Numbers(7), batch_size=2, collate_fn=collate)
    assert [batch["size"] for batch in training_batches(loader, 3, CPU)] == [3, 3, 1]


def test_a_rebuilt_loader_keeps_its_sampler() -> None:
    loader = DataLoader(Numbers(9), batch_size=2, sampler=SubsetRandomSampler([1, 3, 5, 7]))
    batches = visited(training_batches(loader, 3, CPU))
    assert [len(batch) for batch in batches] == [3, 1]
    assert sorted(i for batch in batches for i in batch) == [1, 3, 5, 7]


@pytest.mark.parametrize("replacement", [True, False])
def test_a_rebuilt_loader_keeps_a_sampler_of_another_length(replacement: bool) -> None:
    sampler = RandomSampler(Numbers(9), replacement=replacement, num_samples=20)
    loader = DataLoader(Numbers(9), batch_size=2, sampler=sampler)
    assert [len(batch) for batch in visited(training_batches(loader, 8, CPU))] == [8, 8, 4]


def test_a_rebuilt_loader_keeps_its_settings_of_workers() -> None:
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


def test_the_users_loader_is_left_as_it_was() -> None:
    loader = DataLoader(Numbers(9), batch_size=2, shuffle=True)
    list(training_batches(loader, 5, CPU))
    assert loader.batch_size == 2
    assert [len(batch) for batch in visited(loader)] == [2, 2, 2, 2, 1]


def test_a_generator_of_the_loader_gives_way_to_the_global_random_state() -> None:
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(Numbers(9), batch_size=2, shuffle=True, generator=generator)
    one = epochs(training_batches(loader, 2, CPU))
    other = epochs(training_batches(loader, 2, CPU))
    assert same(one, other)


def test_a_batch_sampler_is_left_alone() -> None:
    sampler = BatchSampler(SequentialSampler(range(9)), batch_size=4, drop_last=False)
    loader = DataLoader(Numbers(9), batch_sampler=sampler)
    assert visited(training_batches(loader, 2, CPU)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


class Named(DataLoader[Any]):
    """Iterates as torch's does."""

    def __init__(self, *arguments: Any, name: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.name = name


def test_a_loader_that_would_lose_its_own_iteration_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got Doubling, .*`collate_fn`.*`batch_sampler`"):
        training_batches(Doubling(Numbers(9), batch_size=2), 4, CPU)


def test_a_loader_that_is_used_as_it_is_may_have_its_own_iteration() -> None:
    sampler = BatchSampler(SequentialSampler(range(9)), batch_size=5, drop_last=False)
    loaders = Doubling(Numbers(9), batch_sampler=sampler), Doubling(Stream(9), batch_size=None)
    for batches in (
        *(training_batches(loader, 4, CPU) for loader in loaders),
        evaluation_batches(Doubling(Numbers(9), batch_size=2), CPU),
    ):
        assert all((x.flatten() == 2 * y).all() for x, y in batches)


def test_a_class_of_loaders_that_iterates_as_torchs_is_built_anew() -> None:
    loader = Named(Numbers(9), batch_size=2, name="mine")
    assert visited(training_batches(loader, 6, CPU)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]


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
@pytest.mark.parametrize("batches_of", [training_batches, evaluation_batches])
def test_batches_of_any_structure_are_moved(collate: Any, batches_of: Any) -> None:
    def of_items(items: list[Any]) -> Any:
        return collate(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))

    loader = DataLoader(Numbers(5), batch_size=3, collate_fn=of_items)
    arguments = (loader, 3, META) if batches_of is training_batches else (loader, META)
    for batch, original in zip(batches_of(*arguments), loader, strict=True):
        assert type(batch) is type(original)
        if isinstance(batch, (dict, UserDict)):
            assert batch["x"].device.type == "meta"
            inner = batch["nested"]["y"] if "nested" in batch else (batch["y"],)
            assert inner[0].device.type == "meta"
            assert inner[1:] in ((), ("a name",))
        else:
            assert [part.device.type for part in batch] == ["meta", "meta"]


def test_tensors_are_moved() -> None:
    for batches in (training_batches(objects(5), 2, META), evaluation_batches(objects(5), META)):
        assert {part.device.type for batch in batches for part in batch} == {"meta"}


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(5, 2), torch.zeros(5)),
        [torch.zeros(5), Name("a")],
        {"x": torch.zeros(5, 3), "y": torch.zeros(5)},
        {"nested": [{"x": torch.zeros(5, 3)}]},
        Pair(torch.zeros(5, 1), torch.zeros(5)),
        torch.zeros(5, 2),
        UserDict({Name("x"): torch.zeros(5, 3)}),
        ((Name("a"), Name("b")), torch.zeros(5)),
        {"name": Name("a"), "x": torch.zeros(5, 3)},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_is_as_long_as_its_first_tensor(batch: Any) -> None:
    assert batch_length(batch) == 5


@pytest.mark.parametrize("of", [lambda d: d, lambda d: TensorDataset(*d)])
def test_evaluation_goes_through_the_objects_in_order(of: Any) -> None:
    x, y = objects(600)
    batches = list(evaluation_batches(of((x, y)), CPU))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), y)


def test_an_evaluation_batch_is_a_copy_each_time() -> None:
    data = objects(600)
    before = [tensor.clone() for tensor in data]
    batches = evaluation_batches(data, CPU)
    for x, y in batches:
        x += 100
        y += 100
    assert same(before, list(data))
    assert torch.equal(torch.cat([x for x, _ in batches]), before[0])


def test_evaluation_of_datasets_and_streams_goes_through_all_objects_in_order() -> None:
    for data in (Numbers(7), Stream(7), DataLoader(Numbers(7), batch_size=2)):
        batches = visited(evaluation_batches(data, CPU))
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
def test_validation_does_not_depend_on_the_batch_size_of_the_branch(of: Any) -> None:
    torch.manual_seed(0)
    model = network()
    values = {
        str(evaluate(recipe(model=model, valid_data=of(objects(50)), batch_size=size), model))
        for size in (1, 3, 64)
    }
    assert len(values) == 1
