"""The epoch loop and validation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.networks import network, objects, recipe
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


class Sum(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def trainable(**changes: Any) -> Recipe:
    torch.manual_seed(0)
    made = recipe(**({"batch_size": 7} | changes))
    made.optimizer = torch.optim.Adam(made.model.parameters(), lr=0.01)
    return made


def by_hand(made: Recipe, n_epochs: int) -> list[float]:
    """The loop that a user would write."""
    assert isinstance(made.train_data, tuple) and isinstance(made.valid_data, tuple)
    loader = DataLoader(TensorDataset(*made.train_data), batch_size=made.batch_size, shuffle=True)
    x_valid, y_valid = made.valid_data
    values = []
    for _ in range(n_epochs):
        made.model.train()
        for x, y in loader:
            made.optimizer.zero_grad()
            loss = made.loss_fn(made.model(x), y)
            loss.backward()
            made.optimizer.step()
        made.model.eval()
        with torch.no_grad():
            values.append(float(made.loss_fn(made.model(x_valid), y_valid)))
    return values


@pytest.mark.parametrize("as_loader", [False, True])
def test_training_equals_a_loop_written_by_hand_bit_for_bit(as_loader: bool) -> None:
    ours, theirs = trainable(), trainable()
    if as_loader:
        ours.train_data = DataLoader(TensorDataset(*ours.train_data), batch_size=7, shuffle=True)
    torch.manual_seed(5)
    results = list(train(ours, 3))
    torch.manual_seed(5)
    # 16 validation objects: their mean times their number is exact.
    assert [result.value for result in results] == by_hand(theirs, 3)
    assert same(ours.model.state_dict(), theirs.model.state_dict())


def test_the_training_loss_is_the_mean_over_the_objects_of_the_epoch() -> None:
    made = trainable(model=nn.Linear(4, 3))
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.0)
    [result] = train(made, 1)
    x, y = made.train_data
    expected = float(nn.functional.cross_entropy(made.model(x), y).detach())
    assert result.train_loss == pytest.approx(expected, rel=1e-6)


def test_a_result_follows_every_epoch_as_soon_as_it_is_trained() -> None:
    made = trainable()
    progress = train(made, 2)
    before = copy.deepcopy(made.model.state_dict())
    next(progress)
    between = copy.deepcopy(made.model.state_dict())
    assert not same(before, between)
    next(progress)
    assert not same(between, made.model.state_dict())
    assert next(progress, None) is None


def test_dropout_is_on_in_training_and_off_in_validation() -> None:
    modes: list[bool] = []
    made = trainable()
    made.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    list(train(made, 2))
    # 24 objects by 7 are four steps; 16 validation objects are one batch.
    assert modes == ([True] * 4 + [False]) * 2


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(sizes=sizes, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_the_validation_loss_is_a_mean_over_objects_whatever_the_batching(
    sizes: list[int], seed: int
) -> None:
    n = sum(sizes)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = x[:, :2].sum(dim=1, keepdim=True) ** 2
    model = nn.Linear(4, 1).double()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    cuts = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    spread = {"spread": lambda outputs, targets: (outputs - targets).abs().max()}
    made = recipe(
        model=model,
        loss_fn=nn.MSELoss(),
        valid_data=DataLoader(TensorDataset(x, y), batch_sampler=cuts),
        metrics=spread,
    )
    values = evaluate(made, model)
    errors = (model(x) - y).detach()
    assert values["loss"] == pytest.approx(float((errors**2).mean()), rel=1e-12)
    assert values["spread"] == pytest.approx(float(errors.abs().max()), rel=1e-12)


def test_more_objects_than_one_evaluation_batch_are_averaged_rightly() -> None:
    torch.manual_seed(0)
    x, y = objects(1200)
    model = nn.Linear(4, 3)
    made = recipe(model=model, valid_data=(x, y), monitor="accuracy")
    values = evaluate(made, model)
    outputs = model(x).detach()
    expected = float(nn.functional.cross_entropy(outputs.double(), y))
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    assert values["accuracy"] == float((outputs.argmax(1) == y).double().mean())


def test_metrics_are_called_once_per_epoch_with_all_outputs() -> None:
    calls: list[tuple[int, int]] = []

    def count(outputs: Tensor, targets: Tensor) -> float:
        calls.append((len(outputs), len(targets)))
        return 7.0

    made = trainable(
        metrics={"count": count},
        valid_data=DataLoader(TensorDataset(*objects(20)), batch_size=6),
    )
    results = list(train(made, 2))
    assert calls == [(20, 20), (20, 20)]
    assert [dict(result.metrics) for result in results] == [{"count": 7.0}] * 2


def test_a_monitored_metric_is_the_value_and_the_loss_is_a_metric() -> None:
    [result] = train(trainable(monitor="accuracy"), 1)
    assert 0 <= result.value <= 1 and (result.value * 16).is_integer()
    assert result.metrics.keys() == {"loss"}


def test_validation_uses_its_own_loss() -> None:
    made = trainable(valid_loss_fn=lambda outputs, targets: torch.tensor(42.0))
    [result] = train(made, 1)
    assert result.value == 42.0
    assert result.train_loss < 10


def test_evaluation_leaves_the_weights_and_draws_nothing() -> None:
    made = trainable()
    before, rng = copy.deepcopy(made.model.state_dict()), torch.get_rng_state()
    evaluate(made, made.model)
    assert same(before, made.model.state_dict())
    assert torch.equal(rng, torch.get_rng_state())


def test_evaluation_can_be_of_another_network() -> None:
    made, other = trainable(), network()
    other.eval()
    x, y = made.valid_data
    expected = float(nn.functional.cross_entropy(other(x), y).detach())
    assert evaluate(made, other)["loss"] == expected != evaluate(made, made.model)["loss"]


def test_a_train_step_takes_the_batch_as_it_is() -> None:
    def collate(items: list[Any]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in items]), "y": torch.stack([y for _, y in items])}

    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        return loss_fn(model(batch["x"]), batch["y"])

    plain = trainable()
    stepped = trainable(train_step=step)
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


def test_a_train_step_validates_with_the_validation_loss() -> None:
    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        return loss_fn(model(batch[0]), batch[1])

    made = trainable(train_step=step, valid_loss_fn=lambda outputs, targets: torch.tensor(42.0))
    [result] = train(made, 1)
    assert result.value == 42.0


def test_all_but_the_last_tensor_are_inputs() -> None:
    x, y = objects(24)
    made = trainable(
        model=Sum(), train_data=(x, x[:, :2], y), valid_data=(x, x[:, :2], y), batch_size=5
    )
    first, *_, last = train(made, 30)
    assert last.value < first.value
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(made.model(x, x[:, :2]), y))
    assert last.value == pytest.approx(expected, rel=1e-6)


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
def test_a_loss_that_cannot_be_trained_on_is_refused(
    loss_fn: Any, error: type[Exception], message: str
) -> None:
    made = trainable(loss_fn=loss_fn)
    before = copy.deepcopy(made.model.state_dict())
    with pytest.raises(error, match=message):
        next(train(made, 1))
    assert same(list(made.model.parameters()), [before[k] for k, _ in _parameters(made)])


def _parameters(made: Recipe) -> list[tuple[str, nn.Parameter]]:
    return list(made.model.named_parameters())


@pytest.mark.parametrize(
    "data",
    [
        Nothing(),
        DataLoader(TensorDataset(*objects(5)), sampler=SubsetRandomSampler([]), drop_last=True),
    ],
)
def test_training_data_without_a_batch_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"`train_data`.*batch size \(7\).*drop_last=False"):
        next(train(trainable(train_data=data), 1))


def test_validation_data_without_a_batch_are_refused() -> None:
    made = trainable(valid_data=Nothing())
    with pytest.raises(ValueError, match="`valid_data` must yield at least one batch"):
        evaluate(made, made.model)


def test_all_that_a_recipe_holds_is_moved() -> None:
    meta = torch.device("meta")
    made = recipe(loss_fn=nn.CrossEntropyLoss(torch.ones(3)))
    made.valid_loss_fn = nn.CrossEntropyLoss(torch.ones(3))
    move(made, meta)
    losses = [made.loss_fn.weight, made.valid_loss_fn.weight]
    moved = [*made.model.parameters(), *losses, *made.train_data, *made.valid_data]
    assert {tensor.device for tensor in moved} == {meta}
