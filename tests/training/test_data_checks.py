"""Streams and validation data that are refused before a run begins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.batches import Numbers, Stream
from helpers.networks import Doubling, recipe, run_context, samples
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

import optuna_miha as miha
from optuna_miha import Recipe
from optuna_miha._training.data_checks import check_data, check_split

PAIRS = list(zip(*samples(8), strict=True))
CONTEXT = run_context(recipe)


class Endless(IterableDataset[Any]):
    """Begins anew at its end, within one epoch."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(PAIRS)


class Long(Endless):
    """As long as it says."""

    def __len__(self) -> int:
        return 10**7


class ReadOnce(IterableDataset[Any]):
    """Keeps one position for all epochs, in an object of another class than Python's."""

    def __init__(self) -> None:
        self.position = [0]

    def __iter__(self) -> Iterator[Any]:
        while self.position[0] < len(PAIRS):
            self.position[0] += 1
            yield PAIRS[self.position[0] - 1]


class Beginning(IterableDataset[Any]):
    """Is its own iterator, and begins anew."""

    def __iter__(self) -> Iterator[Any]:
        self.i = -1
        return self

    def __next__(self) -> Any:
        self.i += 1
        if self.i == len(PAIRS):
            raise StopIteration
        return PAIRS[self.i]


class Forever(Sampler[int]):
    """A sampler without an end."""

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(range(8))


@pytest.mark.parametrize("name", ["train_data", "valid_data", "test_data"])
@pytest.mark.parametrize(
    "make",
    [
        Endless,
        lambda: DataLoader(Endless(), batch_size=4),
        lambda: DataLoader(TensorDataset(*samples(8)), batch_size=4, sampler=Forever()),
        lambda: DataLoader(
            TensorDataset(*samples(8)), batch_sampler=BatchSampler(Forever(), 4, False)
        ),
    ],
    ids=["stream", "loader", "sampler", "batch sampler"],
)
def test_endless_data_are_refused(make: Callable[[], Any], name: str) -> None:
    endless = recipe(**{name: make()})
    with pytest.raises(ValueError, match=rf"`{name}` of more than 100000 samples .*`__len__`"):
        check_data(endless, CONTEXT)


@pytest.mark.parametrize("name", ["train_data", "valid_data"])
@pytest.mark.parametrize("of", [lambda d: d, DataLoader], ids=["stream", "loader"])
def test_stream_that_can_be_read_once_is_refused(name: str, of: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must .* a ReadOnce that yields 8 .* none"):
        check_data(recipe(**{name: of(ReadOnce())}), CONTEXT)


def test_iterator_in_the_training_data_is_refused() -> None:
    stream = Stream(8)
    stream.rows = (pair for pair in PAIRS)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"a generator as `rows` of Stream"):
        check_data(recipe(train_data=stream), CONTEXT)


DATA = TensorDataset(*samples(8))


@pytest.mark.parametrize(
    "data",
    [
        Long(),
        Stream(8),
        Beginning(),
        DataLoader(Stream(8), batch_size=3),
        Doubling(Stream(8), batch_size=3),
        DATA,
        samples(8),
        Numbers(8),
        DataLoader(DATA, batch_size=4, drop_last=True),
        DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 3, False)),
        DataLoader(DATA, batch_size=None),
        DataLoader(DATA, batch_size=3, sampler=[5, 1, 0, 7]),  # type: ignore[arg-type]
    ],
    ids=lambda data: type(data).__name__,
)
def test_other_data_are_accepted(data: Any) -> None:
    accepted = recipe(train_data=data, valid_data=data, test_data=data)
    before = torch.get_rng_state()
    check_data(accepted, CONTEXT)
    check_split(accepted, accepted)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, batch_size=4, shuffle=True),
        DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler(range(6))),
        DataLoader(DATA, batch_size=4, sampler=WeightedRandomSampler([1.0] * 8, 8)),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 3, False)),
    ],
    ids=["shuffle", "generator", "subset", "weighted", "batch sampler"],
)
def test_validation_data_in_random_order_are_refused(loader: Any) -> None:
    with pytest.raises(ValueError, match=r"same order .*RandomSampler: use `shuffle=F.*Subset"):
        check_data(recipe(valid_data=loader), CONTEXT)
    check_data(recipe(train_data=loader, test_data=loader), CONTEXT)


