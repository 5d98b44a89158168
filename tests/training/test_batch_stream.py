"""Epochs of a number of steps, from a loader that goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.jobs import UNUSED_PARAM, values_of
from helpers.networks import recipe, run_context, samples, succeed
from helpers.problems import SHORT, run
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import optuna_miha as miha
from optuna_miha import Recipe
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.trainer import train


class Noisy(Dataset[Any]):
    """Samples with noise of the global generator, whose loaded indices are noted."""

    loaded: list[int]

    def __init__(self) -> None:
        self.data = samples(23)
        Noisy.loaded = []

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        Noisy.loaded.append(index)
        return self.data[0][index] + 0.1 * torch.randn(4), self.data[1][index]


class Endless(IterableDataset[Any]):
    """Samples without end."""

    def __iter__(self) -> Iterator[Any]:
        x, y = samples(23)
        while True:
            index = int(torch.randint(23, ()))
            yield x[index], y[index]


class Resumable(IterableDataset[Any]):
    """Samples without end, with a position."""

    def __init__(self) -> None:
        self.position = 0
        self.n_yielded = 0

    def __iter__(self) -> Iterator[Any]:
        x, y = samples(23)
        while True:
            index, self.position = self.position % 23, self.position + 1
            self.n_yielded += 1
            yield x[index], y[index]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def shuffled(**settings: Any) -> Any:
    return DataLoader(TensorDataset(*samples(23)), batch_size=5, shuffle=True, **settings)


DATA: dict[str, Any] = {
    "tensors": lambda: samples(23),
    "loader": lambda: DataLoader(Noisy(), batch_size=5, shuffle=True),
    "loader with a generator": lambda: shuffled(generator=torch.Generator().manual_seed(3)),
    "loader that drops samples": lambda: shuffled(drop_last=True),
    "endless": lambda: DataLoader(Endless(), batch_size=5),
    "resumable": lambda: DataLoader(Resumable(), batch_size=5),
}


def made(data: Any, **changes: Any) -> Recipe:
    return recipe(train_data=data(), **({"batch_size": 5, "steps_per_epoch": 3} | changes))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_successive_jobs_equal_one_long_job_bit_for_bit(data: Any, accumulate: int) -> None:
    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0.0, 1.0)
        return made(data, accumulate=accumulate)

    context = run_context(model_fn)
    whole = succeed(context, params=UNUSED_PARAM, n_epochs=6)
    parts = [succeed(context, params=UNUSED_PARAM, n_epochs=1)]
    for n_epochs in (2, 3):
        state = parts[-1].state
        parts.append(succeed(context, params=UNUSED_PARAM, n_epochs=n_epochs, state=state))
    assert values_of(*parts) == values_of(whole)
    assert same(parts[-1].state, whole.state)


def test_passes_follow_each_other_without_regard_to_epochs() -> None:
    """Also where another segment continues; no sample that was seen is loaded again."""
    seen: list[int] = []
    extra = ExtraState()
    for _ in range(4):
        made_now = made(DATA["loader"])
        made_now.optimizer = torch.optim.SGD(made_now.model.parameters(), lr=0.1)
        following = ExtraState()
        following.inherit(extra.capture())
        list(train(made_now, 1, extra=following))
        extra = following
        seen += Noisy.loaded
    # Three steps of five samples in each of four epochs, of passes of 23 samples.
    assert sorted(seen[:23]) == sorted(seen[23:46]) == list(range(23))
    assert seen[:23] != seen[23:46]
    assert len(seen) == 15 + 13 + 15 + 13


def test_data_with_a_state_are_not_read_again() -> None:
    data = Resumable()

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0.0, 1.0)
        return made(lambda: DataLoader(data, batch_size=5))

    context = run_context(model_fn)
    state = None
    for _ in range(3):
        state = succeed(context, params=UNUSED_PARAM, n_epochs=1, state=state).state
    assert data.n_yielded == 3 * 15


def test_other_batch_size_continues_after_as_many_samples() -> None:
    def model_fn(trial: Any) -> Recipe:
        size = trial.suggest_int("batch_size", 1, 23)
        return made(DATA["tensors"], batch_size=size, loss_fn=watched)

    lengths: list[int] = []

    def watched(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            lengths.append(len(targets))
        return torch.nn.functional.cross_entropy(outputs, targets)

    context = run_context(model_fn)
    parent = succeed(context, params={"batch_size": 5}, n_epochs=1)
    succeed(context, params={"batch_size": 10}, n_epochs=1, state=parent.state)
    assert lengths == [5, 5, 5, 10, 3, 10]  # The second batch of ten of the pass, and its rest.


@pytest.mark.slow
def test_endless_stream_needs_steps_of_an_epoch() -> None:
    def model_fn(trial: Any) -> Recipe:
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        endless = made(DATA["endless"], steps_per_epoch=steps)
        endless.optimizer = torch.optim.SGD(endless.model.parameters(), lr=lr)
        return endless

    steps: int | None = None
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    with pytest.raises(ValueError, match=r"without one: set `Recipe\(steps_per_epoch=\.\.\.\)`"):
        run(study, model_fn)
    assert not study.user_attrs
    steps = 2
    result = run(study, model_fn, plan=SHORT)
    assert sum(t.user_attrs["miha:trained"] for t in study.trials) == 40
    again = optuna.create_study(sampler=miha.MihaSampler(seed=0))

    def stop(study: optuna.Study, trial: Any) -> None:
        if trial.number == 2:
            study.stop()

    run(again, model_fn, plan=SHORT, callbacks=[stop])
    assert run(again, model_fn, plan=SHORT).value == result.value
    assert same(
        [t.intermediate_values for t in again.trials],
        [t.intermediate_values for t in study.trials],
    )
