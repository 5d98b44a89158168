"""Samplers and generators of the user: their state belongs to the checkpoint of a segment."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import Numbers
from helpers.jobs import UNUSED_PARAM
from helpers.networks import recipe, run_context, samples, succeed
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from optuna_miha import EpochResult, Recipe
from optuna_miha._model.data_state import DataState, check_data_state
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.state import State

N = 12


class Logged(Dataset[Any]):
    """Keeps a log of the samples that were read."""

    def __init__(self) -> None:
        self.x, self.y = samples(N)
        self.log = Log()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.log.indices.append(int(index))
        return self.x[index], self.y[index]


class Log:
    """The indices that were read, which are not part of any state."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def epochs(self) -> list[tuple[int, ...]]:
        return [tuple(self.indices[i : i + N]) for i in range(0, len(self.indices), N)]


class OfNumpy(Sampler[int]):
    """Draws from a generator of NumPy."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(N).tolist())

    def __len__(self) -> int:
        return N


class OfPython:
    """Draws from a generator of Python, and does not derive from torch's class."""

    def __init__(self) -> None:
        self.source = {"rng": random.Random(0)}

    def __iter__(self) -> Iterator[int]:
        return iter(self.source["rng"].sample(range(N), N))

    def __len__(self) -> int:
        return N


class InPlace(Sampler[int]):
    """Shuffles its own list again and again, with a generator that it creates anew."""

    def __init__(self, make: Callable[[range], Any]) -> None:
        self.indices = make(range(N))

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
        shuffled = [self.indices[i] for i in order]
        for i, index in enumerate(shuffled):
            self.indices[i] = int(index)
        return iter([int(i) for i in self.indices])

    def __len__(self) -> int:
        return N


class Counting(Sampler[int]):
    """Seeds each epoch by the number of epochs, which it creates in the first."""

    def __iter__(self) -> Iterator[int]:
        self.n_epochs = getattr(self, "n_epochs", 0) + 1
        generator = torch.Generator().manual_seed(self.n_epochs)
        return iter(torch.randperm(N, generator=generator).tolist())

    def __len__(self) -> int:
        return N


class WithStateDict(Sampler[int]):
    """Has a state of its own form, which consists of no numbers."""

    def __init__(self) -> None:
        self.drawn: dict[str, list[int]] = {"seeds": []}

    def __iter__(self) -> Iterator[int]:
        self.drawn["seeds"].append(len(self.drawn["seeds"]))
        generator = torch.Generator().manual_seed(len(self.drawn["seeds"]))
        return iter(torch.randperm(N, generator=generator).tolist())

    def __len__(self) -> int:
        return N

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": list(self.drawn["seeds"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn["seeds"] = list(state["drawn"])


class ShuffledStream(IterableDataset[Any]):
    """Shuffles with a generator of its own."""

    def __init__(self, data: Logged) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(5)

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in torch.randperm(N, generator=self.generator).tolist())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS: dict[str, Callable[[Logged], Any]] = {
    "loader": lambda d: DataLoader(d, 4, shuffle=True, generator=seeded()),
    "random": lambda d: DataLoader(d, 4, sampler=RandomSampler(d, generator=seeded())),
    "weighted": lambda d: DataLoader(
        d, 4, sampler=WeightedRandomSampler(torch.ones(N), N, generator=seeded())
    ),
    "subset": lambda d: DataLoader(d, 4, sampler=SubsetRandomSampler(range(N), seeded())),
    "batches": lambda d: DataLoader(
        d, batch_sampler=BatchSampler(RandomSampler(d, generator=seeded()), 4, False)
    ),
    "numpy": lambda d: DataLoader(d, 4, sampler=OfNumpy(np.random.default_rng(0))),
    "philox": lambda d: DataLoader(
        d, 4, sampler=OfNumpy(np.random.Generator(np.random.Philox(0)))
    ),
    "legacy": lambda d: DataLoader(d, 4, sampler=OfNumpy(np.random.RandomState(0))),
    "python": lambda d: DataLoader(d, 4, sampler=OfPython()),  # type: ignore[arg-type]
    "list": lambda d: DataLoader(d, 4, sampler=InPlace(list)),
    "array": lambda d: DataLoader(d, 4, sampler=InPlace(np.array)),
    "tensor": lambda d: DataLoader(d, 4, sampler=InPlace(torch.tensor)),
    "counting": lambda d: DataLoader(d, 4, sampler=Counting()),
    "state_dict": lambda d: DataLoader(d, 4, sampler=WithStateDict()),
    "stream": ShuffledStream,
    "set_epoch": lambda d: DataLoader(d, 4, sampler=DistributedSampler(d, 1, 0)),
    "batches of set_epoch": lambda d: DataLoader(
        d, batch_sampler=BatchSampler(DistributedSampler(d, 1, 0), 4, False)
    ),
}


