"""The epoch loop and validation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.networks import network, recipe, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from optuna_miha import Recipe
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.trainer import evaluate, move, train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with intra_op_threads(1):
        yield


class TwoInputs(nn.Module):
    """A network with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


class Empty(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def trainable_recipe(**changes: Any) -> Recipe:
    torch.manual_seed(0)
    built = recipe(**({"batch_size": 7} | changes))
    built.optimizer = torch.optim.Adam(built.model.parameters(), lr=0.01)
    return built


def train_manually(built: Recipe, n_epochs: int) -> list[float]:
    """Train with a loop that a user would write; returns the validation losses."""
    assert isinstance(built.train_data, tuple) and isinstance(built.valid_data, tuple)
    loader = DataLoader(
        TensorDataset(*built.train_data), batch_size=built.batch_size, shuffle=True
    )
    x_valid, y_valid = built.valid_data
    values = []
    for _ in range(n_epochs):
        built.model.train()
        for x, y in loader:
            built.optimizer.zero_grad()
            loss = built.loss_fn(built.model(x), y)
            loss.backward()
            built.optimizer.step()
        built.model.eval()
        with torch.no_grad():
            values.append(float(built.loss_fn(built.model(x_valid), y_valid)))
    return values


@pytest.mark.parametrize("as_loader", [False, True])
def test_training_equals_a_manual_loop_bit_for_bit(as_loader: bool) -> None:
    ours, theirs = trainable_recipe(), trainable_recipe()
    if as_loader:
        ours.train_data = DataLoader(TensorDataset(*ours.train_data), batch_size=7, shuffle=True)
    torch.manual_seed(5)
    results = list(train(ours, 3))
    torch.manual_seed(5)
    # With 16 validation samples, the mean times the number of samples is exact.
    assert [result.value for result in results] == train_manually(theirs, 3)
    assert same(ours.model.state_dict(), theirs.model.state_dict())


def test_training_loss_is_the_mean_over_the_samples() -> None:
    built = trainable_recipe(model=nn.Linear(4, 3))
    built.optimizer = torch.optim.SGD(built.model.parameters(), lr=0.0)
    [result] = train(built, 1)
    x, y = built.train_data
    expected = float(nn.functional.cross_entropy(built.model(x), y).detach())
    assert result.train_loss == pytest.approx(expected, rel=1e-6)


def test_results_are_yielded_after_every_epoch() -> None:
    built = trainable_recipe()
    progress = train(built, 2)
    before = copy.deepcopy(built.model.state_dict())
    next(progress)
    between = copy.deepcopy(built.model.state_dict())
    assert not same(before, between)
    next(progress)
    assert not same(between, built.model.state_dict())
    assert next(progress, None) is None


def test_dropout_is_active_in_training_only() -> None:
    modes: list[bool] = []
    built = trainable_recipe()
    built.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    list(train(built, 2))
    # 24 samples in batches of 7 are four steps; 16 validation samples are one batch.
    assert modes == ([True] * 4 + [False]) * 2


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(sizes=sizes, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_validation_loss_is_the_mean_over_samples_for_any_batches(
    sizes: list[int], seed: int
) -> None:
    n = sum(sizes)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = x[:, :2].sum(dim=1, keepdim=True) ** 2
    model = nn.Linear(4, 1).double()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    cuts = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    spread = {"spread": lambda outputs, targets: (outputs - targets).abs().max()}
    built = recipe(
        model=model,
        loss_fn=nn.MSELoss(),
        valid_data=DataLoader(TensorDataset(x, y), batch_sampler=cuts),
        metrics=spread,
    )
    values = evaluate(built, model)
    errors = (model(x) - y).detach()
    assert values["loss"] == pytest.approx(float((errors**2).mean()), rel=1e-12)
    assert values["spread"] == pytest.approx(float(errors.abs().max()), rel=1e-12)


def test_validation_averages_over_several_batches() -> None:
    torch.manual_seed(0)
    x, y = samples(1200)
    model = nn.Linear(4, 3)
    built = recipe(model=model, valid_data=(x, y), monitor="accuracy")
    values = evaluate(built, model)
    outputs = model(x).detach()
    expected = float(nn.functional.cross_entropy(outputs.double(), y))
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    assert values["accuracy"] == float((outputs.argmax(1) == y).double().mean())


def test_metrics_are_called_once_per_epoch_with_all_outputs() -> None:
    calls: list[tuple[int, int]] = []

    def count(outputs: Tensor, targets: Tensor) -> float:
        calls.append((len(outputs), len(targets)))
        return 7.0

    built = trainable_recipe(
        metrics={"count": count},
        valid_data=DataLoader(TensorDataset(*samples(20)), batch_size=6),
    )
    results = list(train(built, 2))
    assert calls == [(20, 20), (20, 20)]
    assert [dict(result.metrics) for result in results] == [{"count": 7.0}] * 2


def test_monitored_metric_is_the_value_and_the_loss_a_metric() -> None:
    [result] = train(trainable_recipe(monitor="accuracy"), 1)
    assert 0 <= result.value <= 1 and (result.value * 16).is_integer()
    assert result.metrics.keys() == {"loss"}


def test_validation_uses_valid_loss_fn() -> None:
    built = trainable_recipe(valid_loss_fn=lambda outputs, targets: torch.tensor(42.0))
    [result] = train(built, 1)
    assert result.value == 42.0
    assert result.train_loss < 10


def test_evaluation_changes_neither_weights_nor_random_state() -> None:
    built = trainable_recipe()
    before, rng = copy.deepcopy(built.model.state_dict()), torch.get_rng_state()
    evaluate(built, built.model)
    assert same(before, built.model.state_dict())
    assert torch.equal(rng, torch.get_rng_state())


def test_evaluation_accepts_another_network() -> None:
    built, other = trainable_recipe(), network()
    other.eval()
    x, y = built.valid_data
    expected = float(nn.functional.cross_entropy(other(x), y).detach())
    assert evaluate(built, other)["loss"] == expected != evaluate(built, built.model)["loss"]


def test_train_step_receives_the_unchanged_batch() -> None:
    def collate(items: list[Any]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in items]), "y": torch.stack([y for _, y in items])}

    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        return loss_fn(model(batch["x"]), batch["y"])

    plain = trainable_recipe()
    stepped = trainable_recipe(train_step=step)
    for name, n in (("train_data", 7), ("valid_data", 16)):
        dataset = TensorDataset(*getattr(plain, name))
        shuffle = name == "train_data"
        loader = DataLoader(dataset, batch_size=n, collate_fn=collate, shuffle=shuffle)
        setattr(stepped, name, loader)
    torch.manual_seed(5)
    expected = list(train(plain, 1))
    torch.manual_seed(5)
    assert list(train(stepped, 1)) == expected
    assert same(plain.model.state_dict(), stepped.model.state_dict())