@pytest.mark.parametrize("name", ["valid_data", "test_data"])
@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, batch_size=3, drop_last=True),
        DataLoader(Stream(8), batch_size=3, drop_last=True),
        DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 3, True)),
    ],
    ids=["loader", "stream", "batch sampler"],
)
def test_evaluation_data_that_drop_samples_are_refused(loader: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be .*: use `drop_last=False`"):
        check_data(recipe(**{name: loader}), CONTEXT)
    check_data(recipe(train_data=loader), CONTEXT)


def test_own_trainer_may_use_the_data_otherwise() -> None:
    context = run_context(recipe, trainer=lambda recipe, n_epochs: iter(()))
    check_data(recipe(train_data=Endless(), valid_data=DataLoader(DATA, shuffle=True)), context)


class Picked(Dataset[Any]):
    """Samples of a data set that are not stored as a subset."""

    def __init__(self, indices: Any) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return DATA[int(self.indices[i])]


class Streamed(IterableDataset[Any]):
    """The same as a stream."""

    def __init__(self, indices: Any) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[Any]:
        return (DATA[int(i)] for i in self.indices)


FORMS: dict[str, Callable[[list[int]], Any]] = {
    "tensors": lambda order: tuple(t[order] for t in DATA.tensors),
    "tensor dataset": lambda order: TensorDataset(*(t[order] for t in DATA.tensors)),
    "subset": lambda order: Subset(DATA, order),
    "subsets": lambda order: ConcatDataset([Subset(DATA, order[:2]), Subset(DATA, order[2:])]),
    "loader": lambda order: DataLoader(Subset(DATA, order), batch_size=2),
    "sampler": lambda order: DataLoader(DATA, batch_size=2, sampler=order),  # type: ignore[arg-type]
    "own dataset": Picked,
    "stream": Streamed,
}


@pytest.mark.parametrize("form", FORMS)
def test_split_must_be_the_same_at_every_call(form: str) -> None:
    make = FORMS[form]
    first, same, other = (recipe(valid_data=make(i)) for i in ([0, 3, 5], [0, 3, 5], [0, 4, 5]))
    check_split(first, same)
    with pytest.raises(ValueError, match=r"same validation data at every call.*`random_split"):
        check_split(first, other)


def test_missing_values_are_equal() -> None:
    def with_nan() -> Recipe:
        return recipe(valid_data=(torch.full((4, 4), torch.nan), torch.arange(4)))

    check_split(with_nan(), with_nan())


@pytest.mark.parametrize(
    "split",
    [
        lambda rng, shared: random_split(DATA, [4, 4], generator=shared)[1],
        lambda rng, shared: Subset(DATA, rng.permutation(8)[:4]),
    ],
    ids=["torch", "NumPy"],
)
def test_random_split_with_a_shared_generator_is_refused_before_the_run(split: Any) -> None:
    rng, shared = np.random.default_rng(0), torch.Generator()
    study = miha_study()
    with pytest.raises(ValueError, match="same validation data"):
        miha.optimize(
            study,
            lambda trial: recipe(valid_data=split(rng, shared)),
            n_epochs=40,
            show_progress_bar=False,
        )
    assert not study.trials and not study.user_attrs


def test_shuffled_validation_is_refused_before_the_run() -> None:
    study = miha_study()
    with pytest.raises(ValueError, match="same order"):
        miha.optimize(
            study,
            lambda trial: recipe(valid_data=DataLoader(DATA, shuffle=True)),
            n_epochs=40,
            show_progress_bar=False,
        )
    assert not study.trials and not study.user_attrs


def miha_study() -> Any:
    return optuna.create_study(sampler=miha.MihaSampler(seed=0))