def stored(state: State | None) -> State:
    """A state after a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: State = torch.load(file, weights_only=True)
    return loaded


def model_fn_of(make: Callable[[Logged], Any], data: Logged, *, shared: bool) -> Any:
    loader = make(data) if shared else None

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0, 1)
        return recipe(train_data=loader or make(data), batch_size=4)

    return model_fn


def orders(model_fn: Any, data: Logged, *n_epochs: int) -> list[tuple[int, ...]]:
    """The orders of the epochs of a network that is trained in segments of these lengths."""
    context, state = run_context(model_fn), None
    before = len(data.log.epochs())
    for n in n_epochs:
        outcome = succeed(context, params=UNUSED_PARAM, state=state and stored(state), n_epochs=n)
        state = outcome.state
    return data.log.epochs()[before:]


@pytest.mark.parametrize("shared", [False, True], ids=["in model_fn", "shared"])
@pytest.mark.parametrize("name", LOADERS)
def test_segments_equal_one_training(name: str, shared: bool) -> None:
    data = Logged()
    model_fn = model_fn_of(LOADERS[name], data, shared=shared)
    whole = orders(model_fn, data, 4)
    assert len(set(whole)) == 4
    assert orders(model_fn, data, 1, 2, 1) == whole
    data = Logged()  # As in another process.
    assert orders(model_fn_of(LOADERS[name], data, shared=shared), data, 2, 2) == whole


@pytest.mark.parametrize("name", ["numpy", "list", "counting", "state_dict"])
def test_failed_segment_leaves_no_trace(name: str) -> None:
    data = Logged()
    loader = LOADERS[name](data)

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0, 1)
        return recipe(train_data=loader, batch_size=4)

    whole = orders(model_fn, data, 2)

    def failing(result: EpochResult) -> None:
        raise RuntimeError("interrupted")

    job = Job(params=UNUSED_PARAM, state=None, n_epochs=2)
    with pytest.raises(RuntimeError, match="interrupted"):
        run_job(run_context(model_fn), job, failing)
    assert orders(model_fn, data, 2) == whole


def test_state_without_that_of_the_data_can_be_inherited() -> None:
    data = Logged()
    model_fn = model_fn_of(LOADERS["weighted"], data, shared=False)
    context = run_context(model_fn)
    state = succeed(context, params=UNUSED_PARAM, n_epochs=1).state
    assert state is not None
    del state["data"]  # As in a study of an earlier version.
    succeed(context, params=UNUSED_PARAM, state=state, n_epochs=1)
    assert data.log.epochs()[0] == data.log.epochs()[1]


def test_validation_does_not_draw_from_the_generator_of_training() -> None:
    generator = seeded()
    train, valid = TensorDataset(*samples(N)), TensorDataset(*samples(8))

    def weights(valid_data: Any) -> Any:
        def model_fn(trial: Any) -> Recipe:
            trial.suggest_float("unused", 0, 1)
            loader = DataLoader(train, 4, shuffle=True, generator=generator)
            return recipe(train_data=loader, valid_data=valid_data)

        state = succeed(run_context(model_fn), params=UNUSED_PARAM, n_epochs=3).state
        assert state is not None
        return state["model"]["0.weight"]

    shares = DataLoader(valid, batch_size=4, generator=generator)
    assert torch.equal(weights(shares), weights(DataLoader(valid, batch_size=4)))


def test_sampler_of_another_class_keeps_its_own_state() -> None:
    before = DataState().watch(DataLoader(Numbers(N), sampler=OfNumpy(np.random.default_rng(0))))
    loader = DataLoader(Numbers(N), sampler=OfNumpy(np.random.RandomState(3)))
    after = DataState().watch(loader)
    after.restore(before.capture())
    expected = np.random.RandomState(3).permutation(N)
    assert list(loader.sampler) == expected.tolist()


def test_own_settings_of_a_sampler_are_kept() -> None:
    def loader(n: int) -> DataLoader[Any]:
        return DataLoader(Numbers(N), sampler=RandomSampler(Numbers(N), num_samples=n))

    parent = DataState().watch(loader(3))
    heir = loader(5)
    DataState().watch(heir).restore(parent.capture())
    assert len(list(heir.sampler)) == 5


class Holding(Sampler[int]):
    """Holds an object."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __iter__(self) -> Iterator[int]:
        return iter(range(N))

    def state(self) -> Any:
        return self.held


@pytest.mark.parametrize(
    "held", [(i for i in range(3)), iter([1]), map(str, [1])], ids=["generator", "list", "map"]
)
def test_iterators_are_refused(held: Any) -> None:
    with pytest.raises(TypeError, match=r"`held` of Holding: create the iterator in `__iter__`"):
        check_data_state(DataLoader(Numbers(N), sampler=Holding(held)))


def test_generator_without_a_state_is_refused() -> None:
    loader = DataLoader(Numbers(N), sampler=Holding([random.SystemRandom()]))
    with pytest.raises(TypeError, match=r"SystemRandom as `sampler.held\[0\]`"):
        check_data_state(loader)


class Unstorable(WithStateDict):
    """Its state holds an object that a checkpoint cannot hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"self": Log()}


def test_state_that_no_checkpoint_can_hold_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`state_dict` of the data's `sampler` must consist of"):
        check_data_state(DataLoader(Numbers(N), sampler=Unstorable()))


@pytest.mark.parametrize("name", LOADERS)
def test_other_data_are_accepted(name: str) -> None:
    check_data_state(LOADERS[name](Logged()))
    check_data_state(samples(4))