def test_train_step_validates_with_valid_loss_fn() -> None:
    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        return loss_fn(model(batch[0]), batch[1])

    built = trainable_recipe(
        train_step=step, valid_loss_fn=lambda outputs, targets: torch.tensor(42.0)
    )
    [result] = train(built, 1)
    assert result.value == 42.0


def test_all_tensors_but_the_last_are_inputs() -> None:
    x, y = samples(24)
    built = trainable_recipe(
        model=TwoInputs(), train_data=(x, x[:, :2], y), valid_data=(x, x[:, :2], y), batch_size=5
    )
    first, *_, last = train(built, 30)
    assert last.value < first.value
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(built.model(x, x[:, :2]), y))
    assert last.value == pytest.approx(expected, rel=1e-6)


def frozen_norm() -> nn.Sequential:
    """A network whose batch norm, the second of two, was frozen."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model[1].requires_grad_(False).eval()
    return model


def test_frozen_modules_stay_in_evaluation_mode() -> None:
    seen: list[tuple[bool, ...]] = []

    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        seen.append(tuple(part.training for part in model))
        return loss_fn(model(batch[0]), batch[1])

    built = trainable_recipe(model=frozen_norm(), train_step=step)
    list(train(built, 2))
    first, frozen = built.model[:2]
    assert not torch.equal(first.running_mean, torch.zeros(4))
    assert torch.equal(frozen.running_mean, torch.zeros(4))
    assert frozen.num_batches_tracked == 0
    training, evaluation = (True, False, True, True), (False,) * 4
    assert seen == [*[training] * 4, evaluation] * 2


def test_evaluation_restores_the_modes() -> None:
    built = trainable_recipe(model=frozen_norm())
    evaluate(built, built.model)
    assert [part.training for part in built.model] == [True, False, True, True]


def test_network_in_evaluation_mode_is_trained_as_a_whole() -> None:
    model = frozen_norm()
    built = trainable_recipe(model=model.eval())
    list(train(built, 1))
    assert all(norm.num_batches_tracked == 4 for norm in built.model[:2])


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), ValueError, r"scalar.*shape \(7,\).*reduction"),
        (lambda outputs, targets: 0.5, TypeError, "must return a tensor, got float"),
        (
            lambda outputs, targets: nn.functional.cross_entropy(outputs.detach(), targets),
            ValueError,
            r"no gradient.*detach",
        ),
    ],
)
def test_invalid_training_loss_is_refused(
    loss_fn: Any, error: type[Exception], message: str
) -> None:
    built = trainable_recipe(loss_fn=loss_fn)
    before = copy.deepcopy(built.model.state_dict())
    with pytest.raises(error, match=message):
        next(train(built, 1))
    named = built.model.named_parameters()
    assert all(same(parameter, before[name]) for name, parameter in named)


@pytest.mark.parametrize(
    "data",
    [
        Empty(),
        DataLoader(TensorDataset(*samples(5)), sampler=SubsetRandomSampler([]), drop_last=True),
    ],
)
def test_training_data_without_a_batch_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"`train_data`.*batch size \(7\).*drop_last=False"):
        next(train(trainable_recipe(train_data=data), 1))


def test_validation_data_without_a_batch_are_refused() -> None:
    built = trainable_recipe(valid_data=Empty())
    with pytest.raises(ValueError, match="`valid_data` must yield at least one batch"):
        evaluate(built, built.model)


def test_move_moves_all_parts_of_a_recipe() -> None:
    meta = torch.device("meta")
    built = recipe(loss_fn=nn.CrossEntropyLoss(torch.ones(3)))
    built.valid_loss_fn = nn.CrossEntropyLoss(torch.ones(3))
    move(built, meta)
    losses = [built.loss_fn.weight, built.valid_loss_fn.weight]
    moved = [*built.model.parameters(), *losses, *built.train_data, *built.valid_data]
    assert {tensor.device for tensor in moved} == {meta}
